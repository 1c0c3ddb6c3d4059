use super::*;
use quorum_safety::fixture::{Cluster, healthy, id, unknown};

const ROOM: Room = Room { fill: 90, otherwise: 1_000 };
/// Full, and nearly all of it free.
const FULL: (u64, u64) = (1_000, 100);
const CURED: (u64, u64) = (120, 100);

/// k3 leads. Each database in its order; NOSPACE of these members, as k1 tells it.
fn cluster(databases: [(u64, u64); 3], alarms: &[(u64, AlarmKind)]) -> Cluster {
    let told: Vec<Alarm> = alarms.iter().map(|(n, kind)| Alarm { member: id(*n), kind: kind.clone() }).collect();
    (1..)
        .zip(databases)
        .fold(healthy(3), |cluster, (n, (size, in_use))| {
            cluster.on_samples(n, move |sample| {
                (sample.db_size, sample.db_size_in_use) = (size, in_use);
                sample.db_quota = Fact::Known(Quota::Bytes(1_000));
            })
        })
        .on_member(1, |view| view.alarms = Fact::Known(told))
}

fn full(databases: [(u64, u64); 3]) -> Cluster {
    cluster(databases, &[(2, AlarmKind::NoSpace)])
}

fn of(cluster: &Cluster, own: u64) -> String {
    match next(&cluster.seen.etcd, id(own), ROOM) {
        Next::Nothing => "nothing".to_owned(),
        Next::Not(reasons) => {
            let codes: BTreeSet<&str> = reasons.iter().map(|reason| &reason.code.as_str()[..4]).collect();
            format!("not {}", codes.into_iter().collect::<Vec<_>>().join(" "))
        }
        Next::Own(own) if own.leads => "own, leads".to_owned(),
        Next::Own(_) => "own".to_owned(),
        Next::First(first) => format!("first {first}"),
        Next::Disarm(whom) => format!("disarm {whom:?}"),
    }
}

#[test]
fn followers_go_first_the_leader_last_and_the_alarm_only_when_all_have_room() {
    let disarm = format!("disarm {:?}", [id(2)]);
    for (what, cluster, answers) in [
        ("all are full", full([FULL, FULL, FULL]), ["own", "first a1", "first a1"]),
        ("the first has room", full([CURED, FULL, FULL]), ["first a2", "own", "first a2"]),
        ("the leader is left", full([CURED, CURED, FULL]), ["first a3", "first a3", "own, leads"]),
        ("all have room", full([CURED, CURED, CURED]), [&disarm, &disarm, &disarm]),
        ("just room", full([CURED, CURED, (900, 1)]), [&disarm, &disarm, &disarm]),
        ("a byte more", full([CURED, CURED, (901, 1)]), ["first a3", "first a3", "own, leads"]),
        ("no alarm", cluster([FULL, FULL, FULL], &[]), ["nothing"; 3]),
        ("CORRUPT beside it", cluster([FULL; 3], &[(2, AlarmKind::NoSpace), (3, AlarmKind::Corrupt)]), ["not Q015"; 3]),
        ("all have room, and CORRUPT", cluster([CURED; 3], &[(3, AlarmKind::Corrupt)]), ["not Q015"; 3]),
        ("another alarm", cluster([CURED; 3], &[(3, AlarmKind::Other(7))]), ["not Q015"; 3]),
        // The rule says of the one whose turn it is that another one does not answer.
        ("one is down", full([FULL, FULL, FULL]).member_dead(2), ["own", "not Q004", "not Q004"]),
        ("one is down, the others have room", full([CURED, FULL, CURED]).member_dead(2), ["not Q004"; 3]),
        (
            "somebody does not tell its alarms",
            cluster([FULL; 3], &[]).on_member(3, |view| view.alarms = unknown()),
            ["not Q016"; 3],
        ),
        (
            "nobody knows who the members are",
            full([FULL; 3]).with(|c| c.seen.etcd.membership = unknown()),
            ["not Q001"; 3],
        ),
    ] {
        assert_eq!([1, 2, 3].map(|own| of(&cluster, own)), answers, "{what}");
    }
}

#[test]
fn a_quota_that_is_not_told_is_the_one_of_the_manifest_else_of_the_configuration() {
    let policy = Policy { assumed_quota: 2_000, ..Policy::default() };
    for (manifest, otherwise) in
        [(None, 2_000), (Some("1000"), 1_000), (Some("0"), 2_000), (Some("-1"), 2_000), (Some("2G"), 2_000)]
    {
        assert_eq!(Room::of(&policy, manifest).otherwise, otherwise, "{manifest:?}");
    }
    let silent = |cluster: Cluster| cluster.on_samples(1, |sample| sample.db_quota = unknown());
    assert_eq!(of(&silent(full([(901, 1), CURED, CURED])), 1), "own");
    assert_eq!(of(&silent(full([(900, 1), CURED, CURED])), 1), format!("disarm {:?}", [id(2)]));
    let without = full([FULL, CURED, CURED]).on_samples(1, |s| s.db_quota = Fact::Known(Quota::Disabled));
    assert_eq!(of(&without, 1), format!("disarm {:?}", [id(2)]));
}

#[test]
fn what_is_in_use_and_leaves_no_room_is_told() {
    let filled = |in_use| ROOM.filled(&full([(1_000, in_use), FULL, FULL]).seen.etcd, id(1));
    assert_eq!(filled(800), None);
    assert!(filled(801).is_some_and(|text| text.contains("are in use of a quota of")));
}
