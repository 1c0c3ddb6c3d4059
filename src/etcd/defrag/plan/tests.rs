use super::*;
use crate::config::{Config, Defrag};
use quorum_safety::fixture::{Cluster, healthy, id, name, unknown};
use quorum_safety::{Alarm, AlarmKind, Holder, Quota};

const MIB: u64 = 1 << 20;

fn seen(cluster: Cluster) -> Seen {
    Seen { observation: cluster.seen, in_flight: cluster.in_flight }
}

/// Gives a member a database, mebibytes.
fn database(cluster: Cluster, n: u64, size: u64, in_use: u64) -> Cluster {
    cluster.on_samples(n, |sample| (sample.db_size, sample.db_size_in_use) = (size * MIB, in_use * MIB))
}

/// Three voters with 300 MiB each, of which 30 are in use; k3 leads in every fixture.
fn fragmented() -> Cluster {
    (1..=3).fold(healthy(3), |cluster, n| database(cluster, n, 300, 30))
}

fn half_done(member: &str) -> impl FnOnce(&mut Cluster) {
    let holder = Holder { identity: "they-1".into(), operation: format!("defrag-{member}"), target: "k2".into() };
    move |cluster| cluster.in_flight.control_plane = Fact::Known(Lock::Held(holder))
}

fn turns(cluster: Cluster) -> Vec<String> {
    Plan::of(&seen(cluster), &Config::default()).due().map(|row| row.member.clone()).collect()
}

#[test]
fn followers_go_first_the_leader_last_and_what_does_not_pay_is_left_alone() {
    let whole = || ["k1 (a1)", "k2 (a2)", "k3 (a3)"].map(str::to_owned).to_vec();
    assert_eq!(turns(fragmented()), whole());
    let leads = |n: u64| move |sample: &mut StatusSample| sample.leader = Some(id(n));
    let k1_leads = (1..=3).fold(fragmented(), |cluster, n| cluster.on_samples(n, leads(1)));
    assert_eq!(turns(k1_leads), ["k2 (a2)", "k3 (a3)", "k1 (a1)"]);
    for (what, cluster, due) in [
        ("small", database(fragmented(), 1, 99, 1), vec!["k2 (a2)", "k3 (a3)"]),
        ("large enough", database(fragmented(), 1, 100, 1), vec!["k1 (a1)", "k2 (a2)", "k3 (a3)"]),
        ("in use", database(fragmented(), 2, 300, 166), vec!["k1 (a1)", "k3 (a3)"]),
        ("just not in use", database(fragmented(), 2, 300, 165), vec!["k1 (a1)", "k2 (a2)", "k3 (a3)"]),
        ("more in use than there is", database(fragmented(), 2, 300, 301), vec!["k1 (a1)", "k3 (a3)"]),
        ("silent", fragmented().member_dead(2), vec!["k1 (a1)", "k3 (a3)"]),
        ("nothing at all", healthy(3), vec![]),
        ("half done, though it does not pay", healthy(3).with(half_done("a2")), vec!["k2 (a2)"]),
        ("half done goes first", fragmented().with(half_done("a3")), vec!["k3 (a3)", "k1 (a1)", "k2 (a2)"]),
        ("no members are known", fragmented().with(|c| c.seen.etcd.membership = unknown()), vec![]),
    ] {
        assert_eq!(turns(cluster), due, "{what}");
    }
    // A learner never.
    let learner = database(fragmented().learner(), 4, 300, 30);
    assert_eq!(turns(learner), whole());
}

#[test]
fn what_stands_against_the_first_is_told_and_that_it_leads_is_not() {
    let codes = |cluster: Cluster| -> Vec<Code> {
        let plan = Plan::of(&seen(cluster), &Config::default());
        plan.reasons.iter().map(|reason| reason.code).collect()
    };
    let only_leader = || database(database(fragmented(), 1, 30, 30), 2, 30, 30);
    assert_eq!(codes(fragmented()), []);
    assert_eq!(codes(only_leader()), []);
    assert_eq!(codes(fragmented().member_dead(2)), [Code::QuorumWouldBeLost, Code::MemberUnanswered]);
    let snapshot = Holder { identity: "they-1".into(), operation: "backup".into(), target: "k2".into() };
    let beside = fragmented().with(|cluster| cluster.in_flight.snapshot = Fact::Known(Lock::Held(snapshot)));
    assert_eq!(codes(beside), [Code::SnapshotInProgress]);
    // Whoever goes on with it has its Lease.
    assert_eq!(codes(fragmented().with(half_done("a2"))), []);
    assert_eq!(codes(fragmented().with(half_done("a9"))), [Code::LeaseHeld]);
    // Nobody to hand over to.
    assert!(codes(database(healthy(1), 1, 300, 30)).contains(&Code::TargetLeads));
    assert_eq!(codes(healthy(3).member_dead(2)), [], "nothing is worth it");
}

