//! Whether a restore may begin: what the rule says of the cluster that is there, and whether the other control plane nodes are stopped. Two
//! clusters would serve otherwise, the restored one and what is left of the old one.

use super::node::Peer;
use crate::report::Outcome;
use quorum_safety::{Code, Fact, NodeName, Observation, Reason};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::net::TcpStream;

/// Where etcd listens, for clients and for peers.
pub(super) const ETCD: &[u16] = &[2379, 2380];
/// What listens on a control plane node: etcd, and the apiserver.
pub(super) const CONTROL_PLANE: &[u16] = &[2379, 2380, 6443];
/// How long a port may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// What was found at the address of another control plane node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Something listens there; at which port.
    Runs(u16),
    /// The host is there, and nothing listens.
    Stopped,
    /// No word; why.
    Silent(String),
}

/// Asks some ports of a control plane node.
pub(super) async fn ask(address: &str, ports: &[u16]) -> Found {
    let all = futures::future::join_all(ports.iter().map(|port| port_of(address, *port))).await;
    let runs = all.iter().find(|found| matches!(found, Found::Runs(_)));
    let silent = all.iter().find(|found| matches!(found, Found::Silent(_)));
    runs.or(silent).cloned().unwrap_or(Found::Stopped)
}

async fn port_of(address: &str, port: u16) -> Found {
    match tokio::time::timeout(ANSWER, TcpStream::connect((address, port))).await {
        Ok(Ok(_)) => Found::Runs(port),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Found::Stopped,
        Ok(Err(error)) => Found::Silent(format!("port {port}: {error}")),
        Err(_) => Found::Silent(format!("port {port}: no answer in {} s", ANSWER.as_secs())),
    }
}

/// What stands against a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Against {
    /// Of the rule.
    pub(super) reasons: Vec<Reason>,
    /// Of the other nodes, a line each.
    pub(super) lines: Vec<String>,
    /// The nodes that have to be stopped.
    pub(super) running: Vec<Peer>,
    /// Whether a majority answers.
    pub(super) quorum: bool,
    /// Whether it is known, or only not known not to be.
    outcome: Outcome,
}

impl Against {
    /// How it ends; none when nothing stands against it.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        (!self.reasons.is_empty() || !self.lines.is_empty()).then_some(self.outcome)
    }
}

