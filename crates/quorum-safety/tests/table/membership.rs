//! Joins, promotions, removals, leadership, alarms, restores.

use super::*;

#[test]
fn joins_hold_everything_but_repair() {
    let unstarted = |n: u64| {
        healthy(n).on_list(|list| {
            list[1].name.clear();
            list[1].client_urls.clear();
        })
    };
    check([
        ("a learner", healthy(3).learner(), reboot(1), "held Q018 Q041 Q052"),
        ("a learner on a whole node", whole_learner(3), reboot(1), "held Q018"),
        ("a learner", healthy(3).learner(), worker(), "held Q018"),
        ("a second learner", whole_learner(3), Disruption::AddLearner, "held Q018"),
        ("the learner goes", healthy(3).learner(), remove(4), "permitted 1"),
        ("a dead learner goes", healthy(3).learner().power_cut(4), remove(4), "permitted 1"),
        ("another one goes", healthy(3).learner().member_dead(2), remove(2), "held Q018"),
        ("a member that never started", unstarted(3), reboot(1), "held Q017"),
        ("a member that never started goes", unstarted(3).member_dead(2), remove(2), "permitted 0"),
    ]);
}

/// A control plane node without a member, as it waits for one: its apiserver has no etcd.
fn waits(cluster: Cluster, n: u64) -> Cluster {
    cluster.with(|cluster| {
        if let Fact::Known(nodes) = &mut cluster.seen.nodes {
            nodes.push(NodeView { ready: Fact::Known(false), ..fixture::control_plane_node(n) });
        }
        cluster.seen.apiservers.push(ApiserverView { ready: unknown(), ..fixture::apiserver(n) });
    })
}

#[test]
fn adding_a_learner() {
    let add = || Disruption::AddLearner;
    let unstarted = || healthy(3).on_list(|list| list[1].name.clear());
    check([
        ("3 voters", healthy(3), add(), "permitted 1"),
        ("1 voter", healthy(1), add(), "permitted 0"),
        ("a node waits for it, and the Lease does not say so", waits(healthy(3), 4), add(), "refused Q022 Q041 Q052"),
        ("the Lease names the node that waits", waits(healthy(3), 4).taken("k4"), add(), "permitted 1"),
        ("it names one of two", waits(waits(healthy(3), 4), 5).taken("k4"), add(), "refused Q022 Q041 Q052"),
        ("2 voters, the third was removed", waits(healthy(2), 3).taken("k3"), add(), "permitted 0"),
        ("one voter is down", waits(healthy(3).member_dead(2), 4).taken("k4"), add(), "held Q004"),
        ("going on, one voter is down", waits(healthy(3).member_dead(2), 4).adopted("k4"), add(), "permitted 0"),
        ("2 voters, one down, going on", waits(healthy(2).member_dead(1), 3).adopted("k3"), add(), "refused Q004 Q030"),
        (
            "the node that the Lease names has a member",
            healthy(3).on_node("k2", |node| node.ready = Fact::Known(false)).taken("k2"),
            add(),
            "held Q052",
        ),
        ("a member that never started", unstarted(), add(), "held Q017"),
        (
            "a snapshot is taken",
            healthy(3).with(|c| c.in_flight.snapshot = Fact::Known(stranger())),
            add(),
            "held Q077",
        ),
        ("an upgrade of the same node", waits(healthy(3), 4).taken("k4"), upgrade(1), "refused Q022 Q041 Q052 Q072"),
    ]);
}

/// As `--here` sees it while no apiserver serves.
fn without_api(cluster: Cluster) -> Cluster {
    cluster.with(|cluster| {
        cluster.policy.without_api = true;
        cluster.seen.nodes = unknown();
        cluster.seen.cluster_uid = unknown();
        for view in &mut cluster.seen.etcd.members {
            view.node = unknown();
        }
        for server in &mut cluster.seen.apiservers {
            server.ready = unknown();
            server.certificate_expires = unknown();
        }
        cluster.in_flight = InFlight {
            control_plane: unknown(),
            workers: unknown(),
            snapshot: unknown(),
            kured: unknown(),
            kill_switch: unknown(),
            mine: Mine::Nothing,
        };
    })
}

