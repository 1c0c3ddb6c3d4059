//! Questions over clusters that are mostly whole, with few faults.

use crate::worse::{Worse, worse};
use proptest::prelude::*;
use quorum_safety::fixture::{Cluster, healthy, id, name};
use quorum_safety::*;

/// A cluster and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) cluster: Cluster,
    pub(crate) wanted: Disruption,
}

/// The kinds of disruption, a worker's apart.
pub(crate) const KINDS: [&str; 10] = [
    "reboot",
    "upgrade",
    "worker",
    "move leader",
    "defragment",
    "add learner",
    "promote",
    "remove",
    "replace",
    "restore",
];

pub(crate) fn kind(wanted: &Disruption) -> &'static str {
    match wanted {
        Disruption::Reboot(node) | Disruption::Upgrade(node) if node.0.starts_with('w') => "worker",
        Disruption::Reboot(_) => "reboot",
        Disruption::Upgrade(_) => "upgrade",
        Disruption::MoveLeader(_) => "move leader",
        Disruption::Defragment(_) => "defragment",
        Disruption::AddLearner => "add learner",
        Disruption::Promote(_) => "promote",
        Disruption::Remove(_) => "remove",
        Disruption::Replace(_) => "replace",
        Disruption::Restore => "restore",
    }
}

pub(crate) fn question() -> impl Strategy<Value = Question> {
    let voters = prop_oneof![
        1 => Just(1_u64), 1 => Just(2), 6 => Just(3), 2 => Just(4), 4 => Just(5), 1 => Just(6), 2 => Just(7)
    ];
    voters
        .prop_flat_map(|n| (Just(n), wanted(n)))
        .prop_flat_map(|(n, wanted)| {
            let faults = prop_oneof![
                5 => prop::collection::vec(worse(), 0),
                4 => prop::collection::vec(worse(), 1),
                2 => prop::collection::vec(worse(), 2),
                1 => prop::collection::vec(worse(), 3..6),
            ];
            let lifted = prop_oneof![
                6 => Just(Vec::new()),
                1 => prop::sample::subsequence(Code::ALL.to_vec(), 1..6),
                1 => Just(Code::ALL.to_vec()),
            ];
            let lags = (lag(1_000, [0, 50, 10_000]), lag(100, [0, 9, 1_000]));
            let strain =
                (lag(1_000, [3, 1_500, 2_500]), lag(90, [1, 50, 100]), lag(1 << 31, [1_100_000_000, 1 << 31, 1]));
            (Just(n), Just(wanted), 0..8_u8, faults, lifted, 1..=2_usize, (lags, strain))
        })
        .prop_map(|(n, wanted, mine, faults, lifted, slots, ((healthy_lag, recovered_lag), strain))| {
            let (slow_read, database_fill, assumed_quota) = strain;
            let mut question = build(n, wanted, mine, &faults);
            let policy = &mut question.cluster.policy;
            let figures =
                Policy { healthy_lag, recovered_lag, slow_read, database_fill, assumed_quota, ..policy.clone() };
            *policy = Policy { lifted, worker_slots: slots, ..figures };
            question
        })
}

/// Mostly the bound that is the default.
fn lag(usual: u64, others: [u64; 3]) -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(usual), 2 => prop::sample::select(others.to_vec())]
}

fn wanted(n: u64) -> impl Strategy<Value = Disruption> {
    let one = 1..=n;
    let anybody = prop_oneof![12 => 1..=n, 1 => Just(n + 1), 1 => Just(99)];
    prop_oneof![
        4 => one.clone().prop_map(|n| Disruption::Reboot(name(n))),
        4 => one.prop_map(|n| Disruption::Upgrade(name(n))),
        2 => Just(Disruption::Reboot("w1".into())),
        1 => Just(Disruption::Upgrade("w1".into())),
        1 => anybody.clone().prop_map(|n| Disruption::MoveLeader(id(n))),
        2 => anybody.clone().prop_map(|n| Disruption::Defragment(id(n))),
        1 => Just(Disruption::AddLearner),
        2 => prop_oneof![6 => Just(n + 1), 1 => Just(1)].prop_map(|n| Disruption::Promote(id(n))),
        3 => anybody.clone().prop_map(|n| Disruption::Remove(id(n))),
        3 => anybody.prop_map(|n| Disruption::Replace(id(n))),
        1 => Just(Disruption::Restore),
    ]
}

