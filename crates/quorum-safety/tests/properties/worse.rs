//! One fact made worse: known to unknown, ready to not ready, whole to sick, free to held.

use crate::generate::Question;
use proptest::prelude::*;
use quorum_safety::fixture::{self, Cluster, id, name, stranger, unknown};
use quorum_safety::*;

/// What can get worse. Numbers count members and nodes from 1; those that are not there change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Worse {
    MemberDead(u64),
    PowerCut(u64),
    FirstUnknown(u64),
    SecondUnknown(u64),
    ListUnknown(u64),
    ListDiffers(u64),
    ReadUnknown(u64),
    SlowOnce(u64),
    Slow(u64),
    SecondReadUnknown(u64),
    Fills(u64),
    Full(u64),
    QuotaUnknown(u64),
    AlarmsUnknown(u64),
    CertificateUnknown(u64),
    CertificateSoon(u64),
    NodeOfMemberUnknown(u64),
    NotAsked(u64),
    Lag(u64, u64),
    ApplyLag(u64, u64),
    Stalled(u64),
    StandsStill(u64),
    FirstOfAnotherCluster(u64),
    FirstOfAnotherLeader(u64),
    NoLeader(u64),
    OtherLeader(u64),
    OtherTerm(u64),
    TermMoves(u64),
    OtherCluster(u64),
    OtherMember(u64),
    SaysOtherwise(u64),
    Alarm(u64, AlarmKind),
    NeverStarted(u64),
    LearnerAppears,
    SharesNode(u64),
    NotReady(u64),
    ReadyUnknown(u64),
    ForeignCordon(u64),
    OurCordon(u64),
    Pressure(u64),
    PodsUnknown(u64),
    PodNotReady(u64, Component),
    PodMissing(u64, Component),
    ApiserverNotReady(u64),
    ApiserverUnknown(u64),
    ApiserverNotAsked(u64),
    ApiserverCertificateUnknown(u64),
    ApiserverCertificateSoon(u64),
    LeaseHeld,
    LeaseUnknown,
    WorkersHeld,
    WorkersUnknown,
    SnapshotHeld,
    SnapshotUnknown,
    KuredHeld,
    KuredUnknown,
    KillSwitchEngaged,
    KillSwitchUnknown,
    MembershipUnknown,
    NodesUnknown,
    ClusterUnknown,
}

