//! Who asks for a Lease, and what can be seen of who holds it.

use super::lease::{Leases, said};
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use kube::{Api, Client};
use quorum_safety::lock::{Claim, HolderFacts, NodeState, PodRef, PodState, Record, Step};
use quorum_safety::{Fact, NodeName, UnixSeconds};
use std::time::Duration;

/// Somebody who asks for a Lease.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Its identity and what it wants the Lease for.
    pub claim: Claim,
    /// What it is, for people: `step control-plane`.
    pub actor: String,
    /// Its pod; none outside of a pod.
    pub pod: Option<PodRef>,
    /// The node it runs on.
    pub node: NodeName,
    /// `status.nodeInfo.bootID` of that node.
    pub boot_id: String,
}

impl Claimant {
    /// A process in a pod: one attempt, named by the pod's UID.
    ///
    /// # Errors
    /// In words, when the pod or its node could not be read: then it cannot say who it is, and takes no Lease.
    pub async fn in_pod(
        leases: &Leases,
        (namespace, pod): (&str, &str),
        (operation, target): (&str, &NodeName),
        actor: &str,
    ) -> Result<Self, String> {
        let own = leases.get::<Pod, _>(pod, |client| Api::namespaced(client, namespace)).await;
        let own = own.map_err(|why| format!("own pod {namespace}/{pod}: {why}"))?;
        let uid = own.metadata.uid.ok_or_else(|| format!("own pod {namespace}/{pod} has no UID"))?;
        let node = own.spec.and_then(|spec| spec.node_name).ok_or_else(|| format!("own pod {pod} is on no node"))?;
        let seen = leases.get::<Node, _>(&node, Api::all).await.map_err(|why| format!("own node {node}: {why}"))?;
        let NodeState::Present { boot_id, .. } = state_of(&node, seen)? else {
            return Err(format!("own node {node} is not in the API"));
        };
        let attempt: String = uid.chars().take(8).collect();
        Ok(Self {
            claim: Claim {
                identity: format!("{operation}/{target}/{attempt}"),
                operation: operation.to_owned(),
                target: target.clone(),
            },
            actor: actor.to_owned(),
            pod: Some(PodRef { namespace: namespace.to_owned(), name: pod.to_owned(), uid }),
            node: NodeName(node),
            boot_id,
        })
    }

    /// The record that it writes. An adopted operation keeps the time of its beginning.
    pub(crate) fn record(&self, step: Step, since: UnixSeconds, now: UnixSeconds) -> Record {
        Record {
            identity: self.claim.identity.clone(),
            operation: self.claim.operation.clone(),
            target: self.claim.target.clone(),
            actor: self.actor.clone(),
            pod: self.pod.clone(),
            node: self.node.clone(),
            boot_id: self.boot_id.clone(),
            step,
            since,
            step_since: now,
        }
    }
}

/// Looks at the holder of a Lease: its pod, then its node (in this order: a pod that had ended before its node was seen Ready was
/// ended by a kubelet that lived). `silent` and `unit` are the caller's.
pub async fn look(client: &Client, record: &Record, unit: Fact<bool>, silent: bool, limit: Duration) -> HolderFacts {
    let pod = match &record.pod {
        None => Fact::Unknown("the holder does not run in a pod".to_owned()),
        Some(pod) => Fact::from(pod_state(client, pod, limit).await),
    };
    let node = Fact::from(node_state(client, &record.node, limit).await);
    HolderFacts { of: record.identity.clone(), pod, node, unit, silent }
}

async fn pod_state(client: &Client, wanted: &PodRef, limit: Duration) -> Result<PodState, String> {
    let what = format!("pod {}/{}", wanted.namespace, wanted.name);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &wanted.namespace);
    let pod = match tokio::time::timeout(limit, pods.get_opt(&wanted.name)).await {
        Ok(Ok(pod)) => pod,
        Ok(Err(error)) => return Err(format!("{what}: {}", said(&error))),
        Err(_) => return Err(format!("{what}: no answer in {limit:?}")),
    };
    let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&wanted.uid)) else {
        return Ok(PodState::NotFound);
    };
    // Without a status nothing has ended.
    let status = pod.status.unwrap_or_default();
    Ok(if has_ended(&status) {
        PodState::Terminal
    } else if pod.metadata.deletion_timestamp.is_some() || is_terminal(&status) {
        PodState::Terminating
    } else {
        PodState::Running
    })
}

/// The phase alone is no kubelet's word: the garbage collector of pods writes `Failed` for nodes that nobody reaches, and the node may
/// come back with the process alive. (Found by crates/quorum-model.)
fn has_ended(status: &PodStatus) -> bool {
    let containers = [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
    let mut ended = containers.map(|one| one.state.as_ref().is_some_and(|state| state.terminated.is_some())).peekable();
    is_terminal(status) && ended.peek().is_some() && ended.all(|ended| ended)
}

fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

async fn node_state(client: &Client, name: &NodeName, limit: Duration) -> Result<NodeState, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = match tokio::time::timeout(limit, nodes.get_opt(&name.0)).await {
        Ok(Ok(Some(node))) => node,
        Ok(Ok(None)) => return Ok(NodeState::Gone),
        Ok(Err(error)) => return Err(format!("node {name}: {}", said(&error))),
        Err(_) => return Err(format!("node {name}: no answer in {limit:?}")),
    };
    state_of(&name.0, node)
}

fn state_of(name: &str, node: Node) -> Result<NodeState, String> {
    let status = node.status.ok_or_else(|| format!("node {name} has no status"))?;
    let boot_id = status.node_info.map(|info| info.boot_id).filter(|id| !id.is_empty());
    let boot_id = boot_id.ok_or_else(|| format!("node {name} says no boot id"))?;
    let conditions = status.conditions.ok_or_else(|| format!("node {name} has no conditions"))?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let ready = ready.ok_or_else(|| format!("node {name} has no condition Ready"))?.status == "True";
    Ok(NodeState::Present { ready, boot_id })
}
