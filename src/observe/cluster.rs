//! Reads what the Kubernetes API knows: nodes, their conditions and cordons, and the mirror pods of the control plane.

use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use quorum_safety::{Component, Fact, NodeName, NodeView, StaticPodView, UnixSeconds};
use std::time::Duration;

/// The label of a control plane node.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// The annotation by which a cordon of ours is known; its value is JSON with the key `operation`.
pub const CORDON: &str = "quorate.dev/cordon";
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// What the API says.
pub struct ClusterView {
    /// UID of kube-system.
    pub uid: Fact<String>,
    /// All nodes.
    pub nodes: Fact<Vec<NodeView>>,
}

/// Reads it all, each request with its own deadline.
pub async fn observe(client: &Client, deadline: Duration) -> ClusterView {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    let everything = ListParams::default();
    let static_pods = ListParams::default().labels("tier=control-plane");
    // One after the other, on one connection: its answers take milliseconds, and each further connection another TLS handshake.
    let nodes = within(deadline, nodes.list(&everything)).await;
    let pods = within(deadline, pods.list(&static_pods)).await;
    let system = within(deadline, namespaces.get("kube-system")).await;
    let uid = system
        .and_then(|system| system.metadata.uid.ok_or_else(|| "namespace kube-system has no UID".to_owned()))
        .into();
    let nodes = nodes
        .and_then(|list| {
            complete(&list.metadata)?;
            let pods = pods.and_then(|list| complete(&list.metadata).map(|()| list.items));
            list.items.iter().map(|node| node_view(node, &pods)).collect()
        })
        .into();
    ClusterView { uid, nodes }
}

/// One request with a deadline; an error as words.
pub(crate) async fn within<T>(
    deadline: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", deadline.as_secs_f32())),
    }
}

/// A list that was cut short is not the list.
pub(crate) fn complete(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta) -> Result<(), String> {
    match metadata.continue_.as_deref() {
        None | Some("") => Ok(()),
        Some(_) => Err("the API gave only a part of the list".to_owned()),
    }
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or(&[])
}

/// Whether a node is Ready; what the API itself does not know is not known.
pub(crate) fn ready(node: &Node) -> Fact<bool> {
    match conditions(node).iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) if condition.status == "True" => Fact::Known(true),
        Some(condition) if condition.status == "False" => Fact::Known(false),
        Some(condition) => {
            let message = condition.message.as_deref().unwrap_or("no reason given");
            Fact::Unknown(format!("condition Ready is {}: {message}", condition.status))
        }
        None => Fact::Unknown("the node has no condition Ready".to_owned()),
    }
}

fn node_view(node: &Node, pods: &Result<Vec<Pod>, String>) -> Result<NodeView, String> {
    let name = node.metadata.name.clone().ok_or("a node without a name")?;
    let labels = node.metadata.labels.as_ref();
    let control_plane = labels.is_some_and(|labels| labels.contains_key(CONTROL_PLANE));
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let address = addresses
        .and_then(|list| list.iter().find(|address| address.type_ == "InternalIP"))
        .map_or_else(|| Fact::Unknown("the node has no InternalIP".to_owned()), |a| Fact::Known(a.address.clone()));
    let conditions = conditions(node);
    let ready = ready(node);
    let pressures = conditions
        .iter()
        .filter(|condition| condition.type_ != "Ready" && condition.status != "False")
        .map(|condition| condition.type_.clone())
        .collect();
    let info = status.and_then(|status| status.node_info.as_ref());
    let reported = |value: Option<&String>, what: &str| match value.filter(|value| !value.is_empty()) {
        Some(value) => Fact::Known(value.clone()),
        None => Fact::Unknown(format!("the node reports no {what}")),
    };
    let name = NodeName(name);
    let static_pods = if control_plane {
        match pods {
            Ok(pods) => Fact::from(static_pods_of(&name, pods)),
            Err(why) => Fact::Unknown(why.clone()),
        }
    } else {
        Fact::Known(Vec::new())
    };
    Ok(NodeView {
        control_plane,
        address,
        ready,
        pressures,
        boot_id: reported(info.map(|info| &info.boot_id), "boot id"),
        kubelet_version: reported(info.map(|info| &info.kubelet_version), "kubelet version"),
        cordoned_by: crate::drain::cordon::foreign_writer(node),
        cordon: crate::drain::cordon::read(node),
        static_pods,
        name,
    })
}

/// The mirror pods on a node, one for each component. A second one for the same component (a stray manifest, incident R21)
/// is an error: which of them serves is not known.
fn static_pods_of(node: &NodeName, pods: &[Pod]) -> Result<Vec<StaticPodView>, String> {
    let mut views: Vec<StaticPodView> = Vec::new();
    for pod in pods {
        let spec = pod.spec.as_ref();
        if spec.and_then(|spec| spec.node_name.as_deref()) != Some(node.0.as_str()) {
            continue;
        }
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("component"));
        let Some(component) = Component::ALL.into_iter().find(|component| label.is_some_and(|l| l == component.name()))
        else {
            continue;
        };
        let config_hash = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(CONFIG_HASH))
            .ok_or_else(|| format!("the mirror pod of {} has no {CONFIG_HASH}", component.name()))?;
        if views.iter().any(|view| view.component == component) {
            return Err(format!(
                "two mirror pods of {} on {node}: is there a stray file among its manifests?",
                component.name()
            ));
        }
        let status = pod.status.as_ref();
        let running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|list| list.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
        let started_at = status
            .and_then(|status| status.container_statuses.as_ref())
            .and_then(|list| list.first())
            .and_then(|container| container.state.as_ref())
            .and_then(|state| state.running.as_ref())
            .and_then(|running| running.started_at.as_ref())
            .map(|time| UnixSeconds(time.0.as_second()));
        let image = spec
            .and_then(|spec| spec.containers.first())
            .and_then(|container| container.image.clone())
            .ok_or_else(|| format!("the mirror pod of {} names no image", component.name()))?;
        views.push(StaticPodView {
            component,
            ready: running && ready,
            image,
            config_hash: config_hash.clone(),
            started_at,
        });
    }
    views.sort_by_key(|view| view.component);
    Ok(views)
}
