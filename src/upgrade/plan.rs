//! The plan of an upgrade: which nodes, in which order, what each goes through, what blocks. Pure.

use crate::upgrade::fleet::{Fleet, FleetNode};
use crate::upgrade::record::ChainRecord;
use crate::version::Version;
use quorum_safety::{Component, NodeName};
use serde::Serialize;

/// What kubeadm does on a control plane node: `apply` on the first, `node` on all others (hole H02).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// `kubeadm upgrade apply VERSION`: changes the cluster's configuration too.
    Apply,
    /// `kubeadm upgrade node`: follows the cluster's configuration.
    Node,
}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// The node.
    pub node: NodeName,
    /// Whether it is a control plane node.
    pub control_plane: bool,
    /// What kubeadm does on it.
    pub mode: Mode,
    /// What is missing on it; never empty.
    pub missing: Vec<String>,
}

/// An upgrade that may be begun, as far as versions go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The version that runs now: the oldest kubelet.
    pub from: Version,
    /// The target.
    pub to: Version,
    /// The nodes that are not on target, in order.
    pub steps: Vec<NodePlan>,
    /// The nodes that are on target and left alone.
    pub done: Vec<NodeName>,
}

/// Why a target cannot be reached from here. Refusals, each with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No node at all.
    #[error("the cluster has no control plane node")]
    NoNodes,
    /// Backwards.
    #[error("{to} is below {highest}, which an apiserver runs already: choose {highest} or a later version")]
    Downgrade {
        /// The target.
        to: Version,
        /// The highest apiserver.
        highest: Version,
    },
    /// More than one minor.
    #[error("{to} is more than one minor version above {from}: upgrade to v{next_major}.{next_minor} first")]
    SkipsMinor {
        /// The target.
        to: Version,
        /// The oldest apiserver or kubelet of a control plane node.
        from: Version,
        /// Major of the next minor.
        next_major: u16,
        /// The next minor.
        next_minor: u16,
    },
    /// An upgrade to another version is half done.
    #[error(
        "an upgrade to {unfinished} is half done ({what}): finish it first with `quorate upgrade --to {unfinished}`"
    )]
    Unfinished {
        /// Its target.
        unfinished: Version,
        /// How it shows.
        what: String,
    },
}

impl Plan {
    /// Plans the way to a target. Followers first, the etcd leader last; the node on which `kubeadm upgrade apply` was
    /// recorded goes first, since it resumes; workers after, by name.
    ///
    /// # Errors
    /// When the target cannot be reached from what runs.
    pub fn make(fleet: &Fleet, to: Version, record: &ChainRecord) -> Result<Self, PlanError> {
        let from = fleet.running().ok_or(PlanError::NoNodes)?;
        let highest = fleet.highest_apiserver().ok_or(PlanError::NoNodes)?;
        if to < highest {
            return Err(PlanError::Downgrade { to, highest });
        }
        let oldest = fleet.control_plane().flat_map(versions).min().unwrap_or(from);
        if to.major != oldest.major || to.minor > oldest.minor + 1 {
            let (next_major, next_minor) = (oldest.major, oldest.minor + 1);
            return Err(PlanError::SkipsMinor { to, from: oldest, next_major, next_minor });
        }
        // An unfinished target is finished before a new one is chosen: skew between control plane nodes shows it.
        if highest != to && oldest != highest {
            let behind: Vec<String> = fleet
                .control_plane()
                .filter(|node| versions(node).any(|version| version != highest))
                .map(|node| node.name.to_string())
                .collect();
            let what = format!("{} not on it", behind.join(", "));
            return Err(PlanError::Unfinished { unfinished: highest, what });
        }
        let missing = |node: &FleetNode| node.missing(to, record.kubeadm.get(&node.name).copied());
        let mut control_plane: Vec<&FleetNode> =
            fleet.control_plane().filter(|node| !missing(node).is_empty()).collect();
        control_plane
            .sort_by_key(|node| (record.apply_node.as_ref() != Some(&node.name), node.leads, node.name.clone()));
        // `apply` is for the recorded node; before there is a record, for the first. When every apiserver is on target,
        // nobody needs it: what is left is done by `node`.
        let apply_node = record.apply_node.clone().or_else(|| {
            let untouched = fleet.control_plane().all(|node| node.components.get(&Component::Apiserver) != Some(&to));
            control_plane.first().filter(|_| untouched).map(|node| node.name.clone())
        });
        let workers = fleet.workers().filter(|node| !missing(node).is_empty());
        let steps = control_plane
            .iter()
            .copied()
            .chain(workers)
            .map(|node| NodePlan {
                node: node.name.clone(),
                control_plane: node.control_plane,
                mode: if apply_node.as_ref() == Some(&node.name) { Mode::Apply } else { Mode::Node },
                missing: missing(node),
            })
            .collect();
        let done = fleet.nodes.iter().filter(|node| missing(node).is_empty()).map(|node| node.name.clone()).collect();
        Ok(Self { from, to, steps, done })
    }
}

