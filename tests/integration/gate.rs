//! The gate against real etcd members of each version that it meets: processes are killed, frozen, joined as learners. The nodes
//! and apiservers around them are written (no kubelet runs here); tests/integration/machines.rs has the real ones.

mod reasons;
mod strain;

use lab::etcd::{Cluster, Etcd, EtcdVersion, Spec};
use quorate::etcd::members::plan::Change;
use quorate::etcd::members::request;
use quorate::observe::etcd::{ClientFiles, Pace, ask, client_url};
use quorum_safety::{Answer, Code, Disruption, EtcdView, Fact, Mine, NodeName, Record, fixture};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn run<T>(future: impl Future<Output = T>) -> T {
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn three(version: EtcdVersion) -> Cluster {
    let cluster = Etcd::start(Spec::new(version, 3)).unwrap();
    cluster.wait_healthy(PATIENCE).unwrap();
    cluster
}

/// Nodes called as their members, by address.
fn nodes(cluster: &Cluster) -> BTreeMap<String, NodeName> {
    cluster.members().iter().map(|m| (m.address().to_string(), NodeName(m.name().to_owned()))).collect()
}

/// What quorate sees of these members, each on its node.
fn look(cluster: &Cluster) -> EtcdView {
    look_on(cluster, nodes(cluster))
}

fn look_on(cluster: &Cluster, nodes: BTreeMap<String, NodeName>) -> EtcdView {
    let seeds: Vec<String> = cluster.members().iter().map(|member| client_url(&member.address().to_string())).collect();
    let pace = Pace { answer: Duration::from_secs(3), between_samples: Duration::from_secs(1) };
    run(ask(&ClientFiles::in_folder(cluster.pki_dir()), &seeds, pace)).placed(&Fact::Known(nodes))
}

/// The verdict on taking a node down, in a cluster that is whole but for its etcd.
fn gate(cluster: &Cluster, node: &str) -> Record {
    let mut whole = fixture::healthy(3);
    whole.seen.etcd = look(cluster);
    let wanted = Disruption::Upgrade(node.into());
    let in_flight = quorum_safety::InFlight { mine: Mine::Nothing, ..whole.in_flight };
    Record::judged(whole.seen, in_flight, wanted, whole.policy).1
}

/// The gate's first verdict of that answer; for a cluster that has just been broken or mended. Until an election is over the
/// member list cannot be read, which is Held; what must never come meanwhile is the opposite of what is waited for.
fn in_time(cluster: &Cluster, node: &str, answer: Answer, never: Answer) -> Record {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let record = gate(cluster, node);
        if record.verdict.answer == answer {
            return record;
        }
        if never == Answer::Permitted {
            assert_ne!(record.verdict.answer, never, "{:?}", record.verdict);
        }
        assert!(std::time::Instant::now() < end, "{:?}", record.verdict);
    }
}

fn permitted_in_time(cluster: &Cluster, node: &str) {
    let record = in_time(cluster, node, Answer::Permitted, Answer::Refused);
    assert_eq!(record.verdict.margin, Some(0));
    // A permit needs every expiry; these were read from real handshakes.
    assert!(record.observation.etcd.members.iter().all(|view| view.certificate_expires.known().is_some()));
}

fn refused_in_time(cluster: &Cluster, node: &str) -> Record {
    in_time(cluster, node, Answer::Refused, Answer::Permitted)
}

fn has(record: &Record, code: Code, about: &str) -> bool {
    record.verdict.reasons.iter().any(|reason| reason.code == code && reason.detail.contains(about))
}

fn refuses_the_dead_the_frozen_and_the_learner(version: EtcdVersion) {
    let mut cluster = three(version);
    let number = version.number();
    permitted_in_time(&cluster, "k2");

    // Killed: the node would still be Ready for 40 s.
    cluster.member(3).unwrap().kill().unwrap();
    let record = refused_in_time(&cluster, "k2");
    assert!(has(&record, Code::QuorumWouldBeLost, "k3"), "{number}: {:?}", record.verdict);
    assert!(has(&record, Code::MemberUnanswered, ""), "{number}: {:?}", record.verdict);
    cluster.member(3).unwrap().restart().unwrap();
    permitted_in_time(&cluster, "k2");

    // Frozen: its sockets are open, its peers count it as connected.
    cluster.member(1).unwrap().pause().unwrap();
    let record = refused_in_time(&cluster, "k2");
    assert!(has(&record, Code::QuorumWouldBeLost, "k1"), "{number}: {:?}", record.verdict);
    cluster.member(1).unwrap().resume().unwrap();
    permitted_in_time(&cluster, "k2");

    // A learner: a join is under way.
    cluster.add_learner().unwrap();
    let record = gate(&cluster, "k2");
    assert_ne!(record.verdict.answer, Answer::Permitted, "{number}: {:?}", record.verdict);
    assert!(has(&record, Code::LearnerPresent, ""), "{number}: {:?}", record.verdict);
}

#[test]
fn h05_members_of_etcd_3_5_are_asked_one_by_one() {
    refuses_the_dead_the_frozen_and_the_learner(EtcdVersion::V3_5);
}

#[test]
fn h05_members_of_etcd_3_6_are_asked_one_by_one() {
    refuses_the_dead_the_frozen_and_the_learner(EtcdVersion::V3_6);
}

#[test]
fn h05_members_of_etcd_3_7_are_asked_one_by_one() {
    refuses_the_dead_the_frozen_and_the_learner(EtcdVersion::V3_7);
}

#[test]
fn without_quorum_the_membership_is_unknown_and_everything_is_said() {
    let cluster = three(EtcdVersion::V3_6);
    cluster.member(1).unwrap().kill().unwrap();
    cluster.member(2).unwrap().kill().unwrap();
    let record = gate(&cluster, "k2");
    assert_ne!(record.verdict.answer, Answer::Permitted);
    assert!(has(&record, Code::MembershipUnknown, ""), "{:?}", record.verdict);
    // The survivor still shows the list that it has: everybody is named.
    assert_eq!(record.observation.etcd.members.len(), 3);
    assert_eq!(record.observation.etcd.members.iter().filter(|view| view.second.known().is_some()).count(), 1);
}

#[test]
fn leadership_moves_where_it_is_told() {
    let cluster = three(EtcdVersion::V3_6);
    let view = look(&cluster);
    let membership = view.membership.known().unwrap();
    let leader = view.members[0].second.known().unwrap().leader.unwrap();
    let other = membership.voters().find(|voter| voter.id != leader).unwrap().id;
    let files = ClientFiles::in_folder(cluster.pki_dir());
    let from = membership.get(leader).unwrap();
    run(request::make(&files, from, &Change::MoveLeader(other), Duration::from_secs(9))).unwrap();
    let after = look(&cluster);
    assert_eq!(after.members[0].second.known().unwrap().leader, Some(other));
}

#[test]
fn missing_certificates_are_said_and_block() {
    let empty = tempfile::tempdir().unwrap();
    let pace = Pace { answer: Duration::from_secs(1), between_samples: Duration::from_secs(1) };
    let view = run(ask(&ClientFiles::in_folder(empty.path()), &[], pace)).placed(&Fact::Known(BTreeMap::new()));
    assert!(matches!(&view.membership, Fact::Unknown(why) if why.contains("ca.crt")), "{view:?}");
}