#[test]
fn leadership_goes_to_who_need_not_give_it_away_again() {
    let to = |cluster: Cluster, of: u64| -> Vec<u64> {
        successors(&cluster.seen, id(of), &Defrag::default()).map(|id| id.0 & 0xf).collect()
    };
    assert_eq!(to(database(fragmented(), 2, 30, 30), 3), [2, 1]);
    assert_eq!(to(fragmented().on_samples(2, |sample| sample.applied_index += 1), 3), [2, 1]);
    assert_eq!(to(fragmented().member_dead(1), 3), [2]);
    assert_eq!(to(fragmented().learner(), 3), [1, 2]);
    assert_eq!(to(healthy(1), 1), [0; 0]);
}

/// The cure of a database that is nearly full must not be held by that: the leader's leadership moves all the same.
#[test]
fn a_full_database_keeps_no_leader_from_handing_over() {
    let full = (1..=3).fold(fragmented(), |cluster, n| {
        cluster.on_samples(n, |sample| sample.db_quota = Fact::Known(Quota::Bytes(310 * MIB)))
    });
    let wanted = Disruption::MoveLeader(id(1));
    let codes = |policy: &Policy| -> Vec<Code> {
        judge(&full.seen, &full.in_flight, &wanted, policy).reasons().iter().map(|reason| reason.code).collect()
    };
    assert_eq!(codes(&Config::default().policy()), [Code::DatabaseNearlyFull; 3]);
    assert_eq!(codes(&policy_of_hand_over(&Config::default())), []);
}

#[test]
fn a_member_serves_again_when_it_says_so_itself() {
    let lacking = |cluster: Cluster| {
        let policy = cluster.policy.clone();
        lacks(&seen(cluster), id(2), &policy)
    };
    assert_eq!(lacking(fragmented()), None);
    // What somebody else lacks is not its business, nor what a defragmentation has nothing to do with.
    assert_eq!(lacking(fragmented().member_dead(1)), None);
    let alarm = Alarm { member: id(2), kind: AlarmKind::NoSpace };
    assert_eq!(lacking(fragmented().on_member(2, |view| view.alarms = Fact::Known(vec![alarm]))), None);
    assert_eq!(lacking(fragmented().on_member(2, |view| view.node = unknown())), None);
    for (what, cluster) in [
        ("it is silent", fragmented().member_dead(2)),
        ("it answered once", fragmented().on_member(2, |view| view.second = unknown())),
        ("no read goes through it", fragmented().on_member(2, |view| view.linearizable_read = unknown())),
        ("it lags", fragmented().on_samples(2, |sample| sample.raft_index -= 2_000)),
        ("it knows no leader", fragmented().on_samples(2, |sample| sample.leader = None)),
        ("nobody knows the members", fragmented().with(|cluster| cluster.seen.etcd.membership = unknown())),
        ("it is gone", fragmented().on_list(|list| list.retain(|member| member.id != id(2)))),
    ] {
        assert!(lacking(cluster).is_some(), "{what}");
    }
}

#[test]
fn the_deadline_grows_with_the_database_and_room_with_what_is_in_use() {
    let config = Defrag::default();
    for (size, seconds) in [(0, 60), (1, 120), (1 << 30, 120), ((1 << 30) + 1, 180), (8 << 30, 540)] {
        assert_eq!(deadline(size, &config).as_secs(), seconds, "{size}");
    }
    let database = Database { size: 8 << 30, in_use: 80 * MIB };
    assert_eq!(database.room(), (80 + 10 + 128) * MIB);
    assert_eq!(short_of_room(218 * MIB, database), None);
    assert!(short_of_room(218 * MIB - 1, database).is_some());
    assert_eq!((database.gain(), database.fragmented()), (8 * 1024 * MIB - 80 * MIB, 99));
    assert_eq!(Database { size: 0, in_use: 0 }.fragmented(), 0);
}

#[test]
fn an_operation_is_found_again_by_its_name() {
    assert_eq!(operation(id(2)), "defrag-a2");
    assert_eq!(command_of("defrag-a2").as_deref(), Some("quorate etcd defrag"));
    assert_eq!((command_of("upgrade-v1.36.3"), command_of("defrag-")), (None, None));
    assert_eq!(on_node(&healthy(3).seen.etcd, &name(2)), Some(id(2)));
    assert_eq!(on_node(&healthy(3).seen.etcd, &"w1".into()), None);
}

#[test]
fn a_plan_is_read_back_and_told() {
    let plan = Plan::of(&seen(database(fragmented(), 1, 30, 20)), &Config::default());
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(serde_json::from_value::<Plan>(json.clone()).unwrap(), plan);
    assert_eq!((&json["kind"], &json["members"][0]["turn"]), (&"EtcdDefragPlan".into(), &1.into()));
    assert_eq!(json["members"][0]["gain"], 270 * MIB);
    let text = plan.text();
    for part in ["less than 100 MiB are not worth it", "90 % lie free", "270 MiB", "is looked at on each node"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(Plan::of(&seen(healthy(3)), &Config::default()).text().ends_with("nothing is worth it"));
}
