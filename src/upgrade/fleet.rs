//! The live fleet as an upgrade sees it. Pure: made from an observation, never from a Job's name.

use crate::version::Version;
use quorum_safety::{Component, Cordon, Fact, MemberId, NodeName, NodeView, Observation};
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
    /// The image of its etcd; none for a worker.
    pub etcd_image: Option<String>,
    /// Whether it is cordoned, and by whom.
    pub cordon: Cordon,
    /// The etcd member on it, when known.
    pub member: Option<MemberId>,
    /// Whether that member leads.
    pub leads: bool,
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
    /// Reads the fleet out of an observation.
    ///
    /// # Errors
    /// When a node's version or address is not known: an upgrade is not planned on guesses.
    pub fn of(seen: &Observation) -> Result<Self, FleetError> {
        let nodes = seen.nodes.as_result().map_err(|why| FleetError::Nodes(why.to_owned()))?;
        let mut nodes: Vec<FleetNode> = nodes.iter().map(|node| fleet_node(node, seen)).collect::<Result<_, _>>()?;
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
    /// What is missing for this node to be on target; empty when it is. `kubeadm` is the version of its package, when known.
    /// Never the kubelet alone: a node whose kubelet is on target may be half done.
    pub fn missing(&self, target: Version, kubeadm: Option<Version>) -> Vec<String> {
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
        if let Cordon::Ours(operation) = &self.cordon {
            missing.push(format!("it is still cordoned by {operation}"));
        }
        missing
    }
}

fn fleet_node(node: &NodeView, seen: &Observation) -> Result<FleetNode, FleetError> {
    let wrong = |what: String| FleetError::Node { node: node.name.clone(), what };
    let known = |fact: &Fact<String>, what: &str| {
        fact.as_result().map(ToOwned::to_owned).map_err(|why| wrong(format!("{what} is not known: {why}")))
    };
    let kubelet = known(&node.kubelet_version, "its kubelet's version")?;
    let kubelet = kubelet.parse::<Version>().map_err(|error| wrong(format!("its kubelet: {error}")))?;
    let address = known(&node.address, "its InternalIP")?;
    let mut components = BTreeMap::new();
    let mut etcd_image = None;
    if node.control_plane {
        let pods =
            node.static_pods.as_result().map_err(|why| wrong(format!("its static pods are not known: {why}")))?;
        for component in Component::ALL {
            let pod = pods
                .iter()
                .find(|pod| pod.component == component)
                .ok_or_else(|| wrong(format!("it has no mirror pod of {}", component.name())))?;
            if component == Component::Etcd {
                etcd_image = Some(pod.image.clone());
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
        etcd_image,
        cordon: node.cordon.clone(),
        member: view.map(|view| view.id),
        leads,
    })
}

/// The version that an image's tag names: `registry.k8s.io/kube-apiserver:v1.36.1`, a digest after it ignored.
fn version_of(image: &str) -> Result<Version, String> {
    let without_digest = image.split('@').next().unwrap_or(image);
    let tag = without_digest.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    let tag = tag.ok_or_else(|| format!("`{image}` has no tag"))?;
    tag.parse().map_err(|error: crate::version::VersionError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_images() {
        assert_eq!(version_of("registry.k8s.io/kube-apiserver:v1.36.1").unwrap().to_string(), "v1.36.1");
        assert_eq!(version_of("localhost:5000/kube-apiserver:v1.36.1@sha256:ab").unwrap().to_string(), "v1.36.1");
        assert!(version_of("localhost:5000/kube-apiserver").is_err());
        assert!(version_of("registry.k8s.io/kube-apiserver:latest").unwrap_err().contains("latest"));
    }
}
