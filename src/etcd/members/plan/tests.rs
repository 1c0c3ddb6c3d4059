use super::*;
use quorum_safety::fixture::{Cluster, healthy, id, name, unknown};
use quorum_safety::{Holder, Mine};

const URL: &str = "https://10.10.0.12:2380";

fn typed(cluster: &Cluster, typed: Typed<'_>) -> Result<Order, String> {
    order(typed, &cluster.seen, Begun::of(&cluster.in_flight).as_ref())
}

fn replaced(old: u64) -> Wanted {
    Wanted::Replace { old: id(old), peer_url: URL.to_owned() }
}

fn step(cluster: &Cluster, wanted: &Wanted) -> Next {
    next(wanted, cluster.seen.etcd.membership.known().unwrap(), &cluster.seen.etcd, &cluster.policy)
}

#[test]
fn a_member_is_meant_by_its_name_or_its_id() {
    let three = healthy(3);
    for text in ["k2", "a2"] {
        let order = typed(&three, Typed::Remove(text)).unwrap();
        assert_eq!(order, Order { wanted: Wanted::Remove(id(2)), node: name(2) });
    }
    assert_eq!(typed(&three, Typed::Replace("k2", None, None)).unwrap(), Order { wanted: replaced(2), node: name(2) });
    let elsewhere = typed(&three, Typed::Replace("k1", Some("k2"), None)).unwrap();
    assert_eq!(elsewhere, Order { wanted: replaced(1), node: name(2) });
    let added = typed(&three, Typed::Add("k4", Some("https://[fd00::4]:2380"))).unwrap();
    assert_eq!(added.command(), "quorate etcd members add --node=k4 --peer-url=https://[fd00::4]:2380");
    assert_eq!(typed(&three, Typed::Add("k2", None)).unwrap().wanted, Wanted::Add { peer_url: URL.to_owned() });
}

/// The rule refuses to let lead whom the Lease names.
#[test]
fn a_move_of_leadership_is_about_the_node_that_it_leaves() {
    let order = typed(&healthy(3), Typed::MoveLeader("k2")).unwrap();
    assert_eq!(order, Order { wanted: Wanted::MoveLeader(id(2)), node: name(3) });
    let holder = Holder { identity: "i".into(), operation: order.operation(), target: name(3) };
    let moved = |to: u64| {
        let cluster = (1..=3).fold(healthy(3), |c, n| c.on_samples(n, |sample| sample.leader = Some(id(to))));
        cluster.with(|cluster| cluster.in_flight.control_plane = Fact::Known(Lock::Held(holder.clone())))
    };
    // Whoever goes on with it asks for the same Lease, wherever leadership is by now; and k3 is k3.
    assert_eq!(typed(&moved(1), Typed::MoveLeader("a2")).unwrap(), order);
    assert_eq!(typed(&moved(1), Typed::MoveLeader("k3")).unwrap().wanted, Wanted::MoveLeader(id(3)));
}

#[test]
fn what_cannot_be_meant_is_said_in_one_line() {
    let three = healthy(3);
    let twice = healthy(3).on_list(|list| list[1].name = "k1".into());
    let away = healthy(3).with(|cluster| cluster.seen.nodes = unknown());
    for (cluster, order, wanted) in [
        (&three, Typed::Remove("k9"), "no etcd member is called `k9`: there are k1 (a1), k2 (a2), k3 (a3)"),
        (&three, Typed::Remove("a9"), "no etcd member is called `a9`"),
        (&twice, Typed::Remove("k1"), "2 members are called `k1`: name one by its id, a1 or a2"),
        (&three, Typed::Add("k9", None), "no node is called `k9`: there are k1, k2, k3, w1"),
        (&away, Typed::Add("k2", None), "the address of k2 is not known (no answer within 3 s): name it by --peer-url"),
        (&three, Typed::Add("k2", Some("10.10.0.12")), "expected one such as https://10.10.0.12:2380"),
        (&three, Typed::Add("k2", Some("http://10.10.0.12:2380")), "expected one such as"),
        (&three, Typed::Replace("k2", None, Some("https://10.10.0.12:2380/x")), "expected one such as"),
    ] {
        let said = typed(cluster, order).unwrap_err();
        assert!(said.contains(wanted) && !said.contains('\n'), "{said}");
    }
}

