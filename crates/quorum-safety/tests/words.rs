//! What people read: the words of reasons, disruptions, clauses, proofs. A verdict that names the wrong node or figure is believed.

use quorum_safety::fixture::{Cluster, NOW, healthy, id, reboot, unknown};
use quorum_safety::lock::{PodRef, Proof, Step};
use quorum_safety::*;

/// The details of one code in a verdict, as they are told.
fn details(cluster: &Cluster, wanted: &Disruption, code: Code) -> Vec<String> {
    let verdict = cluster.judge(wanted);
    verdict.reasons().iter().filter(|reason| reason.code == code).map(|reason| reason.detail.clone()).collect()
}

#[test]
fn a_reason_is_told_with_its_code() {
    assert_eq!(Reason::new(Code::LeaseHeld, "by k1").to_string(), "Q070-lease-held: by k1");
}

#[test]
fn how_long_a_certificate_lasts() {
    for (left, told) in [
        (6 * 24 * 3600, "etcd of k2: 6 days are left"),
        (7 * 24 * 3600 - 1, "etcd of k2: 6 days are left"),
        (1, "etcd of k2: 0 days are left"),
        (0, "etcd of k2: it has expired"),
        (-1, "etcd of k2: it has expired"),
    ] {
        let expires = Fact::Known(UnixSeconds(NOW.0 + left));
        let cluster = healthy(3).on_member(2, |view| view.certificate_expires = expires);
        assert_eq!(details(&cluster, &reboot(1), Code::CertificateExpiring), [told]);
    }
}

#[test]
fn how_strained_etcd_is() {
    let slow = healthy(3).on_member(2, |view| {
        view.first_read = Fact::Known(1_800);
        view.second_read = Fact::Known(2_900);
    });
    let told = ["k2 on k2: 1800 and 2900 ms, at most 1000 ms are well"];
    assert_eq!(details(&slow, &reboot(1), Code::ReadSlow), told);
    let nowhere = slow.on_member(2, |view| view.node = unknown());
    assert_eq!(details(&nowhere, &reboot(1), Code::ReadSlow), ["k2: 1800 and 2900 ms, at most 1000 ms are well"]);
    let unread = healthy(3).on_member(2, |view| view.second_read = unknown());
    assert_eq!(details(&unread, &reboot(1), Code::ReadUnanswered), ["k2, one of two: no answer within 3 s"]);
    let full = |quota: Fact<Quota>| {
        healthy(3).on_samples(2, move |sample| {
            sample.db_size = 1_950 << 20;
            sample.db_size_in_use = 700 << 20;
            sample.db_quota = quota.clone();
        })
    };
    let told = "k2 on k2: 1950 MiB, 700 MiB of them in use, are more than 90 % of its quota of 2048 MiB";
    let known = full(Fact::Known(Quota::Bytes(2 << 30)));
    assert_eq!(details(&known, &reboot(1), Code::DatabaseNearlyFull), [told]);
    let unknown = full(Fact::Unknown("etcd 3.5.23 does not tell its quota".to_owned()));
    assert_eq!(
        details(&unknown, &reboot(1), Code::DatabaseNearlyFull),
        [format!("{told} (`rule.assumedQuota`: etcd 3.5.23 does not tell its quota)")]
    );
}

#[test]
fn why_the_kill_switch_is_engaged() {
    for (reason, told) in [("holiday", "holiday"), ("", "no reason was given")] {
        let engaged = Fact::Known(KillSwitch::Engaged(reason.to_owned()));
        let cluster = healthy(3).with(|cluster| cluster.in_flight.kill_switch = engaged);
        assert_eq!(details(&cluster, &reboot(1), Code::KillSwitchEngaged), [told]);
    }
}

#[test]
fn who_has_cordoned() {
    let by = |manager: &str, at: Option<i64>| {
        Some(Writer { manager: manager.to_owned(), at: at.map(|ago| UnixSeconds(NOW.0 - ago)) })
    };
    for (writer, told) in [
        (by("kubectl-cordon", Some(119)), "k2 is cordoned by kubectl-cordon, which wrote to it last 1 min before"),
        (by("kubectl-cordon", Some(120)), "k2 is cordoned by kubectl-cordon, which wrote to it last 2 min before"),
        (by("kured", None), "k2 is cordoned by kured"),
        (None, "k2 is cordoned, and the API does not tell by whom"),
    ] {
        let cluster = healthy(3).on_node("k2", |node| {
            node.cordon = Cordon::Foreign;
            node.cordoned_by = writer;
        });
        // Said of another node, and where its voter is what is missing.
        for wanted in [reboot(1), reboot(2)] {
            let details = details(&cluster, &wanted, Code::ForeignCordon);
            assert!(details.iter().all(|detail| detail == told), "{details:?}");
        }
        assert_eq!(details(&cluster, &reboot(1), Code::ForeignCordon), [told]);
    }
}

