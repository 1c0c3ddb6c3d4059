//! What a Job is made of: its name, its place, its arguments. Pure.

use super::{CONTAINER, JobError, NAME_LIMIT, OPERATION, TARGET};
use crate::access::APISERVERS;
use crate::clock::Clock;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};
use kube::api::ObjectMeta;
use quorum_safety::NodeName;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Which Job to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The CronJob to copy, such as `quorate-gate`.
    pub template: &'static str,
    /// Its name; see `name`.
    pub name: String,
    /// Arguments of the container, without the program.
    pub args: Vec<String>,
    /// The operation, for its label.
    pub operation: String,
    /// The node it is about, which the Job is pinned to or kept away from.
    pub target: Option<NodeName>,
    /// Where it runs.
    pub placement: Placement,
}

/// Where a Job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On its target: node Jobs only.
    OnTarget,
    /// On this node, which must not be its target (incident R01).
    On(NodeName),
}

/// A deterministic name: `quorate-<operation>-<version>-<8 hex of the node's name>`, dots as dashes, at most 63 characters.
pub fn name(operation: &str, version: Option<&str>, node: Option<&NodeName>) -> String {
    let mut name = format!("quorate-{operation}");
    if let Some(version) = version {
        name.push('-');
        name.push_str(&version.replace('.', "-"));
    }
    name.truncate(NAME_LIMIT - 9);
    if let Some(node) = node {
        name.push('-');
        name.push_str(&short_hash(&node.0));
    }
    name
}

/// A name that no other Job has, for a question whose answer must be new: an answer that was asked for before something changed
/// is no answer to what is asked after it.
pub fn unique_name(operation: &str, node: Option<&NodeName>, clock: Clock) -> String {
    format!("{}-{:x}", name(operation, None, node), clock.now().as_millisecond())
}

/// Eight hexadecimal digits of a text's SHA-256.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The Job that a request asks for.
///
/// # Errors
/// When the template lacks what is needed, or the Job would run on its target.
pub fn render(template: &CronJob, namespace: &str, request: &Request) -> Result<Job, JobError> {
    let wrong = |what: &str| JobError::Template {
        namespace: namespace.to_owned(),
        name: request.template.to_owned(),
        what: what.to_owned(),
    };
    let job_template = template.spec.as_ref().map(|spec| &spec.job_template).ok_or_else(|| wrong("it has no spec"))?;
    let mut spec = job_template.spec.clone().ok_or_else(|| wrong("its jobTemplate has no spec"))?;
    let mut labels = job_template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(OPERATION.to_owned(), request.operation.clone());
    let mut annotations = BTreeMap::new();
    if let Some(target) = &request.target {
        annotations.insert(TARGET.to_owned(), target.0.clone());
    }
    let pod_meta = spec.template.metadata.get_or_insert_with(ObjectMeta::default);
    pod_meta.labels.get_or_insert_with(BTreeMap::new).extend(labels.clone());
    pod_meta.annotations.get_or_insert_with(BTreeMap::new).extend(annotations.clone());
    let pod = spec.template.spec.as_mut().ok_or_else(|| wrong("its pod template has no spec"))?;
    place(pod, request)?;
    let container = pod
        .containers
        .iter_mut()
        .find(|container| container.name == CONTAINER)
        .ok_or_else(|| wrong("it has no container `quorate`"))?;
    container.args = Some(request.args.clone());
    Ok(Job {
        // No ownerReference to the CronJob: it prunes finished Jobs that it owns.
        metadata: ObjectMeta {
            name: Some(request.name.clone()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// Puts the apiservers' own addresses into the container's environment: the Service picks a frozen one one time in three, and is
/// not there at all on a node whose kube-proxy has no rules (seen after kubeadm had replaced it).
pub(super) fn tell_apiservers(job: &mut Job, addresses: &[String]) {
    let containers = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()).map(|pod| &mut pod.containers);
    for container in containers.into_iter().flatten().filter(|container| container.name == CONTAINER) {
        let env = container.env.get_or_insert_with(Vec::new);
        env.retain(|variable| variable.name != APISERVERS);
        env.push(EnvVar { name: APISERVERS.to_owned(), value: Some(addresses.join(",")), value_from: None });
    }
}

fn place(pod: &mut PodSpec, request: &Request) -> Result<(), JobError> {
    match (&request.placement, &request.target) {
        (Placement::OnTarget, Some(target)) => pod.node_name = Some(target.0.clone()),
        (Placement::On(node), Some(target)) if node == target => return Err(JobError::OnItsTarget(target.clone())),
        (Placement::On(node), target) => {
            // The name places it without a scheduler; the affinity is what the kubelet of the target would refuse it by.
            pod.node_name = Some(node.0.clone());
            if let Some(target) = target {
                pod.affinity.get_or_insert_with(Affinity::default).node_affinity = Some(never_on(target));
            }
        }
        (Placement::OnTarget, None) => {}
    }
    Ok(())
}

fn never_on(target: &NodeName) -> NodeAffinity {
    NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_fields: Some(vec![NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "NotIn".to_owned(),
                    values: Some(vec![target.0.clone()]),
                }]),
                match_expressions: None,
            }],
        }),
        preferred_during_scheduling_ignored_during_execution: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> CronJob {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "quorate-step"},
            "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": {"spec": {
                "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}], "restartPolicy": "Never"}}}}}
        }))
        .unwrap()
    }

    fn request(placement: Placement) -> Request {
        Request {
            template: "quorate-step",
            name: name("control-plane", Some("v1.36.3"), Some(&"k2".into())),
            args: vec!["step".to_owned()],
            operation: "upgrade-v1.36.3".to_owned(),
            target: Some("k2".into()),
            placement,
        }
    }

    #[test]
    fn names_fit_a_label() {
        let long = "x".repeat(200);
        for operation in ["gate", long.as_str()] {
            let name = name(operation, Some("v1.36.3"), Some(&NodeName(long.clone())));
            assert!(name.len() <= NAME_LIMIT, "{name}");
        }
        assert_eq!(
            name("worker", Some("v1.36.3"), Some(&"k4".into())),
            format!("quorate-worker-v1-36-3-{}", short_hash("k4"))
        );
        assert_ne!(short_hash("k4"), short_hash("k5"));
    }

    #[test]
    fn r01_a_job_is_never_placed_on_its_target() {
        assert!(matches!(
            render(&template(), "quorate", &request(Placement::On("k2".into()))),
            Err(JobError::OnItsTarget(_))
        ));
        let job = render(&template(), "quorate", &request(Placement::On("k1".into()))).unwrap();
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.node_name.as_deref(), Some("k1"));
        let affinity = serde_json::to_value(pod.affinity.unwrap()).unwrap();
        let field = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
            ["matchFields"][0];
        assert_eq!(field, &serde_json::json!({"key": "metadata.name", "operator": "NotIn", "values": ["k2"]}));
    }

    #[test]
    fn a_node_job_is_pinned_and_owned_by_nobody() {
        let job = render(&template(), "quorate", &request(Placement::OnTarget)).unwrap();
        assert_eq!(job.metadata.owner_references, None);
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.node_name.as_deref(), Some("k2"));
        assert_eq!(pod.containers[0].args.as_deref(), Some(["step".to_owned()].as_slice()));
    }
}
