//! What is wrong with each control plane node and its apiserver.

use super::case::{Case, Listed};
use super::members;
use crate::disruption::Disruption;
use crate::membership::NodeName;
use crate::observation::{ApiserverView, Component, Cordon, Fact, NodeView, Writer};
use crate::reason::{Code, Reason};
use std::collections::{BTreeMap, BTreeSet};

/// A control plane node, and all that is wrong with it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    pub(super) name: &'a NodeName,
    /// What keeps its voter from being healthy.
    pub(super) faults: Vec<Reason>,
    /// What is wrong with it and says nothing of its voter: its apiserver, a shortage.
    pub(super) other_faults: Vec<Reason>,
}

impl Judged<'_> {
    /// All that is a reason by itself: a stranger's cordon on the operation's own node is kept, not obeyed.
    pub(super) fn told(self, case: &Case<'_>) -> impl Iterator<Item = Reason> + use<> {
        let own = case.is_own_node(self.name);
        let faults = self.faults.into_iter().filter(move |fault| !(own && fault.code == Code::ForeignCordon));
        faults.chain(self.other_faults)
    }
}

/// All nodes that are control plane nodes, host a member or were asked for an apiserver. An operation's own node is left out
/// when its health does not count.
pub(super) fn judged<'a>(case: &Case<'a>) -> Vec<Judged<'a>> {
    let labelled = case.nodes().iter().filter(|node| node.control_plane).map(|node| &node.name);
    let hosts = case.members.iter().filter_map(Listed::node);
    let asked = case.seen.apiservers.iter().map(|apiserver| &apiserver.node);
    let names: BTreeSet<&NodeName> = labelled.chain(hosts).chain(asked).collect();
    names
        .into_iter()
        .filter(|name| !case.excuses_node(name))
        .map(|name| {
            let views = case.nodes().iter().filter(|node| node.name == *name);
            let mut other_faults: Vec<Reason> = views.clone().filter_map(under_pressure).collect();
            let mut faults: Vec<Reason> = views.flat_map(|node| node_faults(case, node)).collect();
            let apiservers: Vec<&ApiserverView> =
                case.seen.apiservers.iter().filter(|apiserver| apiserver.node == *name).collect();
            let certificates = apiservers.iter().filter_map(|apiserver| certificate(case, apiserver));
            faults.extend(certificates);
            if apiservers.is_empty() {
                faults.push(unanswered(name, "it was not asked"));
            }
            other_faults.extend(apiserver_faults(name, &apiservers));
            Judged { name, faults, other_faults }
        })
        .collect()
}

fn node_faults(case: &Case<'_>, node: &NodeView) -> Vec<Reason> {
    let name = &node.name;
    let mut faults = Vec::new();
    match &node.ready {
        Fact::Known(true) => {}
        Fact::Known(false) => faults.push(Reason::new(Code::NodeNotReady, name.to_string())),
        Fact::Unknown(why) => faults.push(Reason::new(Code::NodeReadyUnknown, format!("{name}: {why}"))),
    }
    // Nobody stops the target from being cordoned by others, but whoever they are may take its voter down.
    faults.extend(cordon(case, node).or_else(|| (node.cordon == Cordon::Foreign).then(|| foreign_cordon(case, node))));
    match &node.static_pods {
        Fact::Unknown(why) => faults.push(Reason::new(Code::StaticPodsUnknown, format!("{name}: {why}"))),
        Fact::Known(pods) => {
            for component in Component::ALL {
                let of_it = pods.iter().filter(|pod| pod.component == component);
                let what = component.name();
                if of_it.clone().next().is_none() {
                    faults.push(Reason::new(Code::StaticPodNotReady, format!("{what} of {name} is missing")));
                } else if of_it.clone().any(|pod| !pod.ready) {
                    faults.push(Reason::new(Code::StaticPodNotReady, format!("{what} of {name} is not ready")));
                }
            }
        }
    }
    let hosts_member = case.members.iter().any(|member| member.node() == Some(name));
    if node.control_plane && !hosts_member && case.membership().is_some() {
        faults.push(Reason::new(Code::NodeWithoutMember, name.to_string()));
    }
    faults
}

/// The conditions by which a kubelet says that it evicts pods and may take no new ones. Static pods stay, so the voter counts; other
/// conditions mean whatever their authors meant.
const PRESSURES: [&str; 3] = ["DiskPressure", "MemoryPressure", "PIDPressure"];