#[test]
fn members_are_changed_without_the_api_only_where_that_was_said_and_is_so() {
    let away = |cluster: Cluster| without_api(cluster);
    let dead = || healthy(3).member_dead(2);
    let unsaid = |cluster: Cluster| away(cluster).with(|c| c.policy.without_api = false);
    let begun = |cluster: Cluster| away(cluster).with(|c| c.in_flight.mine = Mine::Adopted("here".into()));
    let full = |cluster: Cluster| {
        cluster.on_member(3, |v| v.alarms = Fact::Known(vec![Alarm { member: id(3), kind: AlarmKind::NoSpace }]))
    };
    let corrupt = |v: &mut MemberView| {
        v.alarms = Fact::Known(vec![Alarm { member: id(2), kind: AlarmKind::Corrupt }]);
    };
    let nobody_reboots = "refused Q015 Q019 Q030 Q040 Q041 Q050 Q071 Q074 Q076 Q079";
    let nobody_knows = "refused Q019 Q030 Q040 Q041 Q050 Q071 Q074 Q076 Q078 Q079";
    let nobody_asked = "refused Q019 Q030 Q040 Q050 Q071 Q074 Q076 Q078 Q079";
    check([
        ("not said", unsaid(dead()), remove(2), nobody_knows),
        ("said", away(dead()), remove(2), "permitted 0"),
        ("replaced", away(dead()), replace(2), "permitted 0"),
        ("one that is up, while another is not", away(dead()), remove(1), "refused Q004 Q030 Q033"),
        ("a learner", away(healthy(3).learner()), promote(4), "permitted 0"),
        ("a dead learner", away(dead().learner().member_dead(4)), promote(4), "refused Q004 Q030 Q034"),
        ("added", away(healthy(3)), Disruption::AddLearner, "permitted 1"),
        ("added, one is down", away(dead()), Disruption::AddLearner, "held Q004"),
        ("going on, one is down", begun(dead()), Disruption::AddLearner, "permitted 0"),
        ("leadership", away(healthy(3)), move_leader(2), "permitted 1"),
        ("leadership to a dead one", away(dead()), move_leader(2), "held Q004 Q037"),
        ("without quorum", away(dead()).with(|c| c.seen.etcd.membership = unknown()), remove(2), "held Q001"),
        (
            "the nodes are read",
            away(dead()).with(|c| c.seen.nodes = healthy(3).seen.nodes),
            remove(2),
            "refused Q019 Q022 Q030 Q040 Q041 Q071 Q074 Q076 Q078 Q079",
        ),
        (
            "an apiserver is ready",
            away(dead()).on_apiserver(3, |view| view.ready = Fact::Known(true)),
            remove(2),
            "refused Q019 Q030 Q041 Q050 Q059 Q071 Q074 Q076 Q078 Q079",
        ),
        ("nobody was asked", away(dead()).with(|c| c.seen.apiservers.clear()), remove(2), nobody_asked),
        (
            "what is known counts",
            away(dead()).with(|c| c.in_flight.control_plane = Fact::Known(stranger())),
            remove(2),
            "held Q070",
        ),
        ("nothing else", away(healthy(3)), defragment(1), "refused Q019 Q030 Q040 Q041 Q050 Q071 Q074 Q076 Q078 Q079"),
        ("NOSPACE is cured", away(full(healthy(3))), defragment(1), "permitted 0"),
        ("NOSPACE, the leader hands over", away(full(healthy(3))), move_leader(1), "permitted 1"),
        ("NOSPACE, the leader does not go without", away(full(healthy(3))), defragment(3), "held Q023"),
        ("NOSPACE, one is down", away(full(dead())), defragment(1), "refused Q004 Q030"),
        ("NOSPACE, a dead one", away(full(dead())), defragment(2), "held Q004"),
        ("NOSPACE, not said", unsaid(full(healthy(3))), defragment(1), nobody_knows),
        (
            "NOSPACE, what is known counts",
            away(full(healthy(3))).with(|c| c.in_flight.control_plane = Fact::Known(stranger())),
            defragment(1),
            "held Q070",
        ),
        ("NOSPACE, and CORRUPT", away(full(healthy(3)).on_member(2, corrupt)), defragment(1), "refused Q015 Q030"),
        ("NOSPACE, a reboot", away(full(healthy(3))), reboot(1), nobody_reboots),
    ]);
}

