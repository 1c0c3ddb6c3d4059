//! Reboot, upgrade and defragmentation of one member of so many.

use super::*;

#[test]
fn a_whole_control_plane() {
    check([
        ("1 voter", healthy(1), reboot(1), "refused Q030 Q031 Q040"),
        ("2 voters", healthy(2), reboot(1), "refused Q030"),
        ("3 voters", healthy(3), reboot(1), "permitted 0"),
        ("4 voters", healthy(4), reboot(1), "permitted 0"),
        ("5 voters", healthy(5), reboot(1), "permitted 1"),
        ("6 voters", healthy(6), reboot(1), "permitted 1"),
        ("7 voters", healthy(7), reboot(7), "permitted 2"),
        ("3 voters", healthy(3), upgrade(2), "permitted 0"),
        ("3 voters, the leader's node", healthy(3), upgrade(3), "permitted 0"),
        ("3 voters, no such node", healthy(3), reboot(9), "refused Q051"),
        ("1 voter", healthy(1), worker(), "permitted 0"),
        ("3 voters", healthy(3), worker(), "permitted 1"),
        ("3 voters", healthy(3), Disruption::AddLearner, "permitted 1"),
        ("1 voter", healthy(1), Disruption::AddLearner, "permitted 0"),
        ("3 voters", healthy(3), move_leader(1), "permitted 1"),
        ("1 voter", healthy(1), move_leader(1), "refused Q031"),
        ("3 voters", healthy(3), defragment(1), "permitted 0"),
        ("3 voters, the leader", healthy(3), defragment(3), "held Q023"),
        ("1 voter", healthy(1), defragment(1), "refused Q023 Q030 Q031 Q040"),
        ("3 voters, no such member", healthy(3), defragment(9), "refused Q036"),
        ("3 voters", healthy(3), Disruption::Restore, "refused Q038"),
    ]);
}

#[test]
fn h01_the_target_is_not_counted() {
    check([
        ("3 voters, k2 without power", healthy(3).power_cut(2), reboot(1), "refused Q004 Q030 Q041"),
        ("3 voters, k2's etcd dead", healthy(3).member_dead(2), reboot(1), "refused Q004 Q030"),
        ("3 voters, k2's etcd dead", healthy(3).member_dead(2), reboot(2), "held Q004"),
        ("4 voters, k2's etcd dead", healthy(4).member_dead(2), reboot(1), "refused Q004 Q030"),
        ("5 voters, k2's etcd dead", healthy(5).member_dead(2), reboot(1), "held Q004"),
        ("5 voters, k2 and k3 dead", healthy(5).member_dead(2).member_dead(3), reboot(1), "refused Q004 Q030"),
        (
            "3 voters, k2 NotReady",
            healthy(3).on_node("k2", |node| node.ready = Fact::Known(false)),
            reboot(1),
            "refused Q030 Q052",
        ),
    ]);
    let verdict = healthy(3).power_cut(2).judge(&reboot(1));
    let quorum = verdict.reasons().iter().find(|reason| reason.code == Code::QuorumWouldBeLost).unwrap();
    assert_eq!(
        quorum.detail,
        "1 of 3 voters would remain healthy, 2 are needed; \
         k2 does not count (Q004-member-unanswered, Q041-apiserver-unanswered)"
    );
}

