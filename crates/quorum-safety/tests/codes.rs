//! Every reason of the catalogue is given by at least one case, constructed here. Which of them real components give as well, the
//! catalogue says and names the test.

use quorum_safety::fixture::{Cluster, control_plane_node, healthy, id, reboot, slow, stranger, unknown, upgrade};
use quorum_safety::*;
use std::path::Path;
use std::{fs, io};

/// One case that gives this reason. Exhaustive: a new code does not build without one.
fn case(code: Code) -> (Cluster, Disruption) {
    let three = || healthy(3);
    match code {
        Code::MembershipUnknown => (three().with(|c| c.seen.etcd.membership = unknown()), reboot(1)),
        Code::MembershipDisagrees => (three().on_member(2, |v| v.member_list = Fact::Known(Vec::new())), reboot(1)),
        Code::ClusterIdDiffers => (three().on_samples(2, |s| s.cluster_id = ClusterId(9)), reboot(1)),
        Code::MemberUnanswered => (three().member_dead(2), reboot(1)),
        Code::MemberIdUnexpected => (three().on_samples(2, |s| s.member_id = id(3)), reboot(1)),
        Code::NoLeader => (three().on_samples(2, |s| s.leader = None), reboot(1)),
        Code::LeadersDisagree => (three().on_samples(2, |s| s.leader = Some(id(2))), reboot(1)),
        Code::LeaderNotAVoter => (three().on_samples(2, |s| s.leader = Some(id(9))), reboot(1)),
        Code::TermUnsettled => (three().on_second(2, |s| s.term += 1), reboot(1)),
        Code::MemberLagging => (three().on_samples(2, |s| s.raft_index -= 2_000), reboot(1)),
        Code::MemberApplyLagging => (three().on_samples(2, |s| s.applied_index -= 2_000), reboot(1)),
        Code::LearnerLagging => (three().learner().on_samples(4, |s| s.raft_index -= 200), Disruption::Promote(id(4))),
        Code::MemberStalled => (three().on_second(2, |s| s.raft_index -= 20), reboot(1)),
        Code::ReadUnanswered => (three().on_member(2, |v| v.linearizable_read = unknown()), reboot(1)),
        Code::AlarmActive => {
            let alarm = Alarm { member: id(2), kind: AlarmKind::NoSpace };
            (three().on_member(3, |v| v.alarms = Fact::Known(vec![alarm])), reboot(1))
        }
        Code::AlarmsUnknown => (three().on_member(2, |v| v.alarms = unknown()), reboot(1)),
        Code::MemberNotStarted => {
            (three().on_list(|list| list.iter_mut().take(1).for_each(|member| member.name.clear())), reboot(2))
        }
        Code::LearnerPresent => (three().learner(), reboot(1)),
        Code::MemberNodeUnknown => (three().on_member(2, |v| v.node = unknown()), reboot(1)),
        Code::TwoMembersOnANode => (three().on_member(2, |v| v.node = Fact::Known("k1".into())), reboot(1)),
        Code::RoleDisagrees => (three().on_samples(2, |s| s.is_learner = true), reboot(1)),
        Code::NodeWithoutMember => {
            let extra = |c: &mut Cluster| {
                if let Fact::Known(nodes) = &mut c.seen.nodes {
                    nodes.push(control_plane_node(4));
                }
            };
            (three().with(extra), reboot(1))
        }
        Code::TargetLeads => (three(), Disruption::Defragment(id(3))),
        Code::ReadSlow => (three().on_member(2, |v| slow(v, 1_001)), reboot(1)),
        Code::DatabaseNearlyFull => (three().on_samples(2, |s| s.db_size = 2_000_000_000), reboot(1)),
        Code::QuorumWouldBeLost => (healthy(2), reboot(1)),
        Code::SingleVoter => (healthy(1), reboot(1)),
        Code::ToleranceWouldFall => (three(), Disruption::Remove(id(1))),
        Code::RemovalOfUpMember => (three().member_dead(2), Disruption::Remove(id(1))),
        Code::LearnerNotAlive => (three().learner().member_dead(4), Disruption::Promote(id(4))),
        Code::NotALearner => (three(), Disruption::Promote(id(1))),
        Code::TargetNotAMember => (three(), Disruption::Remove(id(9))),
        Code::TransfereeUnfit => (three().member_dead(2), Disruption::MoveLeader(id(2))),
        Code::RestoreOverQuorum => (three(), Disruption::Restore),
        Code::LearnerWouldBeNeeded => (healthy(1).learner(), Disruption::Promote(id(2))),
        Code::NoOtherApiserver => (healthy(1), reboot(1)),
        Code::ApiserverUnanswered => (three().on_apiserver(2, |v| v.ready = unknown()), reboot(1)),
        Code::ApiserverNotReady => (three().on_apiserver(2, |v| v.ready = Fact::Known(false)), reboot(1)),
        Code::NodesUnknown => (three().with(|c| c.seen.nodes = unknown()), reboot(1)),
        Code::TargetNotANode => (three(), reboot(9)),
        Code::NodeNotReady => (three().on_node("k2", |n| n.ready = Fact::Known(false)), reboot(1)),
        Code::NodeReadyUnknown => (three().on_node("k2", |n| n.ready = unknown()), reboot(1)),
        Code::ForeignCordon => (three().on_node("k2", |n| n.cordon = Cordon::Foreign), reboot(1)),
        Code::OtherDisrupted => (three().on_node("k2", |n| n.cordon = Cordon::Ours("drain".into())), reboot(1)),
        Code::StaticPodNotReady => (three().on_node("k2", |n| n.static_pods = Fact::Known(Vec::new())), reboot(1)),
        Code::StaticPodsUnknown => (three().on_node("k2", |n| n.static_pods = unknown()), reboot(1)),
        Code::CertificateExpiring => {
            (three().on_member(2, |v| v.certificate_expires = Fact::Known(UnixSeconds(0))), reboot(1))
        }
        Code::CertificateUnknown => (three().on_member(2, |v| v.certificate_expires = unknown()), reboot(1)),
        Code::NodeUnderPressure => (three().on_node("k2", |n| n.pressures.push("DiskPressure".into())), reboot(1)),
        Code::LeaseHeld => (three().with(|c| c.in_flight.control_plane = Fact::Known(stranger())), reboot(1)),
        Code::LeaseUnknown => (three().with(|c| c.in_flight.control_plane = unknown()), reboot(1)),
        Code::LeaseNotMine => (three().taken("k2"), upgrade(1)),
        Code::KuredLockHeld => (three().with(|c| c.in_flight.kured = Fact::Known(Kured::Held("k2".into()))), reboot(1)),
        Code::KuredUnknown => (three().with(|c| c.in_flight.kured = unknown()), reboot(1)),
        Code::KillSwitchEngaged => {
            let engaged = Fact::Known(KillSwitch::Engaged("holiday".into()));
            (three().with(|c| c.in_flight.kill_switch = engaged), reboot(1))
        }
        Code::KillSwitchUnknown => (three().with(|c| c.in_flight.kill_switch = unknown()), reboot(1)),
        Code::SnapshotInProgress => {
            (three().with(|c| c.in_flight.snapshot = Fact::Known(stranger())), Disruption::Defragment(id(1)))
        }
        Code::SnapshotLeaseUnknown => {
            (three().with(|c| c.in_flight.snapshot = unknown()), Disruption::Defragment(id(1)))
        }
        Code::ClusterUnknown => (three().with(|c| c.seen.cluster_uid = unknown()), reboot(1)),
    }
}