#[test]
fn promotion() {
    let three = || healthy(3).learner();
    check([
        ("3 voters, a learner that has caught up", three(), promote(4), "permitted 0"),
        ("2 voters", healthy(2).learner(), promote(3), "permitted 0"),
        ("1 voter: the learner would be needed", healthy(1).learner(), promote(2), "refused Q039"),
        ("1 voter, lifted", healthy(1).learner().lifting(&[Code::LearnerWouldBeNeeded]), promote(2), "permitted 0"),
        ("3 voters, one down", three().member_dead(2), promote(4), "refused Q039"),
        (
            "3 voters, one down, lifted",
            three().member_dead(2).lifting(&[Code::LearnerWouldBeNeeded]),
            promote(4),
            "permitted 0",
        ),
        (
            "3 voters, one down, the learner dead (etcd says yes)",
            three().member_dead(2).power_cut(4),
            promote(4),
            "refused Q004 Q030 Q034",
        ),
        ("the learner dead", three().power_cut(4), promote(4), "refused Q034"),
        ("the learner answered once", three().on_member(4, |v| v.first = unknown()), promote(4), "refused Q034"),
        ("100 entries behind", three().on_samples(4, |s| back(s, 100)), promote(4), "permitted 0"),
        ("101 entries behind", three().on_samples(4, |s| back(s, 101)), promote(4), "held Q012"),
        ("101 entries to apply", three().on_second(4, |s| s.applied_index -= 101), promote(4), "held Q012"),
        (
            "standing still, a little behind",
            three().on_second(4, |s| back(s, 20)).on_member(4, still),
            promote(4),
            "held Q013",
        ),
        (
            "standing still with the leader",
            three().on_second(4, |s| back(s, 10)).on_member(4, still),
            promote(4),
            "permitted 0",
        ),
        ("in another cluster", three().on_samples(4, |s| s.cluster_id = ClusterId(0xbad)), promote(4), "refused Q003"),
        ("without a leader", three().on_samples(4, |s| s.leader = None), promote(4), "held Q006"),
        ("in another term", three().on_samples(4, |s| s.term += 1), promote(4), "held Q009"),
        ("another one answers", three().on_samples(4, |s| s.member_id = id(9)), promote(4), "refused Q005"),
        ("it says it is a voter", three().on_samples(4, |s| s.is_learner = false), promote(4), "held Q021"),
        (
            "a learner that has never started",
            three().on_list(|list| list[3].name.clear()),
            promote(4),
            "held Q017 Q018",
        ),
        ("two answers for it", answered_twice(three(), 4), promote(4), "refused Q005"),
        (
            "1 voter, the learner has an alarm: it is not sound",
            healthy(1)
                .learner()
                .on_member(1, |v| v.alarms = Fact::Known(vec![Alarm { member: id(2), kind: AlarmKind::NoSpace }]))
                .lifting(&[Code::LearnerWouldBeNeeded, Code::AlarmActive]),
            promote(2),
            "refused Q030",
        ),
        ("a voter", healthy(3), promote(1), "refused Q035"),
        ("nobody", healthy(3), promote(9), "refused Q036"),
    ]);
}