/// The new member has the name of the old one: the same command must not replace it again.
#[test]
fn what_has_begun_is_meant_and_not_who_has_its_name_now() {
    let holder =
        |operation: &str| Lock::Held(Holder { identity: "i".into(), operation: operation.into(), target: name(2) });
    let begun = healthy(3)
        .on_list(|list| list[1].id = MemberId(0xbb))
        .with(|cluster| cluster.in_flight.control_plane = Fact::Known(holder("members-replace-a2")));
    for text in ["k2", "a2"] {
        let order = typed(&begun, Typed::Replace(text, None, None)).unwrap();
        assert_eq!(order, Order { wanted: replaced(2), node: name(2) });
        assert_eq!(order.operation(), "members-replace-a2");
    }
    // Another verb is about who is there.
    assert_eq!(typed(&begun, Typed::Remove("k2")).unwrap().wanted, Wanted::Remove(MemberId(0xbb)));
    // An upgrade is none of it.
    let upgrade = begun.with(|cluster| cluster.in_flight.control_plane = Fact::Known(holder("upgrade-v1.36.3")));
    assert_eq!(Begun::of(&upgrade.in_flight), None);
    assert_eq!(upgrade.in_flight.mine, Mine::Nothing);
}

#[test]
fn a_job_goes_on_with_a_member_that_is_gone() {
    let three = healthy(3);
    let gone = |typed| exactly(typed, None, &three.seen);
    assert_eq!(gone(Typed::Remove("ff")).unwrap().wanted, Wanted::Remove(MemberId(0xff)));
    let order = gone(Typed::Replace("ff", Some("k2"), Some(URL))).unwrap();
    assert_eq!(
        order,
        Order { wanted: Wanted::Replace { old: MemberId(0xff), peer_url: URL.to_owned() }, node: name(2) }
    );
    assert!(gone(Typed::Promote("ff")).is_err());
}

#[test]
fn the_steps_of_a_replacement_follow_from_the_list_alone() {
    let without = || healthy(3).on_list(|list| list.retain(|member| member.id != id(2)));
    let with = |change: fn(&mut Member)| {
        healthy(3).on_list(|list| {
            list[1].id = MemberId(0xbb);
            change(&mut list[1]);
        })
    };
    let there = |cluster: Cluster| cluster.on_member(2, |view| view.id = MemberId(0xbb));
    let votes = |cluster: Cluster| cluster.on_samples(2, |sample| sample.member_id = MemberId(0xbb));
    assert_eq!(step(&healthy(3), &replaced(2)), Next::Change(Change::Remove(id(2))));
    assert_eq!(step(&without(), &replaced(2)), Next::Change(Change::Add(URL.to_owned())));
    let unstarted = with(|member| (member.name, member.role) = (String::new(), Role::Learner));
    assert_eq!(step(&unstarted, &replaced(2)), Next::Wait(Waiting::Start(MemberId(0xbb))));
    let learner = with(|member| member.role = Role::Learner);
    assert_eq!(step(&learner, &replaced(2)), Next::Change(Change::Promote(MemberId(0xbb))));
    // kubeadm promotes by itself: then it is only proven.
    let voter = || there(votes(healthy(3))).on_list(|list| list[1].id = MemberId(0xbb));
    assert_eq!(step(&voter(), &replaced(2)), Next::Done);
}

#[test]
fn a_new_voter_takes_part_or_is_waited_for() {
    let promoted = Wanted::Promote(id(2));
    assert_eq!(step(&healthy(3), &promoted), Next::Done);
    for (cluster, lacks) in [
        (healthy(3).member_dead(2), "does not answer"),
        (healthy(3).on_samples(2, |sample| sample.is_learner = true), "does not say yet that it votes"),
        (healthy(3).on_samples(2, |sample| sample.leader = None), "knows no leader"),
        (healthy(3).on_samples(2, |sample| sample.raft_index -= 200), "200 entries behind"),
        (healthy(3).on_member(2, |view| view.member_list = Fact::Known(Vec::new())), "another member list"),
        (healthy(3).on_member(2, |view| view.linearizable_read = unknown()), "a read through it was not answered"),
        (healthy(3).with(|cluster| cluster.seen.etcd.members.retain(|view| view.id != id(2))), "was not asked"),
    ] {
        let Next::Wait(Waiting::TakesPart(member, said)) = step(&cluster, &promoted) else { panic!("{lacks}") };
        assert!(member == id(2) && said.contains(lacks), "{said}");
    }
}