#[test]
fn every_reason_is_reachable_and_has_its_class() {
    for code in Code::ALL {
        let (cluster, wanted) = case(*code);
        let verdict = cluster.judge(&wanted);
        let given = verdict.reasons().iter().find(|reason| reason.code == *code);
        assert!(given.is_some(), "{code} is not among {:?}", verdict.reasons());
        assert_eq!(given.map(|reason| reason.class), Some(code.class()), "{code}");
    }
}

#[test]
fn a_liftable_reason_is_lifted_and_no_other() {
    for code in Code::ALL {
        let (cluster, wanted) = case(*code);
        let verdict = cluster.lifting(&[*code]).judge(&wanted);
        let given = verdict.reasons().iter().any(|reason| reason.code == *code);
        assert_eq!(given, !code.liftable(), "{code}: {:?}", verdict.reasons());
    }
}

#[test]
fn every_test_that_the_catalogue_names_exists_and_its_file_names_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = Vec::new();
    for folder in ["tests", "crates/lab/tests"] {
        read(&root.join(folder), &mut sources).unwrap();
    }
    for code in Code::ALL {
        match code.seen() {
            Seen::Constructed(why) => assert!(why.len() > 10, "{code}: {why}"),
            Seen::Real(name) => {
                let file = sources.iter().find(|source| source.contains(&format!("fn {name}()")));
                let file = file.unwrap_or_else(|| panic!("{code}: there is no test {name}"));
                let named = file.contains(&format!("Code::{code:?}")) || file.contains(&format!("\"{code}"));
                assert!(named, "{code}: the file of {name} does not name it");
            }
        }
    }
}

fn read(folder: &Path, into: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
