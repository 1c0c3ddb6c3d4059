//! The plan of an upgrade: which nodes, in which order, what each goes through, what blocks. Pure.

use crate::upgrade::chain::{OPERATION, operation};
use crate::upgrade::fleet::{Fleet, FleetNode, WantedEtcd};
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
    /// Whether this upgrade has begun on it: a Lease or a cordon says so. It is finished before anything new is begun.
    pub begun: bool,
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
        /// The oldest component of a control plane node.
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

/// What kubeadm-config says, as far as a plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The version that it names. `kubeadm upgrade apply` writes it, after the static pods of its node; `kubeadm upgrade node`
    /// follows it.
    pub version: Version,
    /// The tag of etcd's image, where it names one.
    pub etcd: Option<String>,
}

impl Plan {
    /// Plans the way to a target. What a Lease or a cordon of this upgrade names goes first: nothing new begins before it is
    /// finished. Then the node on which `kubeadm upgrade apply` was recorded, then followers, the etcd leader last; workers after, by
    /// name.
    ///
    /// # Errors
    /// When the target cannot be reached from what runs.
    pub fn make(fleet: &Fleet, to: Version, record: &ChainRecord, configured: &Configured) -> Result<Self, PlanError> {
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
        if let Some(error) = unfinished(fleet, to, highest) {
            return Err(error);
        }
        let ours = operation(to);
        let begun = |node: &FleetNode| node.begun.contains(&ours);
        let missing = |node: &FleetNode| {
            let mut missing =
                node.missing(to, record.kubeadm.get(&node.name).copied(), wanted_etcd(record, configured));
            if begun(node) {
                missing.push(format!("{ours} is not finished on it"));
            }
            missing
        };
        let recorded = |node: &FleetNode| record.apply_node.as_ref() == Some(&node.name);
        let mut control_plane: Vec<&FleetNode> =
            fleet.control_plane().filter(|node| !missing(node).is_empty()).collect();
        control_plane.sort_by_key(|node| (!begun(node), !recorded(node), node.leads, node.name.clone()));
        let mut workers: Vec<&FleetNode> = fleet.workers().filter(|node| !missing(node).is_empty()).collect();
        workers.sort_by_key(|node| (!begun(node), node.name.clone()));
        let apply_node = apply_node(&control_plane, to, record, configured);
        let steps = control_plane
            .into_iter()
            .chain(workers)
            .map(|node| NodePlan {
                node: node.name.clone(),
                control_plane: node.control_plane,
                mode: if apply_node == Some(&node.name) { Mode::Apply } else { Mode::Node },
                begun: begun(node),
                missing: missing(node),
            })
            .collect();
        let done = fleet.nodes.iter().filter(|node| missing(node).is_empty()).map(|node| node.name.clone()).collect();
        Ok(Self { from, to, steps, done })
    }
}

/// The etcd that a control plane node on target runs: the one that kubeadm-config names, else the one that the target's kubeadm said it
/// writes; none where nobody has said so yet.
fn wanted_etcd<'a>(record: &'a ChainRecord, configured: &'a Configured) -> Option<WantedEtcd<'a>> {
    let configured = configured.etcd.as_deref().map(|tag| WantedEtcd { tag, by: "kubeadm-config" });
    configured.or(record.etcd.as_deref().map(|tag| WantedEtcd { tag, by: "the target's kubeadm" }))
}

/// An unfinished target is finished before a new one is chosen: skew between control plane nodes shows it, or what a Lease or a cordon
/// names.
fn unfinished(fleet: &Fleet, to: Version, highest: Version) -> Option<PlanError> {
    for node in &fleet.nodes {
        for operation in node.begun.iter().filter_map(|operation| operation.strip_prefix(OPERATION)) {
            if let Ok(other) = operation.parse::<Version>()
                && other != to
            {
                return Some(PlanError::Unfinished {
                    unfinished: other,
                    what: format!("it is not finished on {}", node.name),
                });
            }
        }
    }
    let behind: Vec<String> = fleet
        .control_plane()
        .filter(|node| versions(node).any(|version| version != highest))
        .map(|node| node.name.to_string())
        .collect();
    (highest != to && !behind.is_empty())
        .then(|| PlanError::Unfinished { unfinished: highest, what: format!("{} not on it", behind.join(", ")) })
}

