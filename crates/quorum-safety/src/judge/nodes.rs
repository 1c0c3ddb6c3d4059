//! What is wrong with each control plane node and its apiserver.

use super::case::{Case, Listed};
use super::members;
use crate::disruption::Disruption;
use crate::membership::{MemberId, NodeName};
use crate::observation::{ApiserverView, Component, Cordon, Fact, NodeView};
use crate::reason::{Code, Reason};
use std::collections::{BTreeMap, BTreeSet};

/// A control plane node, and all that is wrong with it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    pub(super) name: &'a NodeName,
    /// What keeps its voter from being healthy.
    pub(super) faults: Vec<Reason>,
    /// What is wrong with its apiserver alone.
    pub(super) apiserver_faults: Vec<Reason>,
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
            let mut faults: Vec<Reason> = views.flat_map(|node| node_faults(case, node)).collect();
            let apiservers: Vec<&ApiserverView> =
                case.seen.apiservers.iter().filter(|apiserver| apiserver.node == *name).collect();
            let certificates = apiservers.iter().filter_map(|apiserver| {
                let whose = format!("kube-apiserver of {name}");
                members::certificate(case, &whose, &apiserver.certificate_expires, apiserver.ready.known().is_some())
            });
            faults.extend(certificates);
            Judged { name, faults, apiserver_faults: apiserver_faults(name, &apiservers) }
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
    faults.extend(cordon(case, node));
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

/// A cordon, unless it belongs to what is asked: one of ours on the node that our Lease names, anybody's on the target.
pub(super) fn cordon(case: &Case<'_>, node: &NodeView) -> Option<Reason> {
    let name = &node.name;
    match &node.cordon {
        Cordon::None => None,
        Cordon::Foreign => {
            (!case.is_own_node(name)).then(|| Reason::new(Code::ForeignCordon, format!("{name} is cordoned")))
        }
        Cordon::Ours(operation) => {
            let own = case.is_own_node(name) && case.own.is_some_and(|own| own.operation == *operation);
            (!own).then(|| Reason::new(Code::OtherDisrupted, format!("{name} is cordoned by {operation}")))
        }
    }
}

fn apiserver_faults(name: &NodeName, apiservers: &[&ApiserverView]) -> Vec<Reason> {
    if apiservers.is_empty() {
        return vec![Reason::new(Code::ApiserverUnanswered, format!("{name} was not asked"))];
    }
    apiservers
        .iter()
        .filter_map(|apiserver| match &apiserver.ready {
            Fact::Known(true) => None,
            Fact::Known(false) => Some(Reason::new(Code::ApiserverNotReady, name.to_string())),
            Fact::Unknown(why) => Some(Reason::new(Code::ApiserverUnanswered, format!("{name}: {why}"))),
        })
        .collect()
}

/// Whether the target exists, as far as it is a node.
pub(super) fn target(case: &Case<'_>) -> Vec<Reason> {
    let nodes = match &case.seen.nodes {
        Fact::Unknown(why) => return vec![Reason::new(Code::NodesUnknown, why.clone())],
        Fact::Known(nodes) => nodes,
    };
    match case.wanted {
        Disruption::Reboot(target) | Disruption::Upgrade(target) => {
            let mut reasons: Vec<Reason> = Vec::new();
            if !nodes.iter().any(|node| node.name == *target) {
                reasons.push(Reason::new(Code::TargetNotANode, format!("the API lists no node {target}")));
            }
            // A member that may run anywhere may run there.
            reasons.extend(case.members.iter().filter_map(|member| members::node_unknown(case, member)));
            reasons
        }
        Disruption::MoveLeader(_)
        | Disruption::Defragment(_)
        | Disruption::AddLearner
        | Disruption::Promote(_)
        | Disruption::Remove(_)
        | Disruption::Replace(_)
        | Disruption::Restore => Vec::new(),
    }
}

/// Two members on one node go down together (incident-like hole of every count of nodes).
pub(super) fn two_members_on_a_node(case: &Case<'_>) -> Vec<Reason> {
    let repaired: Option<MemberId> =
        case.target_member.filter(|_| matches!(case.wanted, Disruption::Remove(_) | Disruption::Replace(_)));
    let mut on: BTreeMap<&NodeName, Vec<String>> = BTreeMap::new();
    for member in case.members.iter().filter(|member| Some(member.id) != repaired) {
        if let Some(node) = member.node() {
            on.entry(node).or_default().push(member.name());
        }
    }
    on.into_iter()
        .filter(|(_, members)| members.len() > 1)
        .map(|(node, mut members)| {
            members.sort();
            Reason::new(Code::TwoMembersOnANode, format!("{} run on {node}", members.join(" and ")))
        })
        .collect()
}