/// All versions that show on a control plane node but its etcd's.
fn versions(node: &FleetNode) -> impl Iterator<Item = Version> + '_ {
    node.components.values().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::{Cordon, MemberId};
    use std::collections::BTreeMap;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn node(name: &str, components: &str, kubelet: &str) -> FleetNode {
        let control_plane = !components.is_empty();
        FleetNode {
            name: name.into(),
            control_plane,
            address: "10.0.0.1".to_owned(),
            kubelet: version(kubelet),
            components: if control_plane {
                [Component::Apiserver, Component::ControllerManager, Component::Scheduler]
                    .map(|component| (component, version(components)))
                    .into()
            } else {
                BTreeMap::new()
            },
            etcd_image: None,
            cordon: Cordon::None,
            member: Some(MemberId(1)),
            leads: false,
        }
    }

    fn fleet() -> Fleet {
        let mut leader = node("k1", "v1.36.1", "v1.36.1");
        leader.leads = true;
        Fleet {
            nodes: vec![
                leader,
                node("k2", "v1.36.1", "v1.36.1"),
                node("k3", "v1.36.1", "v1.36.1"),
                node("k4", "", "v1.36.1"),
            ],
        }
    }

    fn order(plan: &Plan) -> Vec<(&str, Mode)> {
        plan.steps.iter().map(|step| (step.node.0.as_str(), step.mode)).collect()
    }

    #[test]
    fn h02_apply_runs_on_the_first_node_only() {
        let plan = Plan::make(&fleet(), version("v1.36.3"), &ChainRecord::default()).unwrap();
        assert_eq!(order(&plan), [("k2", Mode::Apply), ("k3", Mode::Node), ("k1", Mode::Node), ("k4", Mode::Node)]);
    }

    #[test]
    fn the_recorded_node_resumes_first_even_when_it_leads_now() {
        let record = ChainRecord { apply_node: Some("k1".into()), ..ChainRecord::default() };
        let plan = Plan::make(&fleet(), version("v1.36.3"), &record).unwrap();
        assert_eq!(order(&plan)[0], ("k1", Mode::Apply));
        assert_eq!(plan.steps.iter().filter(|step| step.mode == Mode::Apply).count(), 1);
    }

    #[test]
    fn r02_nothing_to_do_is_a_plan_without_steps() {
        let plan = Plan::make(&fleet(), version("v1.36.1"), &ChainRecord::default()).unwrap();
        assert_eq!(plan.steps, []);
        assert_eq!(plan.done.len(), 4);
    }

    #[test]
    fn r06_a_worker_that_lags_is_not_done() {
        let mut fleet = fleet();
        for node in &mut fleet.nodes[..3] {
            *node = self::node(&node.name.0.clone(), "v1.36.3", "v1.36.3");
        }
        assert_eq!(fleet.running(), Some(version("v1.36.1")));
        let plan = Plan::make(&fleet, version("v1.36.3"), &ChainRecord::default()).unwrap();
        assert_eq!(order(&plan), [("k4", Mode::Node)]);
        assert_eq!(plan.done.len(), 3);
    }

    #[test]
    fn the_kubelet_alone_does_not_make_a_node_done() {
        let mut fleet = fleet();
        fleet.nodes[1].kubelet = version("v1.36.3");
        let plan = Plan::make(&fleet, version("v1.36.3"), &ChainRecord::default()).unwrap();
        assert!(order(&plan).contains(&("k2", Mode::Apply)));
        let mut done = node("k2", "v1.36.3", "v1.36.3");
        assert_eq!(done.missing(version("v1.36.3"), Some(version("v1.36.3"))), Vec::<String>::new());
        assert_eq!(done.missing(version("v1.36.3"), Some(version("v1.36.1"))), ["package kubeadm is v1.36.1"]);
        done.cordon = Cordon::Ours("upgrade-v1.36.3".to_owned());
        assert_eq!(done.missing(version("v1.36.3"), None), ["it is still cordoned by upgrade-v1.36.3"]);
    }

    #[test]
    fn targets_that_cannot_be_reached_are_refused_with_what_would_be_right() {
        let record = ChainRecord::default();
        for (to, expected) in [("v1.36.0", "choose v1.36.1"), ("v1.38.0", "v1.37 first"), ("v2.0.0", "v1.37 first")] {
            let error = Plan::make(&fleet(), version(to), &record).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let mut half = fleet();
        half.nodes[1] = node("k2", "v1.36.3", "v1.36.3");
        let error = Plan::make(&half, version("v1.37.0"), &record).unwrap_err().to_string();
        assert!(error.contains("quorate upgrade --to v1.36.3"), "{error}");
        // …and the half-done target itself may be finished; `apply` has been there.
        let plan = Plan::make(&half, version("v1.36.3"), &record).unwrap();
        assert_eq!(order(&plan), [("k3", Mode::Node), ("k1", Mode::Node), ("k4", Mode::Node)]);
    }
}