fn build(n: u64, wanted: Disruption, mine: u8, faults: &[Worse]) -> Question {
    let mut cluster = healthy(n);
    if matches!(wanted, Disruption::Promote(_)) {
        cluster = cluster.learner();
    }
    // A removal is for a member that is dead, and a restore for a cluster that is: most of the time.
    if let Disruption::Remove(member) | Disruption::Replace(member) = &wanted
        && !mine.is_multiple_of(4)
    {
        Worse::PowerCut(member.0 - id(0).0).apply(&mut cluster);
    }
    if wanted == Disruption::Restore && !mine.is_multiple_of(4) {
        for n in 1..=n {
            Worse::NoLeader(n).apply(&mut cluster);
            Worse::ReadUnknown(n).apply(&mut cluster);
        }
        Worse::MembershipUnknown.apply(&mut cluster);
    }
    let target = target(&wanted);
    cluster = match mine {
        0 | 1 => cluster.taken(&target),
        2 | 3 => {
            // What has begun may have gone far: the target is down and cordoned.
            let mut cluster = cluster.adopted(&target);
            if mine == 3
                && matches!(wanted, Disruption::Reboot(_) | Disruption::Upgrade(_))
                && let Some(n) = target.strip_prefix('k').and_then(|n| n.parse().ok())
            {
                Worse::PowerCut(n).apply(&mut cluster);
                Worse::NotReady(n).apply(&mut cluster);
            }
            cluster
        }
        4 if target.starts_with('w') => cluster.worker_taken(&target),
        _ => cluster,
    };
    for fault in faults {
        fault.apply(&mut cluster);
    }
    Question { cluster, wanted }
}

fn target(wanted: &Disruption) -> String {
    match wanted {
        Disruption::Reboot(node) | Disruption::Upgrade(node) => node.0.clone(),
        Disruption::Defragment(member) | Disruption::Remove(member) | Disruption::Replace(member) => {
            format!("k{}", member.0 - id(0).0)
        }
        _ => "k1".into(),
    }
}

/// Nothing of the API is known any more; `begun`: the asker goes on with what it began.
pub(crate) fn take_the_api_away(cluster: &mut Cluster, begun: bool) {
    let (away, mine) = (|| "away".to_owned(), if begun { Mine::Adopted("here".to_owned()) } else { Mine::Nothing });
    cluster.seen.nodes = Fact::Unknown(away());
    cluster.seen.cluster_uid = Fact::Unknown(away());
    for view in &mut cluster.seen.etcd.members {
        view.node = Fact::Unknown(away());
    }
    for server in &mut cluster.seen.apiservers {
        (server.ready, server.certificate_expires) = (Fact::Unknown(away()), Fact::Unknown(away()));
    }
    cluster.in_flight = InFlight {
        control_plane: Fact::Unknown(away()),
        workers: Fact::Unknown(away()),
        snapshot: Fact::Unknown(away()),
        kured: Fact::Unknown(away()),
        kill_switch: Fact::Unknown(away()),
        mine,
    };
}

/// The API around the same etcd, whole: each member on a node of its own, nobody at work.
pub(crate) fn bring_a_whole_api(cluster: &mut Cluster) {
    let n = cluster.list.len() as u64;
    let whole = healthy(n);
    for view in &mut cluster.seen.etcd.members {
        view.node = Fact::Known(name(view.id.0 - id(0).0));
    }
    cluster.seen.nodes = whole.seen.nodes;
    cluster.seen.cluster_uid = whole.seen.cluster_uid;
    cluster.seen.apiservers = whole.seen.apiservers;
    cluster.in_flight = whole.in_flight;
}

/// The same facts in another order.
pub(crate) fn shuffle(cluster: &mut Cluster, seed: u64) {
    let mut state = seed;
    mix(&mut cluster.seen.etcd.members, &mut state);
    mix(&mut cluster.seen.apiservers, &mut state);
    mix(&mut cluster.policy.lifted, &mut state);
    if let Fact::Known(nodes) = &mut cluster.seen.nodes {
        mix(nodes, &mut state);
        for node in nodes {
            if let Fact::Known(pods) = &mut node.static_pods {
                mix(pods, &mut state);
            }
        }
    }
    for view in &mut cluster.seen.etcd.members {
        if let Fact::Known(list) = &mut view.member_list {
            mix(list, &mut state);
        }
        if let Fact::Known(alarms) = &mut view.alarms {
            mix(alarms, &mut state);
        }
    }
    if let Fact::Known(workers) = &mut cluster.in_flight.workers {
        mix(workers, &mut state);
    }
}

/// Fisher and Yates with a plain generator: good enough to disturb an order.
fn mix<T>(items: &mut [T], state: &mut u64) {
    for at in (1..items.len()).rev() {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(at, (*state >> 33) as usize % (at + 1));
    }
}