#[expect(clippy::indexing_slicing, reason = "the index is generated below the length of the array beside it")]
pub(crate) fn worse() -> impl Strategy<Value = Worse> {
    let n = 1..=7_u64;
    let component = prop::sample::select(Component::ALL.to_vec());
    let entries = prop_oneof![Just(101_u64), Just(999), Just(1_001), Just(5_000), Just(50_000)];
    let kind = prop_oneof![Just(AlarmKind::NoSpace), Just(AlarmKind::Corrupt), Just(AlarmKind::Other(9))];
    let of_member = (0..28_usize, n.clone()).prop_map(|(which, n)| {
        [
            Worse::MemberDead,
            Worse::PowerCut,
            Worse::FirstUnknown,
            Worse::SecondUnknown,
            Worse::ListUnknown,
            Worse::ListDiffers,
            Worse::ReadUnknown,
            Worse::AlarmsUnknown,
            Worse::CertificateUnknown,
            Worse::CertificateSoon,
            Worse::NodeOfMemberUnknown,
            Worse::NotAsked,
            Worse::Stalled,
            Worse::NoLeader,
            Worse::OtherLeader,
            Worse::OtherTerm,
            Worse::OtherCluster,
            Worse::OtherMember,
            Worse::SaysOtherwise,
            Worse::StandsStill,
            Worse::FirstOfAnotherCluster,
            Worse::FirstOfAnotherLeader,
            Worse::SlowOnce,
            Worse::Slow,
            Worse::SecondReadUnknown,
            Worse::Fills,
            Worse::Full,
            Worse::QuotaUnknown,
        ][which](n)
    });
    let of_node = (0..15_usize, n.clone()).prop_map(|(which, n)| {
        [
            Worse::NotReady,
            Worse::ReadyUnknown,
            Worse::ForeignCordon,
            Worse::OurCordon,
            Worse::Pressure,
            Worse::PodsUnknown,
            Worse::ApiserverNotReady,
            Worse::ApiserverUnknown,
            Worse::ApiserverNotAsked,
            Worse::ApiserverCertificateUnknown,
            Worse::ApiserverCertificateSoon,
            Worse::TermMoves,
            Worse::NeverStarted,
            Worse::SharesNode,
            Worse::MemberDead,
        ][which](n)
    });
    let elsewhere = prop::sample::select(vec![
        Worse::LeaseHeld,
        Worse::LeaseUnknown,
        Worse::WorkersHeld,
        Worse::WorkersUnknown,
        Worse::SnapshotHeld,
        Worse::SnapshotUnknown,
        Worse::KuredHeld,
        Worse::KuredUnknown,
        Worse::KillSwitchEngaged,
        Worse::KillSwitchUnknown,
        Worse::MembershipUnknown,
        Worse::NodesUnknown,
        Worse::ClusterUnknown,
        Worse::LearnerAppears,
    ]);
    prop_oneof![
        6 => of_member,
        5 => of_node,
        3 => elsewhere,
        1 => (n.clone(), entries.clone()).prop_map(|(n, by)| Worse::Lag(n, by)),
        1 => (n.clone(), entries).prop_map(|(n, by)| Worse::ApplyLag(n, by)),
        1 => (n.clone(), kind).prop_map(|(n, kind)| Worse::Alarm(n, kind)),
        1 => (n.clone(), component.clone()).prop_map(|(n, c)| Worse::PodNotReady(n, c)),
        1 => (n, component).prop_map(|(n, c)| Worse::PodMissing(n, c)),
    ]
}

/// Whether this change makes what is asked more dangerous. It does not for a restore, which is for what is broken, nor for
/// the member that a removal takes away, whose illness is the reason for it.
pub(crate) fn is_worse_for(worse: &Worse, question: &Question) -> bool {
    match question.wanted {
        Disruption::Restore => false,
        Disruption::Remove(removed) | Disruption::Replace(removed) => {
            let about = worse.about().map(id);
            about != Some(removed) && !matches!(worse, Worse::SharesNode(_) | Worse::LearnerAppears)
        }
        Disruption::Promote(_) => !matches!(worse, Worse::LearnerAppears),
        _ => true,
    }
}