#[test]
fn what_is_there_already_is_not_done_again() {
    assert_eq!(step(&healthy(3), &Wanted::Add { peer_url: URL.to_owned() }), Next::Done);
    assert_eq!(step(&healthy(3), &Wanted::Remove(id(9))), Next::Done);
    assert_eq!(step(&healthy(3), &Wanted::MoveLeader(id(3))), Next::Done);
    assert_eq!(step(&healthy(3), &Wanted::MoveLeader(id(2))), Next::Change(Change::MoveLeader(id(2))));
    // Two leaders are none.
    let two = healthy(3).on_samples(1, |sample| sample.leader = Some(id(1)));
    assert_eq!(leader(&two.seen.etcd), None);
}

#[test]
fn what_was_announced_and_not_done_has_not_begun() {
    let begun = |cluster: &Cluster, wanted: &Wanted| has_begun(wanted, cluster.seen.etcd.membership.known().unwrap());
    let gone = healthy(3).on_list(|list| list.retain(|member| member.id != id(2)));
    assert!(begun(&gone, &replaced(2)) && !begun(&healthy(3), &replaced(2)));
    assert!(!begun(&healthy(3), &Wanted::Add { peer_url: URL.to_owned() }));
    assert!(!begun(&healthy(3), &Wanted::Remove(id(2))));
}

#[test]
fn the_first_step_of_a_replacement_is_judged_as_all_of_it() {
    let first = Change::Remove(id(2));
    assert_eq!(first.disruption(&replaced(2)), Disruption::Replace(id(2)));
    assert_eq!(first.disruption(&Wanted::Remove(id(2))), Disruption::Remove(id(2)));
    assert_eq!(Change::Add(URL.to_owned()).disruption(&replaced(2)), Disruption::AddLearner);
}

#[test]
fn what_a_lease_holds_is_told_as_the_command_that_goes_on_with_it() {
    for (operation, command) in [
        ("members-replace-a2", Some("quorate etcd members replace a2 --node=k2")),
        ("members-remove-a2", Some("quorate etcd members remove a2")),
        ("members-move-leader-a2", Some("quorate etcd members move-leader a2")),
        ("members-add", Some("quorate etcd members add --node=k2")),
        ("upgrade-v1.36.3", None),
        ("members-else", None),
    ] {
        assert_eq!(command_of(operation, &name(2)).as_deref(), command, "{operation}");
    }
    // And the command names the same operation.
    for wanted in [replaced(2), Wanted::Add { peer_url: URL.to_owned() }, Wanted::MoveLeader(id(2))] {
        let order = Order { wanted, node: name(2) };
        let command = command_of(&order.operation(), &order.node).unwrap();
        assert!(order.command().starts_with(&command), "{command}: {}", order.command());
    }
}

/// As it was on the machines: kubeadm starts and promotes the learner while it is looked at, and the others tell their lists a moment before.
#[test]
fn a_learner_that_is_just_being_started_is_waited_for_where_one_is_replaced() {
    let of = |codes: &[Code]| codes.iter().map(|code| Reason::new(*code, "x")).collect::<Vec<Reason>>();
    let (lost, dead) = (Code::QuorumWouldBeLost, Code::LearnerNotAlive);
    let starting = of(&[lost, dead, Code::MembershipDisagrees, Code::MembershipDisagrees]);
    assert_eq!(Patience::with(&starting, &replaced(2)), Patience::Moment);
    assert_eq!(Patience::with(&of(&[dead, Code::LearnerLagging]), &replaced(2)), Patience::Learner);
    // Needed from its first moment, it is not waited for; nor is one that nobody is starting.
    assert_eq!(Patience::with(&of(&[lost, dead]), &replaced(2)), Patience::None);
    assert_eq!(Patience::with(&of(&[dead]), &Wanted::Promote(id(4))), Patience::None);
    assert_eq!(Patience::with(&of(&[Code::LearnerLagging]), &Wanted::Promote(id(4))), Patience::Learner);
    assert_eq!(Patience::with(&[], &replaced(2)), Patience::None);
}
