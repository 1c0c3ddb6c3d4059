//! The live fleet as an upgrade sees it. Pure: made from an observation, never from a Job's name.

use crate::seen::Seen;
use crate::version::Version;
use quorum_safety::{Component, Cordon, Fact, Holder, InFlight, Lock, MemberId, NodeName, NodeView, Observation};
use std::collections::BTreeMap;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetNode {
    /// Its name.
    pub name: NodeName,
    /// Whether it is a control plane node.
    pub control_plane: bool,
    /// Its InternalIP.
    pub address: String,
    /// What its kubelet reports.
    pub kubelet: Version,
    /// Versions of apiserver, controller-manager and scheduler by their images; empty for a worker.
    pub components: BTreeMap<Component, Version>,
    /// The tag of its etcd's image; none for a worker.
    pub etcd: Option<String>,
    /// Whether it is cordoned, and by whom.
    pub cordon: Cordon,
    /// Whether its kubelet says that it is Ready.
    pub ready: Fact<bool>,
    /// Conditions under which its kubelet evicts pods, or may: DiskPressure and the like.
    pub pressures: Vec<String>,
    /// The etcd member on it, when known.
    pub member: Option<MemberId>,
    /// Whether that member leads.
    pub leads: bool,
    /// Operations that a Lease or a cordon of ours names on it: they are finished before anything new begins.
    pub begun: Vec<String>,
}

/// The image of etcd that a node on target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedEtcd<'a> {
    /// Its tag.
    pub tag: &'a str,
    /// Who wants it, for people.
    pub by: &'static str,
}

/// All nodes, control plane nodes first, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The nodes.
    pub nodes: Vec<FleetNode>,
}

/// Why a fleet cannot be told from an observation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// The nodes are not known.
    #[error("the nodes are not known: {0}")]
    Nodes(String),
    /// Who holds the Leases is not known.
    #[error("the disruption Leases are not known: {0}")]
    Leases(String),
    /// Something of a node is not known or cannot be read.
    #[error("node {node}: {what}")]
    Node {
        /// Which.
        node: NodeName,
        /// What.
        what: String,
    },
}

impl Fleet {
    /// Reads the fleet out of what was seen.
    ///
    /// # Errors
    /// When a node's version or address is not known, or who holds the Leases: an upgrade is not planned on guesses.
    pub fn of(seen: &Seen) -> Result<Self, FleetError> {
        let holders = holders(&seen.in_flight).map_err(|why| FleetError::Leases(why.to_owned()))?;
        let seen = &seen.observation;
        let nodes = seen.nodes.as_result().map_err(|why| FleetError::Nodes(why.to_owned()))?;
        let mut nodes: Vec<FleetNode> =
            nodes.iter().map(|node| fleet_node(node, seen, &holders)).collect::<Result<_, _>>()?;
        nodes.sort_by(|a, b| b.control_plane.cmp(&a.control_plane).then(a.name.cmp(&b.name)));
        Ok(Self { nodes })
    }