/// Everything that stands against it. `reasons` are the rule's; `own` is what was found of this node's own etcd, `others` what of the other
/// nodes; `gone` are nodes that somebody has said to be switched off for good.
///
/// That quorum *may* be there, since too few members say that they have no leader, is answered by looking: a member whose host refuses
/// connections does not run. That a majority answers is not; nor that this node's own etcd runs and cannot be asked, since it may be all of
/// its cluster.
pub(super) fn against(
    seen: &Observation,
    reasons: &[Reason],
    own: &Found,
    others: &[(Peer, Found)],
    gone: &BTreeSet<NodeName>,
) -> Against {
    let (mut lines, mut running, mut unseen) = (Vec::new(), Vec::new(), false);
    for (peer, found) in others {
        let Peer { name, address } = peer;
        match found {
            Found::Stopped => {}
            Found::Runs(port) => {
                lines.push(format!("{name} is not stopped: port {port} of {address} answers"));
                running.push(peer.clone());
            }
            Found::Silent(_) if gone.contains(name) => {}
            Found::Silent(why) => {
                unseen = true;
                lines.push(format!(
                    "whether {name} is stopped is not known: {why} of {address}; if it is switched off and will not come back as it is, \
                     say `--gone {name} --because …`"
                ));
            }
        }
    }
    let quorum = seen.etcd.membership.known().is_some()
        || seen.etcd.members.iter().any(|view| view.linearizable_read == Fact::Known(()));
    let leads_nobody =
        seen.etcd.members.iter().filter_map(|view| view.second.known()).any(|sample| sample.leader.is_none());
    let stopped = lines.is_empty() && (*own == Found::Stopped || leads_nobody);
    let reasons: Vec<Reason> =
        reasons.iter().filter(|reason| reason.code != Code::RestoreOverQuorum || quorum || !stopped).cloned().collect();
    let outcome = match Outcome::of_reasons(&reasons) {
        Outcome::Ok if !running.is_empty() => Outcome::Held,
        Outcome::Ok if unseen => Outcome::Unknown,
        judged => judged,
    };
    Against { reasons, lines, running, quorum, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, unknown};
    use quorum_safety::{Disruption, Policy, Verdict, judge};

    fn peer(number: u8) -> Peer {
        Peer { name: NodeName(format!("k{number}")), address: format!("10.10.0.1{number}") }
    }

    fn dead() -> Cluster {
        healthy(3).member_dead(1).member_dead(2).member_dead(3).with(|cluster| {
            cluster.seen.etcd.membership = unknown();
            cluster.seen.etcd.members.clear();
        })
    }

    fn told(cluster: &Cluster, others: [Found; 2], gone: &[&str], lifted: &[Code]) -> Against {
        beside(cluster, &Found::Stopped, others, gone, lifted)
    }

    fn beside(cluster: &Cluster, own: &Found, others: [Found; 2], gone: &[&str], lifted: &[Code]) -> Against {
        let policy = Policy { lifted: lifted.to_vec(), ..Policy::default() };
        let reasons = match judge(&cluster.seen, &cluster.in_flight, &Disruption::Restore, &policy) {
            Verdict::Permitted(_) => Vec::new(),
            Verdict::Held(reasons) | Verdict::Refused(reasons) => reasons.as_slice().to_vec(),
        };
        let others: Vec<_> = [peer(2), peer(3)].into_iter().zip(others).collect();
        let gone = gone.iter().map(|name| NodeName((*name).to_owned())).collect();
        against(&cluster.seen, &reasons, own, &others, &gone)
    }

    #[test]
    fn a_cluster_that_has_quorum_is_not_restored_without_its_override() {
        let stopped = || [Found::Stopped, Found::Stopped];
        let refused = told(&healthy(3), stopped(), &[], &[]);
        assert_eq!(refused.outcome(), Some(Outcome::Refused));
        assert_eq!(refused.reasons[0].code, Code::RestoreOverQuorum);
        assert_eq!(told(&healthy(3), stopped(), &[], &[Code::RestoreOverQuorum]).outcome(), None);
    }

    #[test]
    fn members_that_are_seen_not_to_run_have_no_quorum_and_those_that_do_are_to_be_stopped() {
        let silent = || Found::Silent("port 2379: no answer in 3 s".into());
        let rows = [
            ([Found::Stopped, Found::Stopped], &[][..], None, 0),
            ([Found::Stopped, Found::Runs(2379)], &[], Some(Outcome::Refused), 1),
            ([Found::Stopped, silent()], &[], Some(Outcome::Refused), 1),
            ([silent(), silent()], &["k2"], Some(Outcome::Refused), 1),
            ([Found::Stopped, silent()], &["k3"], None, 0),
            // Nobody's word counts against an answer.
            ([Found::Runs(6443), Found::Stopped], &["k2"], Some(Outcome::Refused), 1),
        ];
        for (others, gone, outcome, lines) in rows {
            let told = told(&dead(), others.clone(), gone, &[]);
            assert_eq!((told.outcome(), told.lines.len()), (outcome, lines), "{others:?} {gone:?}: {told:?}");
        }
        // Also under the override.
        let lifted = [Code::RestoreOverQuorum];
        let told = |others| told(&dead(), others, &[], &lifted);
        assert_eq!(told([Found::Stopped, Found::Runs(2380)]).outcome(), Some(Outcome::Held));
        assert_eq!(told([Found::Stopped, silent()]).outcome(), Some(Outcome::Unknown));
        assert_eq!(told([Found::Stopped, Found::Runs(2380)]).running, [peer(3)]);
    }

    #[test]
    fn an_own_etcd_that_runs_has_to_say_that_it_has_no_leader() {
        let stopped = || [Found::Stopped, Found::Stopped];
        let runs = Found::Runs(2379);
        // Whoever cannot ask it, for want of a certificate, does not know.
        let told = beside(&dead(), &runs, stopped(), &[], &[]);
        assert_eq!(told.outcome(), Some(Outcome::Refused), "{told:?}");
        let alone = healthy(3).member_dead(2).member_dead(3).on_member(1, |view| view.linearizable_read = unknown());
        let alone = alone.with(|cluster| cluster.seen.etcd.membership = unknown());
        assert_eq!(beside(&alone, &runs, stopped(), &[], &[]).outcome(), Some(Outcome::Refused));
        let leaderless = alone.on_samples(1, |sample| sample.leader = None);
        assert_eq!(beside(&leaderless, &runs, stopped(), &[], &[]).outcome(), None);
    }

    #[tokio::test]
    async fn a_host_that_refuses_is_stopped_and_one_that_accepts_is_not() {
        let net = std::net::Ipv4Addr::new(127, 77, 77, 77);
        assert_eq!(ask(&net.to_string(), CONTROL_PLANE).await, Found::Stopped);
        let listener = std::net::TcpListener::bind((net, 2380)).unwrap();
        assert_eq!(ask(&net.to_string(), CONTROL_PLANE).await, Found::Runs(2380));
        drop(listener);
        assert!(matches!(ask("no such host", ETCD).await, Found::Silent(_)));
    }
}