fn under_pressure(node: &NodeView) -> Option<Reason> {
    let pressures: BTreeSet<&str> =
        node.pressures.iter().map(String::as_str).filter(|condition| PRESSURES.contains(condition)).collect();
    let list = pressures.into_iter().collect::<Vec<&str>>().join(", ");
    (!list.is_empty()).then(|| Reason::new(Code::NodeUnderPressure, format!("{}: {list}", node.name)))
}

/// A cordon, unless it belongs to what is asked: one of ours on the node that our Lease names, anybody's on the target.
pub(super) fn cordon(case: &Case<'_>, node: &NodeView) -> Option<Reason> {
    let name = &node.name;
    match &node.cordon {
        Cordon::None => None,
        Cordon::Foreign => (!case.is_own_node(name)).then(|| foreign_cordon(case, node)),
        Cordon::Ours(operation) => {
            let own = case.is_own_node(name) && case.own.is_some_and(|own| own.operation == *operation);
            (!own).then(|| Reason::new(Code::OtherDisrupted, format!("{name} is cordoned by {operation}")))
        }
    }
}

fn foreign_cordon(case: &Case<'_>, node: &NodeView) -> Reason {
    let name = &node.name;
    let detail = match &node.cordoned_by {
        Some(Writer { manager, at: Some(at) }) => {
            let minutes = case.seen.taken_at.0.saturating_sub(at.0).checked_div(60).unwrap_or(0);
            format!("{name} is cordoned by {manager}, which wrote to it last {minutes} min before")
        }
        Some(Writer { manager, at: None }) => format!("{name} is cordoned by {manager}"),
        None => format!("{name} is cordoned, and the API does not tell by whom"),
    };
    Reason::new(Code::ForeignCordon, detail)
}

/// The certificate of an apiserver. If it is not known because nobody answered, that is told instead.
fn certificate(case: &Case<'_>, apiserver: &ApiserverView) -> Option<Reason> {
    match (&apiserver.ready, &apiserver.certificate_expires) {
        (Fact::Unknown(why), Fact::Unknown(_)) => Some(unanswered(&apiserver.node, why)),
        (_, expires) => members::certificate(case, &format!("kube-apiserver of {}", apiserver.node), expires),
    }
}

fn unanswered(node: &NodeName, why: &str) -> Reason {
    Reason::new(Code::ApiserverUnanswered, format!("{node}: {why}"))
}

fn apiserver_faults(name: &NodeName, apiservers: &[&ApiserverView]) -> Vec<Reason> {
    if apiservers.is_empty() {
        return vec![unanswered(name, "it was not asked")];
    }
    apiservers
        .iter()
        .filter_map(|apiserver| match &apiserver.ready {
            Fact::Known(true) => None,
            Fact::Known(false) => Some(Reason::new(Code::ApiserverNotReady, name.to_string())),
            Fact::Unknown(why) => Some(unanswered(name, why)),
        })
        .collect()
}

/// Whether the nodes are known, and the target among them.
pub(super) fn target(case: &Case<'_>) -> Option<Reason> {
    let nodes = match &case.seen.nodes {
        Fact::Unknown(why) => return Some(Reason::new(Code::NodesUnknown, why.clone())),
        Fact::Known(nodes) => nodes,
    };
    match case.wanted {
        Disruption::Reboot(target) | Disruption::Upgrade(target) => {
            let listed = nodes.iter().any(|node| node.name == *target);
            (!listed).then(|| Reason::new(Code::TargetNotANode, format!("the API lists no node {target}")))
        }
        Disruption::MoveLeader(_)
        | Disruption::Defragment(_)
        | Disruption::AddLearner
        | Disruption::Promote(_)
        | Disruption::Remove(_)
        | Disruption::Replace(_)
        | Disruption::Restore => None,
    }
}

/// Where each member runs. A member that may run anywhere may run on the target, and two on one node go down together. Taking
/// a member away mends both, so it is not held by them.
pub(super) fn places(case: &Case<'_>) -> Vec<Reason> {
    if matches!(case.wanted, Disruption::Remove(_) | Disruption::Replace(_)) {
        return Vec::new();
    }
    let mut reasons: Vec<Reason> =
        case.members.iter().filter_map(|member| members::node_unknown(case, member)).collect();
    let mut on: BTreeMap<&NodeName, Vec<String>> = BTreeMap::new();
    for member in &case.members {
        if let Some(node) = member.node() {
            on.entry(node).or_default().push(member.name());
        }
    }
    reasons.extend(on.into_iter().filter(|(_, members)| members.len() > 1).map(|(node, mut members)| {
        members.sort();
        Reason::new(Code::TwoMembersOnANode, format!("{} run on {node}", members.join(" and ")))
    }));
    reasons
}
