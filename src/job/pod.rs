//! What a pod says about itself: whether it runs, why not, how it ended. Pure.

use super::{CONTAINER, End};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod};

pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Why its container does not run yet, by its kubelet; none when that has said nothing.
fn waiting(pod: &Pod) -> Option<&ContainerStateWaiting> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.first()?.state.as_ref()?.waiting.as_ref()
}

/// Whether its kubelet is at work on a pod that is Pending and has met no error.
pub(super) fn is_begun(pod: &Pod) -> bool {
    waiting(pod).and_then(|waiting| waiting.reason.as_deref()) == Some("ContainerCreating")
}

/// Why a pod is Pending, in the cluster's own words.
pub(super) fn why_pending(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    let status = pod.status.as_ref();
    let waiting = waiting(pod).map(|waiting| {
        format!("{} {}", waiting.reason.as_deref().unwrap_or(""), waiting.message.as_deref().unwrap_or(""))
    });
    let condition = status.and_then(|status| status.conditions.as_ref()).and_then(|list| {
        list.iter().find(|condition| condition.status != "True").and_then(|condition| condition.message.clone())
    });
    let why = waiting.or(condition).unwrap_or_else(|| "the kubelet has said nothing yet".to_owned());
    format!("Pending on {node}: {}", why.trim())
}

/// How the pod's container ended, once it has.
pub(super) fn end_of(pod: &Pod) -> Option<End> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref()?;
    if phase != "Succeeded" && phase != "Failed" {
        return None;
    }
    let container = status.container_statuses.as_ref().and_then(|list| list.iter().find(|c| c.name == CONTAINER));
    let terminated =
        container.and_then(|container| container.state.as_ref()).and_then(|state| state.terminated.as_ref());
    Some(End {
        pod: pod.metadata.name.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        // Rejected by the kubelet, or its status was lost: no code of ours.
        exit_code: terminated.map_or(-1, |terminated| terminated.exit_code),
        message: terminated
            .and_then(|terminated| terminated.message.clone())
            .or_else(|| status.message.clone())
            .or_else(|| status.reason.clone())
            .unwrap_or_default(),
    })
}
