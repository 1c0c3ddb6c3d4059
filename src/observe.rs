//! Observe: asks the API, each etcd member and each apiserver, and writes down what each said. What failed to answer is in
//! the observation as unknown, with the reason.

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use kube::Client;
use quorum_safety::{Fact, NodeName, NodeView, Observation};
use std::collections::BTreeMap;
use std::time::Duration;

pub mod apiserver;
pub mod balancer;
pub mod budgets;
pub mod certificate;
pub mod cluster;
pub mod etcd;
pub mod leaders;

/// Where to look.
pub struct Sources<'a> {
    /// The API; or why there is none.
    pub access: Result<&'a Access, String>,
    /// etcd's client certificate.
    pub etcd: etcd::ClientFiles,
    /// Addresses of etcd members that are known without the API: on a control plane node, its own.
    pub seeds: Vec<String>,
    /// Where other members may be, asked when none of those does: on a control plane node, those that it once joined.
    pub peers: Vec<String>,
}

/// Looks once: two samples of every etcd member, one answer of everything else. Where an address of a member is known without the API,
/// etcd and the API are asked at the same time.
pub async fn observe(sources: &Sources<'_>, config: &Config, clock: Clock) -> Observation {
    let answer = config.times.answer.get();
    let pace = etcd::Pace { answer, between_samples: config.times.between_samples.get() };
    let (asked, (view, budgets, mut apiservers)) = tokio::join!(
        async {
            match sources.seeds.as_slice() {
                [] => None,
                seeds => Some(etcd::ask(&sources.etcd, seeds, pace).await),
            }
        },
        async {
            let (view, client) = of_api(sources, answer).await;
            let apiservers = async {
                match (&sources.access, &view.nodes) {
                    (Ok(access), Fact::Known(nodes)) => {
                        apiserver::observe(access, &addresses(nodes, |node| node.control_plane), answer).await
                    }
                    _ => Vec::new(),
                }
            };
            let budgets = async {
                match &client {
                    Ok(client) => budgets::observe(client, answer).await,
                    Err(why) => Fact::Unknown(why.clone()),
                }
            };
            let (apiservers, budgets) = tokio::join!(apiservers, budgets);
            (view, budgets, apiservers)
        }
    );
    let cluster::ClusterView { uid, nodes } = view;
    let asked = match asked {
        Some(asked) if asked.membership.known().is_some() => asked,
        // The member on this node is the one that is in trouble, or no address was known: whoever is a control plane node is asked.
        _ => {
            let others = nodes.known().map(|nodes| addresses(nodes, |node| node.control_plane)).unwrap_or_default();
            let mut seeds: Vec<String> = others.iter().map(|(_, address)| etcd::client_url(address)).collect();
            seeds.extend(sources.seeds.iter().chain(&sources.peers).cloned());
            seeds.sort();
            seeds.dedup();
            etcd::ask(&sources.etcd, &seeds, pace).await
        }
    };
    let by_address: Fact<BTreeMap<String, NodeName>> = match &nodes {
        Fact::Known(nodes) => {
            Fact::Known(addresses(nodes, |_| true).into_iter().map(|(name, address)| (address, name)).collect())
        }
        Fact::Unknown(why) => Fact::Unknown(why.clone()),
    };
    let etcd = asked.placed(&by_address);
    // With the API down the members still say where the apiservers are: kubeadm names a member after its node.
    if let (Fact::Unknown(_), Ok(access)) = (&nodes, &sources.access) {
        let members = etcd.membership.known().map(quorum_safety::Membership::members).unwrap_or_default();
        let servers: Vec<(NodeName, String)> = members
            .iter()
            .filter(|member| member.has_started())
            .filter_map(|member| etcd::address(member).map(|address| (NodeName(member.name.clone()), address)))
            .collect();
        apiservers = apiserver::observe(access, &servers, answer).await;
    }
    Observation { taken_at: clock.unix(), cluster_uid: uid, etcd, nodes, apiservers, budgets }
}

/// What the API says, and who answered; or why nobody did.
async fn of_api(sources: &Sources<'_>, answer: Duration) -> (cluster::ClusterView, Result<Client, String>) {
    let client = match &sources.access {
        Ok(access) => access.live(&[]).await.map_err(|error| error.to_string()),
        Err(why) => Err(why.clone()),
    };
    let view = match &client {
        Ok(client) => cluster::observe(client, answer).await,
        Err(why) => cluster::ClusterView { uid: Fact::Unknown(why.clone()), nodes: Fact::Unknown(why.clone()) },
    };
    (view, client)
}

/// Names and InternalIPs of some nodes.
fn addresses(nodes: &[NodeView], which: impl Fn(&NodeView) -> bool) -> Vec<(NodeName, String)> {
    nodes
        .iter()
        .filter(|node| which(node))
        .filter_map(|node| node.address.known().map(|address| (node.name.clone(), address.clone())))
        .collect()
}

/// An observation of nothing but the API, for those who may not ask etcd.
pub fn without_etcd(cluster_uid: Fact<String>, clock: Clock) -> Observation {
    let why = "etcd was not asked: a workstation never reaches it";
    Observation {
        taken_at: clock.unix(),
        cluster_uid,
        etcd: quorum_safety::EtcdView { membership: Fact::Unknown(why.to_owned()), members: Vec::new() },
        nodes: Fact::Unknown("the nodes were not asked".to_owned()),
        apiservers: Vec::new(),
        budgets: Fact::Unknown("budgets were not asked for".to_owned()),
    }
}