#[test]
fn removal() {
    let tolerance = &[Code::ToleranceWouldFall];
    let dead = |n: u64, who: u64| healthy(n).member_dead(who);
    check([
        ("3 voters, the dead one", dead(3, 2), remove(2), "permitted 0"),
        ("3 voters, the dead one without power", healthy(3).power_cut(2), remove(2), "permitted 0"),
        ("3 voters, one that is up", healthy(3), remove(1), "refused Q032"),
        ("3 voters, one that is up, lifted", healthy(3).lifting(tolerance), remove(1), "permitted 0"),
        ("3 voters, one that is up while another is not", dead(3, 2), remove(1), "refused Q004 Q030 Q033"),
        ("4 voters, one that is up", healthy(4), remove(1), "permitted 1"),
        ("4 voters, the leader", healthy(4), remove(4), "held Q023"),
        ("4 voters, the leader, just dead", healthy(4).member_dead(4), remove(4), "held Q023"),
        (
            "4 voters, one that takes itself for the leader",
            healthy(4).on_samples(1, |s| s.leader = Some(id(1))),
            remove(1),
            "held Q023",
        ),
        (
            "5 voters, one that is up while another is not (etcd says yes)",
            dead(5, 2).lifting(tolerance),
            remove(1),
            "refused Q033",
        ),
        ("5 voters, two down, one of them", healthy(5).member_dead(2).member_dead(3), remove(2), "permitted 0"),
        (
            "a frozen one next to a healthy one to remove (etcd says yes)",
            healthy(3).on_member(2, |v| v.linearizable_read = unknown()),
            remove(1),
            "refused Q014 Q030 Q033",
        ),
        ("2 voters, one that is up", healthy(2), remove(1), "permitted 0"),
        ("1 voter", healthy(1), remove(1), "refused Q031 Q040"),
        ("1 voter", healthy(1), replace(1), "refused Q031 Q040"),
        ("nobody", healthy(3), remove(9), "refused Q036"),
        ("3 voters, replace the dead one", dead(3, 2), replace(2), "permitted 0"),
        ("3 voters, replace one that is up", healthy(3), replace(1), "refused Q032"),
        ("2 voters, replace one: the new one would be needed", healthy(2), replace(1), "refused Q039"),
        (
            "5 voters, two down, replace one of them",
            healthy(5).member_dead(2).member_dead(3),
            replace(2),
            "permitted 0",
        ),
        (
            "another cluster's member is replaced",
            healthy(3).on_samples(2, |s| s.cluster_id = ClusterId(0xbad)),
            replace(2),
            "permitted 0",
        ),
    ]);
}

#[test]
fn alarms_hold_everything_but_their_cure() {
    let alarm = |kind: AlarmKind, who: u64| {
        healthy(3).on_member(3, |v| v.alarms = Fact::Known(vec![Alarm { member: id(who), kind }]))
    };
    let no_space = |who| alarm(AlarmKind::NoSpace, who);
    let corrupt = |who| alarm(AlarmKind::Corrupt, who);
    check([
        ("NOSPACE on k2", no_space(2), reboot(1), "refused Q015 Q030"),
        ("NOSPACE on the target", no_space(1), reboot(1), "held Q015"),
        ("NOSPACE, a worker", no_space(2), worker(), "held Q015"),
        ("NOSPACE, cured", no_space(2), defragment(1), "permitted 0"),
        ("NOSPACE, cured", no_space(2), defragment(2), "permitted 0"),
        ("NOSPACE, leadership goes before the leader's turn", no_space(3), move_leader(1), "permitted 1"),
        ("CORRUPT, leadership", corrupt(2), move_leader(1), "held Q015"),
        ("NOSPACE, finishing", no_space(1).adopted("k1"), upgrade(1), "held Q015"),
        (
            "NOSPACE lifted: the voter stays uncounted",
            no_space(2).lifting(&[Code::AlarmActive]),
            reboot(1),
            "refused Q030",
        ),
        ("NOSPACE lifted, its own node", no_space(1).lifting(&[Code::AlarmActive]), reboot(1), "permitted 0"),
        ("NOSPACE on the learner", no_space(4).learner(), promote(4), "held Q015"),
        ("NOSPACE on k1, dead k2 removed", no_space(1).member_dead(2), remove(2), "refused Q015 Q030"),
        ("NOSPACE on dead k2, removed", no_space(2).member_dead(2), remove(2), "held Q015"),
        ("CORRUPT on k2, defragmented", corrupt(2), defragment(2), "held Q015"),
        ("CORRUPT on k2, removed", corrupt(2), remove(2), "permitted 0"),
        ("CORRUPT on k2, replaced", corrupt(2), replace(2), "permitted 0"),
        ("CORRUPT on k2, another one removed", corrupt(2), remove(1), "refused Q015 Q030 Q033"),
        ("an alarm of another kind", alarm(AlarmKind::Other(7), 2), defragment(2), "held Q015"),
    ]);
}