#[test]
fn h03_a_foreign_cordon_is_a_disruption_in_flight() {
    let cordoned = |n: u64, who: &str| {
        healthy(n).on_node(who, |node| {
            node.cordon = Cordon::Foreign;
            node.ready = Fact::Known(true);
        })
    };
    check([
        ("k2 Ready,SchedulingDisabled", cordoned(3, "k2"), reboot(1), "refused Q030 Q054"),
        ("the same of five", cordoned(5, "k2"), reboot(1), "held Q054"),
        ("the target's own cordon is kept, not obeyed", cordoned(3, "k1"), reboot(1), "permitted 0"),
        (
            "nothing is taken down: k1 is not counted",
            cordoned(2, "k1").taken("k1"),
            Disruption::AddLearner,
            "refused Q030",
        ),
        ("a worker's cordon holds nobody", cordoned(3, "w1"), reboot(1), "permitted 0"),
        ("nor another worker", cordoned(3, "w1"), worker(), "permitted 1"),
        ("for a worker, the voter of k2 is not counted", cordoned(3, "k2"), worker(), "permitted 0"),
        ("lifted: its voter counts", cordoned(3, "k2").lifting(&[Code::ForeignCordon]), reboot(1), "permitted 0"),
        ("a member is not removed meanwhile", cordoned(4, "k2").member_dead(1), remove(1), "held Q054"),
        (
            "nor when the node has no member",
            healthy(3).member_dead(2).with(|c| {
                if let Fact::Known(nodes) = &mut c.seen.nodes {
                    nodes.push(NodeView { cordon: Cordon::Foreign, ..fixture::control_plane_node(4) });
                }
            }),
            remove(2),
            "held Q054",
        ),
        (
            "nor when it has a member and no label",
            cordoned(5, "k1").on_node("k1", |node| node.control_plane = false).member_dead(2),
            remove(2),
            "held Q054",
        ),
    ]);
}

#[test]
fn h05_node_ready_says_nothing_of_etcd() {
    let three = || healthy(3);
    let nobody_goes_on = || (1..=3).fold(three(), |cluster, n| cluster.on_member(n, still));
    // k2 was level with them before.
    let went_on = |by: u64| {
        [1, 3].into_iter().fold(nobody_goes_on(), |cluster, n| {
            cluster.on_second(n, |sample| {
                sample.raft_index += by;
                sample.applied_index += by;
            })
        })
    };
    check([
        ("lagging", three().on_samples(2, |s| s.raft_index -= 5_000), reboot(1), "refused Q010 Q030"),
        ("slow to apply", three().on_second(2, |s| s.applied_index -= 1_001), reboot(1), "refused Q011 Q030"),
        ("at the bound", three().on_second(2, |s| s.applied_index -= 1_000), reboot(1), "permitted 0"),
        ("no leader", three().on_samples(2, |s| s.leader = None), reboot(1), "refused Q006 Q030"),
        ("no leader at first", three().on_member(2, first_without_leader), reboot(1), "refused Q006 Q030"),
        ("another leader", three().on_samples(2, |s| s.leader = Some(id(1))), reboot(1), "refused Q007 Q030"),
        ("an election between samples", three().on_second(2, |s| s.term += 1), reboot(1), "refused Q009 Q030"),
        ("another term", three().on_samples(2, |s| s.term += 1), reboot(1), "refused Q009 Q030"),
        ("says it is a learner", three().on_samples(2, |s| s.is_learner = true), reboot(1), "refused Q021 Q030"),
        (
            "no linearizable read",
            three().on_member(2, |view| view.linearizable_read = unknown()),
            reboot(1),
            "refused Q014 Q030",
        ),
        ("alarms unknown", three().on_member(2, |view| view.alarms = unknown()), reboot(1), "refused Q016 Q030"),
        ("an old member list", three().on_member(2, old_list), reboot(1), "refused Q002 Q030"),
        (
            "no member list of its own",
            three().on_member(2, |v| v.member_list = unknown()),
            reboot(1),
            "refused Q004 Q030",
        ),
        ("one sample only", three().on_member(2, |v| v.second = unknown()), reboot(1), "refused Q004 Q030"),
        ("leader that nobody lists", leaders(three(), 9), reboot(1), "refused Q008 Q030"),
        ("k2 stands still", three().on_second(2, |s| back(s, 11)).on_member(2, still), reboot(1), "refused Q013 Q030"),
        ("k2 lacks the last entries only", three().on_second(2, |s| back(s, 10)), reboot(1), "permitted 0"),
        ("k2 lacks some, and nobody goes on", nobody_goes_on().on_samples(2, |s| back(s, 5)), reboot(1), "permitted 0"),
        ("k2 stood still while the others made 100 entries", went_on(100), reboot(1), "permitted 0"),
        ("101 entries", went_on(101), reboot(1), "refused Q013 Q030"),
        (
            "certificate for 6 days",
            three().on_member(2, |v| v.certificate_expires = days(6)),
            reboot(1),
            "refused Q030 Q058",
        ),
        ("certificate for 7 days", three().on_member(2, |v| v.certificate_expires = days(7)), reboot(1), "permitted 0"),
        (
            "certificate unreadable",
            three().on_member(2, |v| v.certificate_expires = unknown()),
            reboot(1),
            "refused Q030 Q059",
        ),
        ("on an unknown node", three().on_member(2, |v| v.node = unknown()), reboot(1), "refused Q019 Q022 Q030"),
        (
            "on a node that is gone",
            three().on_member(2, |v| v.node = Fact::Known("gone".into())),
            reboot(1),
            "refused Q019 Q022 Q030 Q041",
        ),
        (
            "was not asked",
            three().with(|c| drop(c.seen.etcd.members.remove(1))),
            reboot(1),
            "refused Q004 Q019 Q022 Q030",
        ),
    ]);
}