/// The node for `apply`: the recorded one, where it is not done. Else one is needed while kubeadm-config does not name the target: the
/// one that is furthest, since an `apply` that was stopped has changed static pods before it wrote kubeadm-config.
fn apply_node<'a>(
    left: &[&'a FleetNode],
    to: Version,
    record: &ChainRecord,
    configured: &Configured,
) -> Option<&'a NodeName> {
    let recorded = left.iter().find(|node| record.apply_node.as_ref() == Some(&node.name));
    let furthest = || left.iter().find(|node| node.components.get(&Component::Apiserver) == Some(&to));
    match recorded {
        Some(node) => Some(&node.name),
        None if configured.version == to => None,
        None => furthest().or(left.first()).map(|node| &node.name),
    }
}

/// All versions that show on a control plane node but its etcd's.
fn versions(node: &FleetNode) -> impl Iterator<Item = Version> + '_ {
    node.components.values().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::{Cordon, Fact, MemberId};
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
            etcd: control_plane.then(|| "3.6.8-0".to_owned()),
            cordon: Cordon::None,
            ready: Fact::Known(true),
            pressures: Vec::new(),
            member: Some(MemberId(1)),
            leads: false,
            begun: Vec::new(),
        }
    }

    fn configured(text: &str) -> Configured {
        Configured { version: version(text), etcd: None }
    }

    fn make(fleet: &Fleet, to: &str, record: &ChainRecord) -> Result<Plan, PlanError> {
        Plan::make(fleet, version(to), record, &configured("v1.36.1"))
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
        let plan = make(&fleet(), "v1.36.3", &ChainRecord::default()).unwrap();
        assert_eq!(order(&plan), [("k2", Mode::Apply), ("k3", Mode::Node), ("k1", Mode::Node), ("k4", Mode::Node)]);
    }

    #[test]
    fn the_recorded_node_resumes_first_even_when_it_leads_now() {
        let record = ChainRecord { apply_node: Some("k1".into()), ..ChainRecord::default() };
        let plan = make(&fleet(), "v1.36.3", &record).unwrap();
        assert_eq!(order(&plan)[0], ("k1", Mode::Apply));
        assert_eq!(plan.steps.iter().filter(|step| step.mode == Mode::Apply).count(), 1);
    }

    #[test]
    fn r02_nothing_to_do_is_a_plan_without_steps() {
        let plan = make(&fleet(), "v1.36.1", &ChainRecord::default()).unwrap();
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
        let plan = make(&fleet, "v1.36.3", &ChainRecord::default()).unwrap();
        assert_eq!(order(&plan), [("k4", Mode::Node)]);
        assert_eq!(plan.done.len(), 3);
    }

    #[test]
    fn the_kubelet_alone_does_not_make_a_node_done() {
        let mut fleet = fleet();
        fleet.nodes[1].kubelet = version("v1.36.3");
        let plan = make(&fleet, "v1.36.3", &ChainRecord::default()).unwrap();
        assert!(order(&plan).contains(&("k2", Mode::Apply)));
        let mut done = node("k2", "v1.36.3", "v1.36.3");
        assert_eq!(done.missing(version("v1.36.3"), Some(version("v1.36.3")), None), Vec::<String>::new());
        assert_eq!(done.missing(version("v1.36.3"), Some(version("v1.36.1")), None), ["package kubeadm is v1.36.1"]);
        // On target in every version, and still under a Lease or a cordon of this upgrade.
        done.begun = vec!["upgrade-v1.36.3".to_owned()];
        fleet.nodes[1] = done;
        let plan = make(&fleet, "v1.36.3", &ChainRecord::default()).unwrap();
        assert_eq!(plan.steps[0].missing, ["upgrade-v1.36.3 is not finished on it"]);
    }

    #[test]
    fn the_fourth_image_is_compared_where_somebody_says_what_it_is() {
        let done = |etcd: &str| {
            let mut done = node("k1", "v1.36.3", "v1.36.3");
            done.etcd = Some(etcd.to_owned());
            Fleet { nodes: vec![done, node("k4", "", "v1.36.3")] }
        };
        let missing = |fleet: &Fleet, said: Option<&str>, pinned: Option<&str>| {
            let record = ChainRecord { etcd: said.map(str::to_owned), ..ChainRecord::default() };
            let configured = Configured { version: version("v1.36.3"), etcd: pinned.map(str::to_owned) };
            let plan = Plan::make(fleet, version("v1.36.3"), &record, &configured).unwrap();
            plan.steps.into_iter().flat_map(|step| step.missing).collect::<Vec<_>>()
        };
        let nothing = Vec::<String>::new();
        let (same, newer, older) = (done("3.6.8-0"), done("3.7.0-0"), done("3.5.24-0"));
        // A kubeadm of another version cannot say: a finished cluster stays finished.
        assert_eq!(missing(&older, None, None), nothing);
        assert_eq!(missing(&same, Some("3.6.8-0"), None), nothing);
        assert_eq!(
            missing(&older, Some("3.6.8-0"), None),
            ["etcd is 3.5.24-0, and the target's kubeadm wants 3.6.8-0"]
        );
        // kubeadm does not go back.
        assert_eq!(missing(&newer, Some("3.6.8-0"), None), nothing);
        // What kubeadm-config names counts before what kubeadm would take by itself.
        assert_eq!(
            missing(&same, Some("3.6.8-0"), Some("3.7.0-0")),
            ["etcd is 3.6.8-0, and kubeadm-config wants 3.7.0-0"]
        );
        assert_eq!(missing(&newer, Some("3.6.8-0"), Some("3.7.0-0")), nothing);
    }

    #[test]
    fn r34_what_is_half_done_goes_first_whatever_the_order_says() {
        for (half, expected) in [(0, "k1"), (2, "k3"), (3, "k4")] {
            let mut fleet = fleet();
            fleet.nodes[half].begun = vec!["upgrade-v1.36.3".to_owned()];
            if half == 3 {
                // Workers come after the control plane: that is done.
                for node in &mut fleet.nodes[..3] {
                    *node = self::node(&node.name.0.clone(), "v1.36.3", "v1.36.3");
                }
                fleet.nodes.push(node("a-new-worker", "", "v1.36.1"));
            }
            let record = ChainRecord { apply_node: Some("k2".into()), ..ChainRecord::default() };
            let plan = make(&fleet, "v1.36.3", &record).unwrap();
            assert_eq!(plan.steps[0].node.0, expected, "{plan:?}");
        }
        // Another upgrade's is not ours to finish.
        let mut fleet = fleet();
        fleet.nodes[3].begun = vec!["upgrade-v1.36.2".to_owned()];
        let error = make(&fleet, "v1.36.3", &ChainRecord::default()).unwrap_err().to_string();
        assert!(error.contains("quorate upgrade --to v1.36.2") && error.contains("k4"), "{error}");
        fleet.nodes[3].begun = vec!["reboot-1".to_owned()];
        assert!(make(&fleet, "v1.36.3", &ChainRecord::default()).is_ok(), "a reboot is judged, not planned");
    }

    #[test]
    fn h02_somebody_applies_until_kubeadm_config_names_the_target() {
        let applies = |fleet: &Fleet, record: &ChainRecord, configured: &str| {
            let plan = Plan::make(fleet, version("v1.36.3"), record, &self::configured(configured)).unwrap();
            let names: Vec<String> =
                plan.steps.iter().filter(|step| step.mode == Mode::Apply).map(|step| step.node.to_string()).collect();
            names.join(" ")
        };
        let lost = ChainRecord::default();
        let on = |name: &str| ChainRecord { apply_node: Some(name.into()), ..ChainRecord::default() };
        let mut fleet = fleet();
        assert_eq!(applies(&fleet, &lost, "v1.36.1"), "k2");
        // Its record was lost when it had changed the static pods and not yet kubeadm-config.
        fleet.nodes[2] = node("k3", "v1.36.3", "v1.36.1");
        assert_eq!(applies(&fleet, &lost, "v1.36.1"), "k3");
        assert_eq!(applies(&fleet, &on("gone"), "v1.36.1"), "k3");
        assert_eq!(applies(&fleet, &on("k3"), "v1.36.3"), "k3", "the recorded one resumes as it began");
        assert_eq!(applies(&fleet, &on("gone"), "v1.36.3"), "");
        assert_eq!(applies(&fleet, &lost, "v1.36.3"), "");
    }

    #[test]
    fn targets_that_cannot_be_reached_are_refused_with_what_would_be_right() {
        let record = ChainRecord::default();
        for (to, expected) in [("v1.36.0", "choose v1.36.1"), ("v1.38.0", "v1.37 first"), ("v2.0.0", "v1.37 first")] {
            let error = make(&fleet(), to, &record).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let mut half = fleet();
        half.nodes[1] = node("k2", "v1.36.3", "v1.36.3");
        let error = make(&half, "v1.37.0", &record).unwrap_err().to_string();
        assert!(error.contains("quorate upgrade --to v1.36.3"), "{error}");
        // …and the half-done target itself may be finished; `apply` has been there.
        let plan = Plan::make(&half, version("v1.36.3"), &record, &configured("v1.36.3")).unwrap();
        assert_eq!(order(&plan), [("k3", Mode::Node), ("k1", Mode::Node), ("k4", Mode::Node)]);
    }
}
