//! Waits until a node's recovery is proved: not a sleep, and not Node Ready (hole H06).

use crate::access::Access;
use crate::config::LoadBalancer as Kind;
use crate::lock::Hold;
use crate::node::Versions;
use crate::observe::{balancer, leaders};
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End};
use crate::upgrade::fleet::FleetNode;
use crate::upgrade::kubeadm_config::ClusterConfiguration;
use crate::version::Version;
use quorum_safety::recovery::{ConfigHash, Expectation, ExpectedPod, LoadBalancer, Recovery, Stability};
use quorum_safety::{Component, Fact, Mine, NodeView};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a node's static pods are to be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// What was seen before.
    pub before: &'a Seen,
    /// What the host has in its manifests now.
    pub after: &'a Versions,
    /// The components whose manifest has other bytes than in `before`; none when that is not known, since a step before this one may
    /// have changed them.
    pub changed: Option<&'a [String]>,
}

/// Waits for proven recovery. `Ok(None)`: proved.
///
/// # Errors
/// When the lock is lost meanwhile.
pub async fn wait(
    chain: &Chain<'_>,
    node: &FleetNode,
    wanted: Expected<'_>,
    hold: &Hold,
) -> anyhow::Result<Option<End>> {
    let deadline = chain.clock.boottime() + chain.config.times.recovery.get();
    let required = i64::try_from(chain.config.times.stable.get().as_secs()).unwrap_or(i64::MAX);
    let expected = Expectation {
        target: node.name.clone(),
        static_pods: expected_pods(node, wanted),
        load_balancer: chain.config.load_balancer == Kind::Balances,
    };
    let mut stability = Stability::new();
    let mut told = String::new();
    loop {
        hold.guard.check()?;
        let seen = chain.look(Mine::Adopted(hold.guard.identity().await)).await;
        let open = if node.control_plane {
            let limit = chain.config.times.answer.get();
            let leases = leaders::observe(chain.access, chain.clock, limit).await;
            let balancer = if expected.load_balancer {
                balancer_serves(chain.access, &seen.observation.nodes, &node.address, limit).await
            } else {
                LoadBalancer { serves_node: Fact::Unknown("not asked: loadBalancer is not `balances`".to_owned()) }
            };
            let policy = chain.config.policy();
            match stability.observe(&expected, &seen.observation, &leases, &balancer, &policy, required) {
                Recovery::Recovered => Vec::new(),
                Recovery::NotYet(clauses) => clauses.into_iter().map(|clause| clause.detail).collect(),
            }
        } else {
            worker_clauses(&seen, node, chain.to)
        };
        if open.is_empty() {
            return Ok(None);
        }
        let text = open.join("; ");
        if text != told {
            chain.say(&format!("{}: not recovered yet: {text}", node.name));
            told = text;
        }
        if chain.clock.boottime() >= deadline {
            let summary = format!(
                "{} is upgraded but not proved to be back after {} s; it stays locked and cordoned, and \
                 `quorate upgrade --to {}` looks again",
                node.name,
                chain.config.times.recovery.get().as_secs(),
                chain.to
            );
            return Ok(Some(Report::with_blockers(Outcome::Midway, summary, &[], &open)));
        }
        // An observation takes a second between its samples; this keeps a refused connection from spinning.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the static pods must be: the images that the node step left in the manifests, and another config hash where it changed
/// their bytes. The hash itself cannot be predicted, and a kubelet of another version may compute another one of the same bytes
/// (ARCHITECTURE.md, "Decisions worth knowing"). One that was missing before, since a step was stopped in the middle
/// of it, comes from where the others' do.
fn expected_pods(node: &FleetNode, wanted: Expected<'_>) -> BTreeMap<Component, ExpectedPod> {
    let nodes = wanted.before.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
    let pods_of = |view: &NodeView| view.static_pods.known().cloned().unwrap_or_default();
    let own: Vec<_> = nodes.iter().filter(|view| view.name == node.name).flat_map(pods_of).collect();
    let others: Vec<_> = nodes.iter().filter(|view| view.name != node.name).flat_map(pods_of).collect();
    let mut expected = BTreeMap::new();
    for component in Component::ALL {
        let name = component.name();
        let before = own.iter().find(|pod| pod.component == component);
        let like = before.or_else(|| others.iter().find(|pod| pod.component == component));
        let (Some(tag), Some(like)) = (wanted.after.static_pods.get(name), like) else { continue };
        let changed = wanted.changed.is_some_and(|changed| changed.iter().any(|changed| changed == name));
        let config_hash = match before {
            Some(before) if changed => ConfigHash::NoLonger(before.config_hash.clone()),
            Some(_) | None => ConfigHash::Any,
        };
        expected.insert(component, ExpectedPod { image: retagged(&like.image, tag), config_hash });
    }
    expected
}

/// What of a host is not at the target: a step that was done leaves nothing.
pub fn behind(host: &Versions, to: Version) -> Vec<String> {
    let mut behind = Vec::new();
    for name in ["kubeadm", "kubelet"] {
        match host.packages.get(name) {
            Some(version) if *version == to => {}
            Some(version) => behind.push(format!("package {name} is {version}")),
            None => behind.push(format!("package {name} is not installed")),
        }
    }
    if host.running_kubelet != Some(to) {
        behind.push(format!("the kubelet that runs is not {to}"));
    }
    let components = host.static_pods.iter().filter(|(name, _)| *name != Component::Etcd.name());
    behind.extend(components.filter(|(_, tag)| **tag != to.to_string()).map(|(name, tag)| format!("{name} is {tag}")));
    behind
}

/// The same image with another tag.
fn retagged(image: &str, tag: &str) -> String {
    let without_digest = image.split('@').next().unwrap_or(image);
    match without_digest.rsplit_once(':') {
        Some((repository, old)) if !old.contains('/') => format!("{repository}:{tag}"),
        _ => format!("{without_digest}:{tag}"),
    }
}

/// What of a worker is not as it must be before its lock is given back.
fn worker_clauses(seen: &Seen, node: &FleetNode, to: Version) -> Vec<String> {
    let nodes = match &seen.observation.nodes {
        Fact::Known(nodes) => nodes,
        Fact::Unknown(why) => return vec![format!("the nodes are not known: {why}")],
    };
    let Some(view) = nodes.iter().find(|view| view.name == node.name) else {
        return vec![format!("{} is gone", node.name)];
    };
    let mut open = Vec::new();
    match &view.ready {
        Fact::Known(true) => {}
        Fact::Known(false) => open.push(format!("{} is not Ready", node.name)),
        Fact::Unknown(why) => open.push(format!("{}: {why}", node.name)),
    }
    match &view.kubelet_version {
        Fact::Known(version) if *version == to.to_string() => {}
        Fact::Known(version) => open.push(format!("its kubelet reports {version}")),
        Fact::Unknown(why) => open.push(why.clone()),
    }
    open
}

/// Whether fresh connections to the cluster's endpoint, as kubeadm has it, are served by the node at `address`.
pub async fn balancer_serves(
    access: &Access,
    nodes: &Fact<Vec<NodeView>>,
    address: &str,
    deadline: Duration,
) -> LoadBalancer {
    let ask = async {
        let client = access.live(&[]).await.map_err(|error| error.to_string())?;
        let configuration = ClusterConfiguration::read(&client).await?;
        let endpoint = configuration.endpoint().ok_or("kubeadm-config names no controlPlaneEndpoint")?;
        let apiservers = nodes.as_result()?.iter().filter(|node| node.control_plane).count();
        balancer::serves(access, &endpoint, apiservers, address, deadline).await
    };
    LoadBalancer { serves_node: ask.await.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture;

    /// The hash of a manifest that stays may change with the kubelet; the one of a manifest that was changed must.
    #[test]
    fn only_a_changed_manifest_says_something_of_the_hash() {
        let whole = fixture::healthy(3);
        let before = Seen { observation: whole.seen, in_flight: whole.in_flight };
        let fleet = crate::upgrade::fleet::Fleet::of(&before).unwrap();
        let static_pods = Component::ALL.map(|component| (component.name().to_owned(), "v1.36.3".to_owned()));
        let after = Versions { static_pods: static_pods.into(), ..Versions::default() };
        let node = fleet.get(&"k1".into()).unwrap();
        let changed = ["kube-apiserver".to_owned()];
        let of = |changed| expected_pods(node, Expected { before: &before, after: &after, changed });
        let known = of(Some(&changed));
        assert_eq!(known.len(), 4);
        assert_eq!(known[&Component::Apiserver].config_hash, ConfigHash::NoLonger("hash-kube-apiserver".to_owned()));
        assert_eq!(known[&Component::Apiserver].image, "registry.k8s.io/kube-apiserver:v1.36.3");
        assert_eq!(known[&Component::Etcd].config_hash, ConfigHash::Any);
        assert!(of(None).values().all(|pod| pod.config_hash == ConfigHash::Any));
    }

    /// Each row breaks one thing.
    #[test]
    fn a_worker_is_recovered_when_nothing_of_it_is_open() {
        let to: Version = "v1.36.3".parse().unwrap();
        let upgraded = || fixture::healthy(3).on_node("w1", |node| node.kubelet_version = Fact::Known(to.to_string()));
        let open = |cluster: fixture::Cluster| {
            let whole = upgraded();
            let fleet = |of: fixture::Cluster| Seen { observation: of.seen, in_flight: of.in_flight };
            let fleet = crate::upgrade::fleet::Fleet::of(&fleet(whole)).unwrap();
            let seen = Seen { observation: cluster.seen, in_flight: cluster.in_flight };
            worker_clauses(&seen, fleet.get(&"w1".into()).unwrap(), to).join("; ")
        };
        assert_eq!(open(upgraded()), "");
        let broken = |change: fn(&mut quorum_safety::NodeView)| open(upgraded().on_node("w1", change));
        assert_eq!(broken(|node| node.ready = Fact::Known(false)), "w1 is not Ready");
        assert_eq!(broken(|node| node.ready = fixture::unknown()), "w1: no answer within 3 s");
        assert_eq!(
            broken(|node| node.kubelet_version = Fact::Known("v1.36.1".to_owned())),
            "its kubelet reports v1.36.1"
        );
        assert_eq!(broken(|node| node.kubelet_version = fixture::unknown()), "no answer within 3 s");
        assert_eq!(broken(|node| node.name = "w2".into()), "w1 is gone");
        assert_eq!(
            open(upgraded().with(|cluster| cluster.seen.nodes = fixture::unknown())),
            "the nodes are not known: no answer within 3 s"
        );
    }

    #[test]
    fn images_get_another_tag() {
        for (image, expected) in [
            ("registry.k8s.io/etcd:3.6.8-0", "registry.k8s.io/etcd:X"),
            ("localhost:5000/etcd:3.6.8-0@sha256:ab", "localhost:5000/etcd:X"),
            ("localhost:5000/etcd", "localhost:5000/etcd:X"),
        ] {
            assert_eq!(retagged(image, "X"), expected);
        }
    }
}