impl Worse {
    fn about(&self) -> Option<u64> {
        match self {
            Self::MemberDead(n)
            | Self::PowerCut(n)
            | Self::FirstUnknown(n)
            | Self::SecondUnknown(n)
            | Self::ListUnknown(n)
            | Self::ListDiffers(n)
            | Self::ReadUnknown(n)
            | Self::SlowOnce(n)
            | Self::Slow(n)
            | Self::SecondReadUnknown(n)
            | Self::Fills(n)
            | Self::Full(n)
            | Self::QuotaUnknown(n)
            | Self::AlarmsUnknown(n)
            | Self::CertificateUnknown(n)
            | Self::CertificateSoon(n)
            | Self::NodeOfMemberUnknown(n)
            | Self::NotAsked(n)
            | Self::Lag(n, _)
            | Self::ApplyLag(n, _)
            | Self::Stalled(n)
            | Self::StandsStill(n)
            | Self::FirstOfAnotherCluster(n)
            | Self::FirstOfAnotherLeader(n)
            | Self::NoLeader(n)
            | Self::OtherLeader(n)
            | Self::OtherTerm(n)
            | Self::TermMoves(n)
            | Self::OtherCluster(n)
            | Self::OtherMember(n)
            | Self::SaysOtherwise(n)
            | Self::Alarm(n, _)
            | Self::NeverStarted(n)
            | Self::SharesNode(n) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn apply(&self, cluster: &mut Cluster) {
        let role = |n| cluster.list.iter().find(|member| member.id == id(n)).map(|member| member.role);
        let listed_role = self.about().and_then(role);
        match self.clone() {
            Self::MemberDead(n) => view(cluster, n, |view| {
                view.first = unknown();
                view.second = unknown();
                view.member_list = unknown();
                view.linearizable_read = unknown();
                view.first_read = unknown();
                view.second_read = unknown();
                view.alarms = unknown();
            }),
            Self::PowerCut(n) => {
                Self::MemberDead(n).apply(cluster);
                Self::ApiserverUnknown(n).apply(cluster);
            }
            Self::FirstUnknown(n) => view(cluster, n, |view| view.first = unknown()),
            Self::SecondUnknown(n) => view(cluster, n, |view| view.second = unknown()),
            Self::ListUnknown(n) => view(cluster, n, |view| view.member_list = unknown()),
            Self::ListDiffers(n) => view(cluster, n, |view| {
                if let Fact::Known(list) = &mut view.member_list {
                    list.push(fixture::member(40, Role::Voter));
                }
            }),
            Self::ReadUnknown(n) => view(cluster, n, |view| {
                view.linearizable_read = unknown();
                view.first_read = unknown();
            }),
            Self::SlowOnce(n) => view(cluster, n, |view| later(&mut view.first_read, 2_500)),
            Self::Slow(n) => view(cluster, n, |view| {
                later(&mut view.first_read, 2_500);
                later(&mut view.second_read, 1_500);
            }),
            Self::SecondReadUnknown(n) => view(cluster, n, |view| view.second_read = unknown()),
            Self::Fills(n) => samples(cluster, n, |sample| sample.db_size = sample.db_size.max(1_200_000_000)),
            Self::Full(n) => samples(cluster, n, |sample| sample.db_size = sample.db_size.max(2_000_000_000)),
            // What is assumed then is never more.
            Self::QuotaUnknown(n) => samples(cluster, n, |sample| sample.db_quota = unknown()),
            Self::AlarmsUnknown(n) => view(cluster, n, |view| view.alarms = unknown()),
            Self::CertificateUnknown(n) => view(cluster, n, |view| unreadable(&mut view.certificate_expires)),
            Self::CertificateSoon(n) => view(cluster, n, |view| soon(&mut view.certificate_expires)),
            Self::NodeOfMemberUnknown(n) => view(cluster, n, |view| view.node = unknown()),
            Self::NotAsked(n) => cluster.seen.etcd.members.retain(|view| view.id != id(n)),
            Self::Lag(n, by) => samples(cluster, n, |sample| {
                sample.raft_index = sample.raft_index.saturating_sub(by);
                sample.applied_index = sample.applied_index.saturating_sub(by);
            }),
            Self::ApplyLag(n, by) => {
                samples(cluster, n, |sample| sample.applied_index = sample.applied_index.saturating_sub(by));
            }
            Self::Stalled(n) => view(cluster, n, |view| {
                if let Fact::Known(first) = &mut view.first {
                    first.raft_index = first.raft_index.saturating_sub(50);
                    first.applied_index = first.applied_index.min(first.raft_index);
                    if view.second.known().is_some() {
                        view.second = Fact::Known(first.clone());
                    }
                }
            }),
            // It has all that the others had before, and nothing since.
            Self::StandsStill(n) => view(cluster, n, |view| {
                if let (Fact::Known(first), Fact::Known(second)) = (&view.first, &mut view.second) {
                    // As far from having applied it as before.
                    let since = second.raft_index.saturating_sub(first.raft_index);
                    second.raft_index -= since;
                    second.applied_index = second.applied_index.saturating_sub(since);
                }
            }),
            Self::FirstOfAnotherCluster(n) => view(cluster, n, |view| {
                if let Fact::Known(first) = &mut view.first {
                    first.cluster_id = ClusterId(0xbad0 + n);
                }
            }),
            Self::FirstOfAnotherLeader(n) => view(cluster, n, |view| {
                if let Fact::Known(first) = &mut view.first
                    && first.leader.is_some()
                {
                    first.leader = Some(id(1 + n % 2));
                }
            }),
            Self::NoLeader(n) => samples(cluster, n, |sample| sample.leader = None),
            Self::OtherLeader(n) => samples(cluster, n, |sample| {
                if sample.leader.is_some() {
                    sample.leader = Some(id(50 + n));
                }
            }),
            Self::OtherTerm(n) => samples(cluster, n, |sample| sample.term = 100 + n),
            Self::TermMoves(n) => view(cluster, n, |view| {
                if let Fact::Known(second) = &mut view.second {
                    second.term = 200 + n;
                }
            }),
            Self::OtherCluster(n) => samples(cluster, n, |sample| sample.cluster_id = ClusterId(0xbad0 + n)),
            Self::OtherMember(n) => samples(cluster, n, |sample| sample.member_id = id(60 + n)),
            Self::SaysOtherwise(n) => samples(cluster, n, |sample| {
                let learner = listed_role == Some(Role::Learner);
                sample.is_learner = !learner;
            }),
            Self::Alarm(n, kind) => {
                for view in &mut cluster.seen.etcd.members {
                    if let Fact::Known(alarms) = &mut view.alarms {
                        alarms.push(Alarm { member: id(n), kind: kind.clone() });
                    }
                }
            }
            Self::NeverStarted(n) => list(cluster, |members| {
                for member in members.iter_mut().filter(|member| member.id == id(n)) {
                    member.name.clear();
                    member.client_urls.clear();
                }
            }),
            Self::LearnerAppears => {
                if cluster.list.iter().all(|member| member.id != id(30)) {
                    list(cluster, |members| members.push(fixture::member(30, Role::Learner)));
                }
            }
            Self::SharesNode(n) if n > 1 => view(cluster, n, |view| view.node = Fact::Known(name(1))),
            Self::SharesNode(_) => {}
            Self::NotReady(n) => node(cluster, n, |node| {
                if node.ready.known().is_some() {
                    node.ready = Fact::Known(false);
                }
            }),
            Self::ReadyUnknown(n) => node(cluster, n, |node| node.ready = unknown()),
            Self::ForeignCordon(n) => node(cluster, n, |node| {
                if node.cordon == Cordon::None {
                    node.cordon = Cordon::Foreign;
                }
            }),
            Self::OurCordon(n) => node(cluster, n, |node| {
                if node.cordon == Cordon::None {
                    node.cordon = Cordon::Ours("another operation".into());
                }
            }),
            Self::Pressure(n) => node(cluster, n, |node| node.pressures.push("MemoryPressure".to_owned())),
            Self::PodsUnknown(n) => node(cluster, n, |node| node.static_pods = unknown()),
            Self::PodNotReady(n, component) => node(cluster, n, |node| {
                if let Fact::Known(pods) = &mut node.static_pods {
                    pods.iter_mut().filter(|pod| pod.component == component).for_each(|pod| pod.ready = false);
                }
            }),
            Self::PodMissing(n, component) => node(cluster, n, |node| {
                if let Fact::Known(pods) = &mut node.static_pods {
                    pods.retain(|pod| pod.component != component);
                }
            }),
            Self::ApiserverNotReady(n) => apiserver(cluster, n, |view| {
                if view.ready.known().is_some() {
                    view.ready = Fact::Known(false);
                }
            }),
            Self::ApiserverUnknown(n) => apiserver(cluster, n, |view| view.ready = unknown()),
            Self::ApiserverNotAsked(n) => cluster.seen.apiservers.retain(|view| view.node != name(n)),
            Self::ApiserverCertificateUnknown(n) => {
                apiserver(cluster, n, |view| unreadable(&mut view.certificate_expires));
            }
            Self::ApiserverCertificateSoon(n) => apiserver(cluster, n, |view| soon(&mut view.certificate_expires)),
            Self::LeaseHeld => cluster.in_flight.control_plane = Fact::Known(stranger()),
            Self::LeaseUnknown => cluster.in_flight.control_plane = unknown(),
            // Where there are two slots, to know that one is held is better than to know nothing.
            Self::WorkersHeld => {
                if cluster.in_flight.workers.known().is_some() {
                    cluster.in_flight.workers = Fact::Known(vec![stranger()]);
                }
            }
            Self::WorkersUnknown => cluster.in_flight.workers = unknown(),
            Self::SnapshotHeld => cluster.in_flight.snapshot = Fact::Known(stranger()),
            Self::SnapshotUnknown => cluster.in_flight.snapshot = unknown(),
            Self::KuredHeld => cluster.in_flight.kured = Fact::Known(Kured::Held("k2".into())),
            Self::KuredUnknown => cluster.in_flight.kured = unknown(),
            Self::KillSwitchEngaged => {
                cluster.in_flight.kill_switch = Fact::Known(KillSwitch::Engaged(String::new()));
            }
            Self::KillSwitchUnknown => cluster.in_flight.kill_switch = unknown(),
            Self::MembershipUnknown => cluster.seen.etcd.membership = unknown(),
            Self::NodesUnknown => cluster.seen.nodes = unknown(),
            Self::ClusterUnknown => cluster.seen.cluster_uid = unknown(),
        }
    }
}

fn view(cluster: &mut Cluster, n: u64, change: impl Fn(&mut MemberView)) {
    cluster.seen.etcd.members.iter_mut().filter(|view| view.id == id(n)).for_each(change);
}

fn samples(cluster: &mut Cluster, n: u64, change: impl Fn(&mut StatusSample)) {
    view(cluster, n, |view| {
        for sample in [&mut view.first, &mut view.second] {
            if let Fact::Known(sample) = sample {
                change(sample);
            }
        }
    });
}

fn node(cluster: &mut Cluster, n: u64, change: impl Fn(&mut NodeView)) {
    if let Fact::Known(nodes) = &mut cluster.seen.nodes {
        nodes.iter_mut().filter(|node| node.name == name(n)).for_each(change);
    }
}

fn apiserver(cluster: &mut Cluster, n: u64, change: impl Fn(&mut ApiserverView)) {
    cluster.seen.apiservers.iter_mut().filter(|view| view.node == name(n)).for_each(change);
}

/// Only a list that could be read, and members that told theirs, can show the change.
fn list(cluster: &mut Cluster, change: impl Fn(&mut Vec<Member>)) {
    let before = cluster.list.clone();
    change(&mut cluster.list);
    for view in &mut cluster.seen.etcd.members {
        if view.member_list == Fact::Known(before.clone()) {
            view.member_list = Fact::Known(cluster.list.clone());
        }
    }
    if cluster.seen.etcd.membership.known().is_some() {
        cluster.seen.etcd.membership = Fact::from(Membership::new(cluster.list.clone()));
    }
}

/// A read that was not answered is not made worse by an answer that is late.
fn later(read: &mut Fact<u64>, milliseconds: u64) {
    if let Fact::Known(took) = read {
        *took = milliseconds.max(*took);
    }
}

fn soon(expires: &mut Fact<UnixSeconds>) {
    if expires.known().is_some() {
        *expires = Fact::Known(UnixSeconds(fixture::NOW.0 + 3600));
    }
}

/// A certificate known to be about to expire is not made worse by not being read.
fn unreadable(expires: &mut Fact<UnixSeconds>) {
    if *expires == Fact::Known(fixture::in_a_year()) {
        *expires = unknown();
    }
}