#[test]
fn moving_leadership() {
    check([
        ("to a learner", whole_learner(3), move_leader(4), "held Q018 Q037"),
        ("to nobody", healthy(3), move_leader(9), "refused Q036"),
        ("to one that lags", healthy(3).on_samples(2, |s| back(s, 2_000)), move_leader(2), "held Q010 Q037"),
        ("to the node that is about to go down", healthy(3).taken("k2"), move_leader(2), "held Q037"),
        ("away from it", healthy(3).taken("k3"), move_leader(2), "permitted 1"),
    ]);
}

#[test]
fn restore_never_over_a_cluster_that_may_have_quorum() {
    let lost = |leaderless: &[u64]| {
        let cluster = (1..=3).fold(healthy(3), |c, n| {
            if leaderless.contains(&n) {
                c.on_samples(n, |s| s.leader = None).on_member(n, |v| v.linearizable_read = unknown())
            } else {
                c.power_cut(n)
            }
        });
        cluster.with(|c| {
            c.seen.etcd.membership = unknown();
            c.seen.nodes = unknown();
            c.seen.cluster_uid = unknown();
            c.in_flight.control_plane = unknown();
            c.in_flight.kured = unknown();
            c.in_flight.kill_switch = unknown();
            c.in_flight.snapshot = unknown();
        })
    };
    let restore = || Disruption::Restore;
    check([
        ("two of three say they have no leader", lost(&[1, 2]), restore(), "permitted 0"),
        ("one does: the others may be a majority", lost(&[1]), restore(), "refused Q038"),
        ("nobody answers", lost(&[]), restore(), "refused Q038"),
        (
            "only one member was asked, and it knows of three",
            lost(&[1]).with(|c| c.seen.etcd.members.truncate(1)),
            restore(),
            "refused Q038",
        ),
        ("nobody answers, lifted", lost(&[]).lifting(&[Code::RestoreOverQuorum]), restore(), "permitted 0"),
        (
            "kill switch engaged",
            lost(&[1, 2]).with(|c| c.in_flight.kill_switch = Fact::Known(KillSwitch::Engaged(String::new()))),
            restore(),
            "held Q075",
        ),
        (
            "somebody else is at it",
            lost(&[1, 2]).with(|c| c.in_flight.control_plane = Fact::Known(stranger())),
            restore(),
            "held Q070",
        ),
        (
            "quorum is there, lifted, nobody knows who else",
            healthy(3).lifting(&[Code::RestoreOverQuorum]).with(|c| c.in_flight.control_plane = unknown()),
            restore(),
            "held Q071",
        ),
        (
            "only the list is missing",
            healthy(3).with(|c| c.seen.etcd.membership = unknown()),
            restore(),
            "refused Q038",
        ),
    ]);
}
