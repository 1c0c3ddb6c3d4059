//! Observe: asks the API, each etcd member and each apiserver, and writes down what each said. What failed to answer is in
//! the observation as unknown, with the reason.

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use quorum_safety::{Fact, NodeName, NodeView, Observation};
use std::collections::BTreeMap;

pub mod apiserver;
pub mod balancer;
pub mod certificate;
pub mod cluster;
pub mod etcd;

/// Where to look.
pub struct Sources<'a> {
    /// The API; or why there is none.
    pub access: Result<&'a Access, String>,
    /// etcd's client certificate.
    pub etcd: etcd::ClientFiles,
    /// Addresses of etcd members that are known without the API: on a control plane node, its own.
    pub seeds: Vec<String>,
}

/// Looks once: two samples of every etcd member, one answer of everything else.
pub async fn observe(sources: &Sources<'_>, config: &Config, clock: Clock) -> Observation {
    let answer = config.times.answer.get();
    let pace = etcd::Pace { answer, between_samples: config.times.between_samples.get() };
    let (uid, nodes) = match &sources.access {
        Ok(access) => match access.live(&[]).await {
            Ok(client) => {
                let view = cluster::observe(&client, answer).await;
                (view.uid, view.nodes)
            }
            Err(error) => (Fact::Unknown(error.to_string()), Fact::Unknown(error.to_string())),
        },
        Err(why) => (Fact::Unknown(why.clone()), Fact::Unknown(why.clone())),
    };
    let by_address: Fact<BTreeMap<String, NodeName>> = match &nodes {
        Fact::Known(nodes) => Fact::Known(addresses(nodes, |_| true).map(|(name, address)| (address, name)).collect()),
        Fact::Unknown(why) => Fact::Unknown(why.clone()),
    };
    let control_plane: Vec<(NodeName, String)> =
        nodes.known().map(|nodes| addresses(nodes, |node| node.control_plane).collect()).unwrap_or_default();
    let mut seeds: Vec<String> = control_plane.iter().map(|(_, address)| etcd::client_url(address)).collect();
    seeds.extend(sources.seeds.iter().cloned());
    seeds.sort();
    seeds.dedup();
    let (etcd, mut apiservers) = tokio::join!(etcd::observe(&sources.etcd, &seeds, &by_address, pace), async {
        match &sources.access {
            Ok(access) => apiserver::observe(access, &control_plane, answer).await,
            Err(_) => Vec::new(),
        }
    });
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
    Observation { taken_at: clock.unix(), cluster_uid: uid, etcd, nodes, apiservers }
}

/// Names and InternalIPs of some nodes.
fn addresses(nodes: &[NodeView], which: impl Fn(&NodeView) -> bool) -> impl Iterator<Item = (NodeName, String)> {
    let known: Vec<(NodeName, String)> = nodes
        .iter()
        .filter(|node| which(node))
        .filter_map(|node| node.address.known().map(|address| (node.name.clone(), address.clone())))
        .collect();
    known.into_iter()
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
    }
}