#[test]
fn who_joins() {
    assert_eq!(details(&healthy(3).learner(), &reboot(1), Code::LearnerPresent), ["k4"]);
    let nameless = healthy(3).on_list(|list| list[1].name.clear());
    assert_eq!(details(&nameless, &reboot(1), Code::MemberNotStarted), ["member a2 has no name yet"]);
}

#[test]
fn why_a_learner_is_not_alive() {
    let promote = Disruption::Promote(id(4));
    let told = |cluster: Cluster| details(&cluster, &promote, Code::LearnerNotAlive);
    let learner = || healthy(3).learner();
    let no_answer = ["k4 did not answer twice: no answer within 3 s"];
    assert_eq!(told(learner().on_member(4, |view| view.first = unknown())), no_answer);
    assert_eq!(told(learner().on_member(4, |view| view.second = unknown())), no_answer);
    let not_asked = learner().with(|cluster| cluster.seen.etcd.members.truncate(3));
    assert_eq!(told(not_asked), ["k4 did not answer twice: it was not asked"]);
}

/// Of four voters that remain when the fifth is removed, two name another leader than the other two: none of them is believed.
#[test]
fn where_no_majority_says_the_same_nobody_is_believed() {
    let split = (1..=2).fold(healthy(5), |cluster, n| cluster.on_samples(n, |sample| sample.leader = Some(id(1))));
    let removal = Disruption::Remove(id(4));
    let told = details(&split, &removal, Code::LeadersDisagree);
    assert_eq!(told.len(), 4, "{told:?}");
    let told = details(&split, &removal, Code::QuorumWouldBeLost);
    assert!(told.concat().starts_with("0 of 5 voters would remain healthy, 3 are needed"), "{told:?}");
}

#[test]
fn disruptions() {
    let told: Vec<String> = [
        Disruption::Reboot("k1".into()),
        Disruption::Upgrade("k1".into()),
        Disruption::MoveLeader(id(1)),
        Disruption::Defragment(id(1)),
        Disruption::AddLearner,
        Disruption::Promote(id(1)),
        Disruption::Remove(id(1)),
        Disruption::Replace(id(1)),
        Disruption::Restore,
    ]
    .iter()
    .map(Disruption::to_string)
    .collect();
    let expected = [
        "reboot of k1",
        "upgrade of k1",
        "moving leadership to member a1",
        "defragmentation of member a1",
        "adding a learner",
        "promotion of learner a1",
        "removal of member a1",
        "replacement of member a1",
        "restore from a snapshot",
    ];
    assert_eq!(told, expected);
}

#[test]
fn proofs_steps_and_clauses() {
    let proofs = [
        (Proof::PodEnded, "its pod has ended on a Ready node"),
        (Proof::PodDeleted, "its pod is deleted on a Ready node and its deadline has passed"),
        (Proof::NodeRebooted { boot_id: "b".into() }, "its node has rebooted (boot id b)"),
        (Proof::Released { because: "fire".into() }, "it was released by hand: fire"),
        (Proof::SilentWithoutUnit, "its deadline has passed and the target runs no unit of it"),
    ];
    for (proof, told) in proofs {
        assert_eq!(proof.to_string(), told);
    }
    assert_eq!(Step::touching("drain").to_string(), "drain");
    let pod = PodRef { namespace: "shop".into(), name: "till-0".into(), uid: "1".into() };
    assert_eq!(pod.to_string(), "shop/till-0");
    let clause = Clause { kind: ClauseKind::Node, detail: "node k1: it is not Ready".into() };
    assert_eq!(clause.to_string(), "node k1: it is not Ready");
}

/// What `quorate status` says of etcd: an answer alone makes nobody healthy.
#[test]
fn how_many_voters_are_healthy() {
    let count = |cluster: Cluster| healthy_voters(&cluster.seen, &cluster.in_flight, &cluster.policy);
    assert_eq!(count(healthy(3)), 3);
    assert_eq!(count(healthy(5).member_dead(2)), 4);
    assert_eq!(count(healthy(3).on_member(2, |view| view.linearizable_read = unknown())), 2);
    assert_eq!(count(healthy(3).learner()), 3);
    // No majority says the same any more.
    assert_eq!(count(healthy(3).member_dead(2).member_dead(3)), 0);
}

/// Whom to take a snapshot from: each voter with what is wrong with it, learners not at all, and its node not looked at.
#[test]
fn each_voter_is_told_with_what_is_wrong_with_it() {
    let told = |cluster: &Cluster| {
        let voters = quorum_safety::voters(&cluster.seen, &cluster.in_flight, &cluster.policy);
        voters.into_iter().map(|(id, faults)| (id, faults.iter().map(|fault| fault.code).collect())).collect()
    };
    let all: Vec<(MemberId, Vec<Code>)> = told(&healthy(3).learner().on_node("k1", |node| node.ready = unknown()));
    assert_eq!(all, [(id(1), vec![]), (id(2), vec![]), (id(3), vec![])]);
    let all = told(&healthy(3).on_member(2, |view| view.linearizable_read = unknown()));
    assert_eq!(all, [(id(1), vec![]), (id(2), vec![Code::ReadUnanswered]), (id(3), vec![])]);
}