    /// The node of that name.
    pub fn get(&self, name: &NodeName) -> Option<&FleetNode> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// The control plane nodes.
    pub fn control_plane(&self) -> impl Iterator<Item = &FleetNode> {
        self.nodes.iter().filter(|node| node.control_plane)
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = &FleetNode> {
        self.nodes.iter().filter(|node| !node.control_plane)
    }

    /// What is wrong with workers, and what is not known of them. A worker that is not well takes none of the pods that are drained from
    /// the others; control plane nodes are the rule's to judge.
    pub fn unwell_workers(&self) -> (Vec<String>, Vec<String>) {
        let (mut wrong, mut unknown) = (Vec::new(), Vec::new());
        for node in self.workers() {
            match &node.ready {
                Fact::Known(true) => {}
                Fact::Known(false) => wrong.push(format!("{} is not Ready", node.name)),
                Fact::Unknown(why) => unknown.push(format!("whether {} is Ready is not known: {why}", node.name)),
            }
            wrong.extend(node.pressures.iter().map(|pressure| format!("{} has {pressure}", node.name)));
        }
        (wrong, unknown)
    }

    /// The version that runs: the oldest kubelet of the fleet (incident R06).
    pub fn running(&self) -> Option<Version> {
        self.nodes.iter().map(|node| node.kubelet).min()
    }

    /// The highest version of any apiserver: no target may be below it.
    pub fn highest_apiserver(&self) -> Option<Version> {
        self.nodes.iter().filter_map(|node| node.components.get(&Component::Apiserver)).max().copied()
    }
}

impl FleetNode {
    /// What is missing for this node to be on target; empty when it is. `kubeadm` is the version of its package and `etcd` the image that
    /// is wanted, where these are known: what is not known is not compared. Never the kubelet alone: a node whose kubelet is on target
    /// may be half done.
    pub fn missing(&self, target: Version, kubeadm: Option<Version>, etcd: Option<WantedEtcd<'_>>) -> Vec<String> {
        let mut missing = Vec::new();
        for (component, version) in &self.components {
            if *version != target {
                missing.push(format!("{} is {version}", component.name()));
            }
        }
        if self.kubelet != target {
            missing.push(format!("kubelet is {}", self.kubelet));
        }
        if let Some(kubeadm) = kubeadm.filter(|kubeadm| *kubeadm != target) {
            missing.push(format!("package kubeadm is {kubeadm}"));
        }
        if let (Some(WantedEtcd { tag: wanted, by }), Some(tag)) = (etcd, &self.etcd)
            && wanted != tag
            && !is_newer(tag, wanted)
        {
            missing.push(format!("etcd is {tag}, and {by} wants {wanted}"));
        }
        missing
    }
}

/// Who holds the Leases of nodes.
fn holders(in_flight: &InFlight) -> Result<Vec<&Holder>, &str> {
    let workers = in_flight.workers.as_result()?;
    let locks = std::iter::once(in_flight.control_plane.as_result()?).chain(workers);
    Ok(locks
        .filter_map(|lock| match lock {
            Lock::Held(holder) => Some(holder),
            Lock::Free => None,
        })
        .collect())
}

fn fleet_node(node: &NodeView, seen: &Observation, holders: &[&Holder]) -> Result<FleetNode, FleetError> {
    let wrong = |what: String| FleetError::Node { node: node.name.clone(), what };
    let known = |fact: &Fact<String>, what: &str| {
        fact.as_result().map(ToOwned::to_owned).map_err(|why| wrong(format!("{what} is not known: {why}")))
    };
    let kubelet = known(&node.kubelet_version, "its kubelet's version")?;
    let kubelet = kubelet.parse::<Version>().map_err(|error| wrong(format!("its kubelet: {error}")))?;
    let address = known(&node.address, "its InternalIP")?;
    let mut begun: Vec<String> =
        holders.iter().filter(|holder| holder.target == node.name).map(|holder| holder.operation.clone()).collect();
    if let Cordon::Ours(operation) = &node.cordon {
        begun.push(operation.clone());
    }
    begun.sort();
    begun.dedup();
    let mut components = BTreeMap::new();
    let mut etcd = None;
    if node.control_plane {
        let pods =
            node.static_pods.as_result().map_err(|why| wrong(format!("its static pods are not known: {why}")))?;
        for component in Component::ALL {
            let Some(pod) = pods.iter().find(|pod| pod.component == component) else {
                // kubeadm that was killed in the middle leaves a node without a manifest: whoever goes on puts it back.
                if begun.is_empty() {
                    return Err(wrong(format!("it has no mirror pod of {}", component.name())));
                }
                continue;
            };
            if component == Component::Etcd {
                etcd = Some(tag_of(&pod.image).map_err(|what| wrong(format!("image of etcd: {what}")))?.to_owned());
                continue;
            }
            let version =
                version_of(&pod.image).map_err(|what| wrong(format!("image of {}: {what}", component.name())))?;
            components.insert(component, version);
        }
    }
    let view = seen.etcd.members.iter().find(|member| member.node.known() == Some(&node.name));
    let leads = view.is_some_and(|view| view.second.known().is_some_and(|sample| sample.leader == Some(view.id)));
    Ok(FleetNode {
        name: node.name.clone(),
        control_plane: node.control_plane,
        address,
        kubelet,
        components,
        etcd,
        cordon: node.cordon.clone(),
        ready: node.ready.clone(),
        pressures: node.pressures.clone(),
        member: view.map(|view| view.id),
        leads,
        begun,
    })
}

/// Whether an etcd is newer than the one that is wanted. kubeadm leaves such a one alone ("Skipping etcd upgrade"), so a node with it
/// would never be on target. Tags that are no numbers are not newer.
fn is_newer(tag: &str, wanted: &str) -> bool {
    matches!((numbers(tag), numbers(wanted)), (Some(tag), Some(wanted)) if tag > wanted)
}

/// `3.6.8-0` as numbers, the revision of its image last.
fn numbers(tag: &str) -> Option<Vec<u64>> {
    let tag = tag.strip_prefix('v').unwrap_or(tag);
    let (version, revision) = tag.split_once('-').unwrap_or((tag, "0"));
    version.split('.').chain([revision]).map(|part| part.parse().ok()).collect()
}

/// The version that an image's tag names: `registry.k8s.io/kube-apiserver:v1.36.1`, a digest after it ignored.
fn version_of(image: &str) -> Result<Version, String> {
    tag_of(image)?.parse().map_err(|error: crate::version::VersionError| error.to_string())
}

fn tag_of(image: &str) -> Result<&str, String> {
    let without_digest = image.split('@').next().unwrap_or(image);
    let tag = without_digest.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    tag.ok_or_else(|| format!("`{image}` has no tag"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture;

    #[test]
    fn a_worker_that_is_not_well_is_named_and_what_is_unknown_is_not_taken_for_well() {
        let unwell = |change: fn(&mut NodeView)| {
            let whole = fixture::healthy(3).on_node("w1", change);
            Fleet::of(&Seen { observation: whole.seen, in_flight: whole.in_flight }).unwrap().unwell_workers()
        };
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(unwell(|_| {}), (Vec::new(), Vec::new()));
        assert_eq!(unwell(|node| node.ready = Fact::Known(false)), (texts(&["w1 is not Ready"]), Vec::new()));
        assert_eq!(
            unwell(|node| node.ready = Fact::Unknown("its kubelet is silent".to_owned())),
            (Vec::new(), texts(&["whether w1 is Ready is not known: its kubelet is silent"]))
        );
        assert_eq!(
            unwell(|node| node.pressures = vec!["DiskPressure".to_owned()]),
            (texts(&["w1 has DiskPressure"]), Vec::new())
        );
    }

    #[test]
    fn an_etcd_that_kubeadm_would_not_take_back_is_newer() {
        for (tag, wanted, expected) in [
            ("3.6.8-0", "3.6.8-0", false),
            ("3.6.10-0", "3.6.9-0", true),
            ("3.6.8-1", "3.6.8-0", true),
            ("3.6.8-0", "3.6.8-1", false),
            ("v3.7.0", "3.6.8-0", true),
            ("3.5.24-0", "3.6.8-0", false),
            ("3.7.0-hardened", "3.6.8-0", false),
            ("latest", "3.6.8-0", false),
        ] {
            assert_eq!(is_newer(tag, wanted), expected, "{tag} {wanted}");
        }
    }

    #[test]
    fn a_static_pod_may_be_missing_where_something_is_half_done_and_nowhere_else() {
        let fleet = |cordon: Cordon| {
            let without = |node: &mut NodeView| {
                let mut pods = node.static_pods.known().unwrap().clone();
                pods.retain(|pod| pod.component != Component::Scheduler);
                node.static_pods = Fact::Known(pods);
            };
            let whole = fixture::healthy(3).on_node("k2", without).on_node("k2", |node| node.cordon = cordon);
            Fleet::of(&Seen { observation: whole.seen, in_flight: whole.in_flight })
        };
        let error = fleet(Cordon::None).unwrap_err().to_string();
        assert!(error.contains("k2") && error.contains("no mirror pod of kube-scheduler"), "{error}");
        let half_done = fleet(Cordon::Ours("upgrade-v1.36.3".to_owned())).unwrap();
        let node = half_done.get(&"k2".into()).unwrap();
        assert!(!node.components.contains_key(&Component::Scheduler) && node.components.len() == 2);
    }

    #[test]
    fn versions_of_images() {
        assert_eq!(version_of("registry.k8s.io/kube-apiserver:v1.36.1").unwrap().to_string(), "v1.36.1");
        assert_eq!(version_of("localhost:5000/kube-apiserver:v1.36.1@sha256:ab").unwrap().to_string(), "v1.36.1");
        assert!(version_of("localhost:5000/kube-apiserver").is_err());
        assert!(version_of("registry.k8s.io/kube-apiserver:latest").unwrap_err().contains("latest"));
    }
}