#[test]
fn foreign_clusters_and_strangers() {
    let foreign = |n: u64, who: u64| healthy(n).on_samples(who, |s| s.cluster_id = ClusterId(0xbad));
    check([
        ("k2 is in another cluster", foreign(3, 2), reboot(1), "refused Q003 Q030"),
        ("so it is of five", foreign(5, 2), reboot(1), "refused Q003"),
        ("the target is", foreign(3, 1), reboot(1), "refused Q003"),
        (
            "all three differ",
            foreign(3, 2).on_samples(3, |s| s.cluster_id = ClusterId(0xdad)),
            reboot(1),
            "refused Q003 Q030",
        ),
        (
            "k3 answers at k2's address",
            healthy(3).on_samples(2, |s| s.member_id = id(3)),
            reboot(1),
            "refused Q005 Q030",
        ),
        (
            "a member that is not in the list",
            healthy(3).with(|c| c.seen.etcd.members[1].id = id(8)),
            reboot(1),
            "refused Q004 Q005 Q019 Q022 Q030",
        ),
        (
            "two answers for one member",
            healthy(3).with(|c| c.seen.etcd.members.push(c.seen.etcd.members[1].clone())),
            reboot(1),
            "refused Q005 Q030",
        ),
    ]);
}

#[test]
fn two_members_on_one_node() {
    let doubled = |n: u64| healthy(n).on_member(2, |view| view.node = Fact::Known("k1".into()));
    check([
        ("3 voters, two on k1", doubled(3), reboot(1), "refused Q020 Q022 Q030"),
        ("5 voters, two on k1: enough would remain", doubled(5), reboot(1), "refused Q020 Q022"),
        ("5 voters, another node", doubled(5), reboot(3), "refused Q020 Q022"),
        ("removing one of the two", doubled(5).lifting(&[Code::ToleranceWouldFall]), remove(2), "permitted 1"),
    ]);
}

#[test]
fn static_pods() {
    let without = |component: Component| {
        healthy(3).on_node("k2", |node| {
            if let Fact::Known(pods) = &mut node.static_pods {
                pods.retain(|pod| pod.component != component);
            }
        })
    };
    let not_ready = |component: Component| {
        healthy(3).on_node("k2", |node| {
            if let Fact::Known(pods) = &mut node.static_pods {
                pods.iter_mut().filter(|pod| pod.component == component).for_each(|pod| pod.ready = false);
            }
        })
    };
    for component in Component::ALL {
        check([
            (component.name(), without(component), reboot(1), "refused Q030 Q056"),
            (component.name(), not_ready(component), reboot(1), "refused Q030 Q056"),
        ]);
    }
}

