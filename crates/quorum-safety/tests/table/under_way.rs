//! Who else is disrupting, what is not known, and what has begun already.

use super::*;

#[test]
fn what_is_not_known_blocks() {
    let three = || healthy(3);
    check([
        ("no member list", three().with(|c| c.seen.etcd.membership = unknown()), reboot(1), "held Q001"),
        ("no nodes", three().with(|c| c.seen.nodes = unknown()), reboot(1), "held Q050"),
        ("no cluster", three().with(|c| c.seen.cluster_uid = unknown()), reboot(1), "held Q079"),
        ("node Ready unknown", three().on_node("k2", |n| n.ready = unknown()), reboot(1), "refused Q030 Q053"),
        ("static pods unknown", three().on_node("k2", |n| n.static_pods = unknown()), reboot(1), "refused Q030 Q057"),
        ("Lease unknown", three().with(|c| c.in_flight.control_plane = unknown()), reboot(1), "held Q071"),
        (
            "Lease unknown, ours",
            three().taken("k1").with(|c| c.in_flight.control_plane = unknown()),
            reboot(1),
            "held Q071",
        ),
        ("kured unknown", three().with(|c| c.in_flight.kured = unknown()), reboot(1), "held Q074"),
        ("kill switch unknown", three().with(|c| c.in_flight.kill_switch = unknown()), reboot(1), "held Q076"),
        ("snapshot Lease unknown", three().with(|c| c.in_flight.snapshot = unknown()), defragment(1), "held Q078"),
        ("no matter for a reboot", three().with(|c| c.in_flight.snapshot = unknown()), reboot(1), "permitted 0"),
        ("worker Leases unknown", three().with(|c| c.in_flight.workers = unknown()), worker(), "held Q071"),
        (
            "no matter for a control plane node",
            three().with(|c| c.in_flight.workers = unknown()),
            reboot(1),
            "permitted 0",
        ),
        ("the target's own", three().on_node("k1", |n| n.ready = unknown()), reboot(1), "held Q053"),
        (
            "everything",
            three().with(nothing_known),
            reboot(1),
            "refused Q001 Q004 Q019 Q040 Q041 Q050 Q071 Q074 Q076 Q079",
        ),
    ]);
}

#[test]
fn locks() {
    let held = |lock: Lock| healthy(3).with(|c| c.in_flight.control_plane = Fact::Known(lock));
    let kured = |cluster: Cluster, by: &str| cluster.with(|c| c.in_flight.kured = Fact::Known(Kured::Held(by.into())));
    let engaged = |cluster: Cluster| {
        cluster.with(|c| c.in_flight.kill_switch = Fact::Known(KillSwitch::Engaged("holiday".into())))
    };
    check([
        ("somebody else holds it", held(stranger()), reboot(1), "held Q070"),
        ("ours", healthy(3).taken("k1"), reboot(1), "permitted 0"),
        ("ours for another node", healthy(3).taken("k2"), reboot(1), "refused Q072"),
        (
            "lost to somebody else",
            healthy(3).taken("k1").with(|c| c.in_flight.control_plane = Fact::Known(stranger())),
            reboot(1),
            "refused Q070 Q072",
        ),
        (
            "lost to nobody",
            healthy(3).taken("k1").with(|c| c.in_flight.control_plane = Fact::Known(Lock::Free)),
            reboot(1),
            "refused Q072",
        ),
        ("adopted", healthy(3).adopted("k1"), reboot(1), "permitted 0"),
        (
            "adopted and lost",
            healthy(3).adopted("k1").with(|c| c.in_flight.control_plane = Fact::Known(Lock::Free)),
            reboot(1),
            "refused Q072",
        ),
        ("kured reboots", kured(healthy(3), "k2"), reboot(1), "held Q073"),
        ("kured reboots, we hold the Lease", kured(healthy(3).taken("k1"), "k2"), reboot(1), "held Q073"),
        ("our block of kured", kured(healthy(3).taken("k1"), "quorate/upgrade-v1.36.3"), reboot(1), "permitted 0"),
        (
            "a block of another operation of ours",
            kured(healthy(3).taken("k1"), "quorate/defragment"),
            reboot(1),
            "held Q073",
        ),
        ("a block that only looks like ours", kured(healthy(3).taken("k1"), "quorate/"), reboot(1), "held Q073"),
        ("our block of kured without our Lease", kured(healthy(3), "quorate/upgrade-v1.36.3"), reboot(1), "held Q073"),
        ("no kured", healthy(3).with(|c| c.in_flight.kured = Fact::Known(Kured::Absent)), reboot(1), "permitted 0"),
        ("kill switch", engaged(healthy(3)), reboot(1), "held Q075"),
        ("kill switch, finishing", engaged(healthy(3).adopted("k1")), upgrade(1), "held Q075"),
        ("kill switch, a worker", engaged(healthy(3)), worker(), "held Q075"),
        (
            "a snapshot is taken",
            healthy(3).with(|c| c.in_flight.snapshot = Fact::Known(stranger())),
            defragment(1),
            "held Q077",
        ),
        (
            "a snapshot is taken",
            healthy(3).with(|c| c.in_flight.snapshot = Fact::Known(stranger())),
            reboot(1),
            "permitted 0",
        ),
        ("k2 is cordoned by an operation of ours", ours("k2", healthy(3)), reboot(1), "refused Q030 Q055"),
        ("k1 is, and it is not this one", ours("k1", healthy(3)), reboot(1), "held Q055"),
        ("k1 is, and it is this one", ours("k1", healthy(3).taken("k1")), reboot(1), "permitted 0"),
        ("the same operation on another node", ours("k2", healthy(3).taken("k1")), reboot(1), "refused Q030 Q055"),
    ]);
}

