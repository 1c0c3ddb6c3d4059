//! Reasons that only other states give than members that are killed, frozen or joined: what real members say in these, and the verdict.

use super::*;
use lab::etcd::Join;
use lab::process::until;
use quorum_safety::MemberId;
use quorum_safety::fixture::Cluster as Whole;
use serde_json::json;
use std::ops::ControlFlow;

/// Everything around etcd whole, and what this etcd says.
pub(super) fn around(cluster: &Cluster) -> Whole {
    let mut whole = fixture::healthy(cluster.members().len() as u64);
    whole.seen.etcd = look(cluster);
    whole
}

pub(super) fn judged(whole: Whole, wanted: Disruption) -> Record {
    Record::judged(whole.seen, whole.in_flight, wanted, whole.policy).1
}

/// That reason, once etcd has come to say it.
fn gives(cluster: &Cluster, wanted: &Disruption, code: Code, about: &str) {
    until(&format!("{code} about {about}"), PATIENCE, || {
        let record = judged(around(cluster), wanted.clone());
        Ok(if has(&record, code, about) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(anyhow::anyhow!("{:?}", record.verdict))
        })
    })
    .unwrap();
}

fn id(cluster: &Cluster, number: usize) -> MemberId {
    MemberId(cluster.member(number).unwrap().id())
}

pub(super) fn leader(cluster: &Cluster) -> usize {
    let view = look(cluster);
    let leader = view.members.iter().find_map(|member| member.second.known()?.leader).unwrap();
    1 + cluster.members().iter().position(|member| member.id() == leader.0).unwrap()
}

/// Another running member than these.
pub(super) fn other_than(not: &[usize]) -> usize {
    (1..=3).find(|number| !not.contains(number)).unwrap()
}

#[test]
fn without_quorum_the_survivor_knows_no_leader_and_reads_nothing() {
    let cluster = three(EtcdVersion::V3_6);
    cluster.member(1).unwrap().kill().unwrap();
    cluster.member(2).unwrap().kill().unwrap();
    let wanted = Disruption::Upgrade("k2".into());
    gives(&cluster, &wanted, Code::NoLeader, "k3");
    gives(&cluster, &wanted, Code::ReadUnanswered, "k3");
}

#[test]
fn leadership_that_moves_between_the_samples_is_an_election() {
    let cluster = three(EtcdVersion::V3_6);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| gives(&cluster, &Disruption::Upgrade("k2".into()), Code::TermUnsettled, ""));
        while !seen.is_finished() {
            let from = leader(&cluster);
            let body = json!({"targetID": cluster.member(other_than(&[from])).unwrap().id().to_string()});
            // Meanwhile another may lead: the next turn asks that one.
            drop(cluster.member(from).unwrap().call("/v3/maintenance/transfer-leadership", &body));
        }
        seen.join().unwrap();
    });
}

#[test]
fn an_alarm_and_a_join_that_never_started_hold_everything() {
    let cluster = three(EtcdVersion::V3_6);
    let wanted = Disruption::Upgrade("k2".into());
    permitted_in_time(&cluster, "k2");
    // What a member raises when its database is full.
    let alarm = |action: &str| {
        let body = json!({"action": action, "memberID": id(&cluster, 3).0.to_string(), "alarm": "NOSPACE"});
        cluster.member(1).unwrap().call("/v3/maintenance/alarm", &body).unwrap();
    };
    alarm("ACTIVATE");
    gives(&cluster, &wanted, Code::AlarmActive, "NOSPACE");
    alarm("DEACTIVATE");
    permitted_in_time(&cluster, "k2");
    cluster.add_member_unstarted(Join::Voter).unwrap();
    gives(&cluster, &wanted, Code::MemberNotStarted, "no name yet");
}

#[test]
fn what_is_asked_of_a_member_depends_on_who_it_is() {
    let mut cluster = three(EtcdVersion::V3_6);
    permitted_in_time(&cluster, "k2");
    let leads = leader(&cluster);
    let follows = other_than(&[leads]);
    gives(&cluster, &Disruption::Restore, Code::RestoreOverQuorum, "");
    gives(&cluster, &Disruption::Promote(id(&cluster, follows)), Code::NotALearner, "");
    gives(&cluster, &Disruption::Remove(MemberId(7)), Code::TargetNotAMember, "");
    gives(&cluster, &Disruption::Defragment(id(&cluster, leads)), Code::TargetLeads, "");
    gives(&cluster, &Disruption::Remove(id(&cluster, follows)), Code::ToleranceWouldFall, "");

    let learner = cluster.add_learner().unwrap();
    let dead = other_than(&[leads, follows]);
    cluster.member(dead).unwrap().kill().unwrap();
    gives(&cluster, &Disruption::MoveLeader(id(&cluster, dead)), Code::TransfereeUnfit, "");
    gives(&cluster, &Disruption::Remove(id(&cluster, follows)), Code::RemovalOfUpMember, "");
    gives(&cluster, &Disruption::Promote(id(&cluster, learner)), Code::LearnerWouldBeNeeded, "");
    cluster.member(dead).unwrap().restart().unwrap();
    cluster.member(learner).unwrap().kill().unwrap();
    gives(&cluster, &Disruption::Promote(id(&cluster, learner)), Code::LearnerNotAlive, "");
}

#[test]
fn where_members_run_is_compared_with_the_nodes() {
    let cluster = three(EtcdVersion::V3_6);
    permitted_in_time(&cluster, "k2");
    let placed = |node_of_third: Option<&str>| {
        let mut nodes = nodes(&cluster);
        let third = cluster.member(3).unwrap().address().to_string();
        match node_of_third {
            Some(node) => nodes.insert(third, node.into()),
            None => nodes.remove(&third),
        };
        let mut whole = around(&cluster);
        whole.seen.etcd = look_on(&cluster, nodes);
        judged(whole, Disruption::Upgrade("k2".into()))
    };
    assert!(has(&placed(None), Code::MemberNodeUnknown, "k3"));
    let two = placed(Some("k1"));
    assert!(has(&two, Code::TwoMembersOnANode, "k1"));
    assert!(has(&two, Code::NodeWithoutMember, "k3"));
    assert_eq!(placed(Some("k3")).verdict.answer, Answer::Permitted);

    // The certificates of these members last a year.
    let mut whole = around(&cluster);
    whole.policy.certificate_margin = 400 * 24 * 3600;
    assert!(has(&judged(whole, Disruption::Upgrade("k2".into())), Code::CertificateExpiring, "k1"));
}