#[test]
fn apiservers() {
    let silent = |n: u64, who: u64| healthy(n).on_apiserver(who, |view| view.ready = unknown());
    let unready = |n: u64, who: u64| healthy(n).on_apiserver(who, |view| view.ready = Fact::Known(false));
    check([
        ("another is silent", silent(3, 2), reboot(1), "held Q041"),
        ("another is not ready", unready(3, 2), reboot(1), "held Q042"),
        ("lifted: the third will do", unready(3, 2).lifting(&[Code::ApiserverNotReady]), reboot(1), "permitted 0"),
        ("silence is not lifted", silent(3, 2).lifting(&[Code::ApiserverUnanswered]), reboot(1), "held Q041"),
        (
            "both others are not ready",
            unready(3, 2).on_apiserver(3, |view| view.ready = Fact::Known(false)).lifting(&[Code::ApiserverNotReady]),
            reboot(1),
            "refused Q040",
        ),
        ("the target's own is a reason too", unready(3, 1), reboot(1), "held Q042"),
        ("not when what has begun is finished", unready(3, 1).adopted("k1"), upgrade(1), "permitted 0"),
        ("nobody asked k2's", healthy(3).with(|c| drop(c.seen.apiservers.remove(1))), reboot(1), "refused Q030 Q041"),
        (
            "its certificate",
            healthy(3).on_apiserver(2, |v| v.certificate_expires = days(1)),
            reboot(1),
            "refused Q030 Q058",
        ),
        (
            "certificates of all, lifted: the upgrade renews them",
            (1..=3)
                .fold(healthy(3), |c, n| c.on_apiserver(n, |v| v.certificate_expires = days(1)))
                .lifting(&[Code::CertificateExpiring]),
            upgrade(1),
            "permitted 0",
        ),
    ]);
}

#[test]
fn a_node_without_a_member() {
    let extra = || {
        healthy(3).with(|c| {
            if let Fact::Known(nodes) = &mut c.seen.nodes {
                nodes.push(fixture::control_plane_node(4));
            }
            c.seen.apiservers.push(fixture::apiserver(4));
        })
    };
    check([
        ("k4 has none", extra(), reboot(1), "refused Q022"),
        ("k4 itself", extra(), reboot(4), "refused Q022"),
        ("k4 itself, lifted", extra().lifting(&[Code::NodeWithoutMember]), reboot(4), "permitted 1"),
        ("three members of four nodes, single voter", healthy(1), reboot(1), "refused Q030 Q031 Q040"),
    ]);
    assert_eq!(name(4).0, "k4");
}

#[test]
fn nodes_under_pressure() {
    let short = |n: u64, who: &str, of: &[&str]| {
        healthy(n).on_node(who, |node| node.pressures = of.iter().map(|&condition| condition.into()).collect())
    };
    let disk = |n: u64, who: &str| short(n, who, &["DiskPressure"]);
    check([
        ("k2, of disk: its voter counts", disk(3, "k2"), reboot(1), "held Q060"),
        ("of memory", short(3, "k2", &["MemoryPressure"]), reboot(1), "held Q060"),
        ("of process ids", short(3, "k2", &["PIDPressure"]), reboot(1), "held Q060"),
        ("the target itself", disk(3, "k1"), upgrade(1), "held Q060"),
        (
            "lifted: perhaps the reboot is the cure",
            disk(3, "k1").lifting(&[Code::NodeUnderPressure]),
            reboot(1),
            "permitted 0",
        ),
        ("what has begun is finished", disk(3, "k2").adopted("k1"), upgrade(1), "permitted 0"),
        ("a worker", disk(3, "w1"), reboot(1), "permitted 0"),
        ("for a worker", disk(3, "k2"), worker(), "permitted 1"),
        ("a dead member is removed all the same", disk(3, "k1").member_dead(2), remove(2), "permitted 0"),
        ("a condition of somebody else's", short(3, "k2", &["KernelDeadlock"]), reboot(1), "permitted 0"),
    ]);
    let verdict = short(3, "k2", &["PIDPressure", "KernelDeadlock", "DiskPressure", "PIDPressure"]).judge(&reboot(1));
    let details: Vec<&str> = verdict.reasons().iter().map(|reason| reason.detail.as_str()).collect();
    assert_eq!(details, ["k2: DiskPressure, PIDPressure"]);
}