#[test]
fn what_has_begun_is_finished() {
    let half_done = |n: u64| {
        ours("k1", healthy(n).adopted("k1")).power_cut(1).on_node("k1", |node| node.ready = Fact::Known(false))
    };
    check([
        ("3 voters, k1 is down by us", half_done(3), upgrade(1), "permitted 0"),
        ("the same, not adopted", half_done(3).taken("k1"), upgrade(1), "held Q004 Q041 Q052"),
        ("another node meanwhile", half_done(3), upgrade(2), "refused Q030 Q072"),
        ("3 voters, k2 fails too", half_done(3).member_dead(2), upgrade(1), "refused Q004 Q030"),
        ("5 voters, k2 fails too: a majority stays", half_done(5).member_dead(2), upgrade(1), "permitted 0"),
        ("leadership can be moved", half_done(3), move_leader(2), "permitted 0"),
        ("not to the target", half_done(3), move_leader(1), "held Q037"),
    ]);
}

#[test]
fn workers() {
    let busy = |c: Cluster| c.with(|c| c.in_flight.workers = Fact::Known(vec![stranger()]));
    check([
        ("all slots taken", busy(healthy(3)), worker(), "held Q070"),
        ("two slots", busy(healthy(3)).with(|c| c.policy.worker_slots = 2), worker(), "permitted 1"),
        ("no slot at all", healthy(3).with(|c| c.policy.worker_slots = 0), worker(), "held Q070"),
        ("ours", healthy(3).worker_taken("w1"), worker(), "permitted 1"),
        (
            "ours, and the control plane is disrupted by somebody else",
            healthy(3).worker_taken("w1").with(|c| c.in_flight.control_plane = Fact::Known(stranger())),
            worker(),
            "held Q070",
        ),
        ("ours for another", healthy(3).worker_taken("w2"), worker(), "refused Q072"),
        ("ours, lost", busy(healthy(3).worker_taken("w1")), worker(), "refused Q070 Q072"),
        ("the control plane is disrupted", healthy(3).taken("k1"), worker(), "refused Q070 Q072"),
        ("one voter down", healthy(3).member_dead(2), worker(), "permitted 0"),
        ("two voters down", healthy(3).member_dead(2).member_dead(3), worker(), "refused Q004 Q006 Q030"),
        (
            "the worker is down itself",
            healthy(3).on_node("w1", |n| n.ready = Fact::Known(false)),
            worker(),
            "permitted 1",
        ),
        (
            "no apiserver",
            (1..=3).fold(healthy(3), |c, n| c.on_apiserver(n, |v| v.ready = unknown())),
            worker(),
            "refused Q040 Q041",
        ),
        (
            "an unknown member may run there",
            healthy(3).on_member(2, |v| v.node = unknown()),
            worker(),
            "refused Q019 Q022",
        ),
        (
            "a control plane node without the label hosts a member",
            healthy(3).on_node("k1", |n| n.control_plane = false),
            reboot(1),
            "permitted 0",
        ),
        (
            "the same with k2 down",
            healthy(3).on_node("k1", |n| n.control_plane = false).member_dead(2),
            reboot(1),
            "refused Q004 Q030",
        ),
        ("k2 was left cordoned by an operation of ours", ours("k2", healthy(3)), worker(), "held Q055"),
    ]);
}

#[test]
fn permission_ends_when_what_is_seen_changes() {
    let cluster = healthy(3).taken("k1");
    let Verdict::Permitted(permit) = cluster.judge(&upgrade(1)) else { panic!("a whole cluster is refused") };
    assert_eq!(permit.disruption(), &upgrade(1));
    let disrupting = permit.begin();
    let cordoned = ours("k1", cluster.clone());
    assert_eq!(disrupting.still_holds(&cordoned.seen, &cordoned.in_flight, &cordoned.policy), Ok(()));
    let worse = cordoned.member_dead(3);
    let reasons = disrupting.still_holds(&worse.seen, &worse.in_flight, &worse.policy).unwrap_err();
    assert_eq!(reasons.worst(), Class::Refusal);
    assert!(reasons.as_slice().iter().any(|reason| reason.code == Code::QuorumWouldBeLost));
}
