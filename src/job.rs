//! Jobs made from the templates in the cluster: suspended CronJobs whose `jobTemplate` is copied, so that service account,
//! image and mounts are what the manifests say. `render` is pure; the rest speaks to the API.

use crate::access::{APISERVERS, Access, AccessError};
use crate::clock::Clock;
use crate::observe::cluster::CONTROL_PLANE;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
};
use kube::api::{DeleteParams, ListParams, LogParams, ObjectMeta, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Client};
use quorum_safety::{Cordon, NodeName, NodeView};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

/// Label of everything that belongs to an operation; its value names it.
pub const OPERATION: &str = "quorate.dev/operation";
/// Annotation of a Job: the node it is about.
pub const TARGET: &str = "quorate.dev/target";
/// The container of every template that runs the binary.
pub const CONTAINER: &str = "quorate";
/// Longest name of a Job: its pods carry it as a label value.
pub const NAME_LIMIT: usize = 63;

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

/// What can go wrong with a Job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The template is missing or not as expected.
    #[error("template CronJob {namespace}/{name}: {what}; apply kustomize/base again")]
    Template {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A Job would run on the node that it takes down.
    #[error("a Job about {0} must not run on it")]
    OnItsTarget(NodeName),
    /// No apiserver answered.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A request failed.
    #[error("cannot {what}: {source}")]
    Request {
        /// What was tried.
        what: String,
        /// Why not.
        source: kube::Error,
    },
    /// Its pod did not run on any node.
    #[error("the Job's pod did not start: {0}")]
    NotStarted(String),
    /// It did not end in time.
    #[error("Job {name} did not end in {seconds} s: {state}")]
    NotEnded {
        /// The Job.
        name: String,
        /// How long was waited.
        seconds: u64,
        /// Its pod's state when the wait was given up.
        state: String,
    },
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

/// The InternalIPs of the control plane nodes.
async fn control_plane_addresses(client: &Client) -> Result<Vec<String>, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&ListParams::default().labels(CONTROL_PLANE)).await?;
    let addresses = list.items.into_iter().filter_map(|node| node.status.and_then(|status| status.addresses)).flatten();
    Ok(addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address).collect())
}

/// Puts the apiservers' own addresses into the container's environment: the Service picks a frozen one one time in three, and is
/// not there at all on a node whose kube-proxy has no rules (seen after kubeadm had replaced it).
fn tell_apiservers(job: &mut Job, addresses: &[String]) {
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

/// How a Job came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It was made now.
    New,
    /// One of that name is running: it is followed (incident R09).
    Running,
}

/// Whether a Job has ended: `Some(true)` when it completed.
pub fn ended(job: &Job) -> Option<bool> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| {
        match condition.type_.as_str() {
            "Complete" => Some(true),
            "Failed" => Some(false),
            _ => None,
        }
    })
}

/// How a Job's container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Name of the pod.
    pub pod: String,
    /// The node it ran on.
    pub node: String,
    /// Exit code of the container.
    pub exit_code: i32,
    /// What it left in the termination message.
    pub message: String,
}

/// How a Job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ended; its state in words.
    Going(String),
    /// Ended.
    Ended(End),
}

/// The Jobs of the namespace.
#[derive(Clone)]
pub struct Jobs<'a> {
    access: &'a Access,
    /// Addresses of apiservers that are asked last: the target's.
    avoid: Vec<String>,
}

impl<'a> Jobs<'a> {
    /// Jobs reached through any apiserver but those at `avoid`, which are asked last.
    pub fn new(access: &'a Access, avoid: Vec<String>) -> Self {
        Self { access, avoid }
    }

    async fn api(&self) -> Result<Api<Job>, JobError> {
        Ok(Api::namespaced(self.access.live(&self.avoid).await?, &self.access.namespace))
    }

    /// Makes a Job. One of that name that runs is followed; one that has ended is replaced: a completed refusal is judged
    /// again, a failure is tried again (incident R09).
    ///
    /// # Errors
    /// When the template is not as expected or the API refuses.
    pub async fn start(&self, request: &Request) -> Result<Started, JobError> {
        let client = self.access.live(&self.avoid).await?;
        let templates: Api<CronJob> = Api::namespaced(client.clone(), &self.access.namespace);
        let template = templates.get(request.template).await.map_err(|error| JobError::Template {
            namespace: self.access.namespace.clone(),
            name: request.template.to_owned(),
            what: error.to_string(),
        })?;
        let mut job = render(&template, &self.access.namespace, request)?;
        let servers = control_plane_addresses(&client).await;
        tell_apiservers(
            &mut job,
            &servers.map_err(|source| JobError::Request { what: "list the nodes".to_owned(), source })?,
        );
        let jobs: Api<Job> = Api::namespaced(client, &self.access.namespace);
        let failed = |what: &str| {
            let what = format!("{what} Job {}", request.name);
            move |source| JobError::Request { what, source }
        };
        for _ in 0..5 {
            match jobs.create(&PostParams::default(), &job).await {
                Ok(_) => return Ok(Started::New),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed("create")(error)),
            }
            let Some(present) = jobs.get_opt(&request.name).await.map_err(failed("read"))? else { continue };
            // A pod that has succeeded is the end, also while the Job's own status says nothing of it yet: whoever followed it now
            // would get the answer to an earlier question.
            let over = ended(&present).is_some() || matches!(self.look(&request.name).await?, State::Ended(_));
            if !over && present.metadata.deletion_timestamp.is_none() {
                return Ok(Started::Running);
            }
            self.delete_exactly(&jobs, &present).await?;
        }
        Err(JobError::NotStarted(format!("Job {} is there and cannot be replaced", request.name)))
    }

    /// Deletes that very Job, with its pods, and waits until it is gone.
    async fn delete_exactly(&self, jobs: &Api<Job>, job: &Job) -> Result<(), JobError> {
        let name = job.metadata.name.clone().unwrap_or_default();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions { uid: job.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let failed = |source| JobError::Request { what: format!("delete Job {name}"), source };
        match jobs.delete(&name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        for _ in 0..60 {
            match jobs.get_opt(&name).await.map_err(failed)? {
                Some(present) if present.metadata.uid == job.metadata.uid => {}
                _ => return Ok(()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(JobError::NotStarted(format!("Job {name} does not go away")))
    }

    /// Deletes a Job and its pods, if it is there.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn delete(&self, name: &str) -> Result<(), JobError> {
        let jobs = self.api().await?;
        match jobs
            .get_opt(name)
            .await
            .map_err(|source| JobError::Request { what: format!("read Job {name}"), source })?
        {
            Some(job) => self.delete_exactly(&jobs, &job).await,
            None => Ok(()),
        }
    }

    /// Tells the cluster that a Job is of no more use; it goes by itself, with its pods.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn discard(&self, name: &str) -> Result<(), JobError> {
        match self.api().await?.delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(JobError::Request { what: format!("delete Job {name}"), source }),
        }
    }

    /// The Job of that name.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Job>, JobError> {
        let jobs = self.api().await?;
        jobs.get_opt(name).await.map_err(|source| JobError::Request { what: format!("read Job {name}"), source })
    }

    /// All Jobs of an operation.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn of_operation(&self, operation: &str) -> Result<Vec<Job>, JobError> {
        let jobs = self.api().await?;
        let params = ListParams::default().labels(&format!("{OPERATION}={operation}"));
        match jobs.list(&params).await {
            Ok(list) => Ok(list.items),
            Err(source) => Err(JobError::Request { what: format!("list the Jobs of {operation}"), source }),
        }
    }

    /// The newest pod of a Job.
    async fn pod(&self, name: &str) -> Result<Option<Pod>, JobError> {
        let pods: Api<Pod> = Api::namespaced(self.access.live(&self.avoid).await?, &self.access.namespace);
        let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let list = pods
            .list(&params)
            .await
            .map_err(|source| JobError::Request { what: format!("list the pods of Job {name}"), source })?;
        Ok(list.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0)))
    }

    /// Waits until the Job's pod runs or has ended.
    ///
    /// # Errors
    /// When it does not within the deadline: why it is Pending.
    pub async fn wait_started(&self, name: &str, deadline: Duration) -> Result<(), JobError> {
        let until = tokio::time::Instant::now() + deadline;
        let mut state = "no pod yet".to_owned();
        loop {
            match self.pod(name).await {
                Ok(Some(pod)) => match phase(&pod) {
                    "Pending" => state = why_pending(&pod),
                    _ => return Ok(()),
                },
                Ok(None) => {}
                // The apiserver that was asked may be the one that has just died: ask another until the deadline.
                Err(error) => state = error.to_string(),
            }
            if tokio::time::Instant::now() >= until {
                return Err(JobError::NotStarted(state));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Waits until the Job has ended and reads how. A pod that failed is not the end while the Job makes another one.
    ///
    /// # Errors
    /// When it does not end within the deadline.
    pub async fn wait_end(&self, name: &str, deadline: Duration) -> Result<End, JobError> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            let state = match self.look(name).await {
                Ok(State::Ended(end)) => return Ok(end),
                Ok(State::Going(state)) => state,
                // The apiserver that was asked may be the one that restarts: another is asked until the deadline.
                Err(error) => error.to_string(),
            };
            if tokio::time::Instant::now() >= until {
                return Err(JobError::NotEnded { name: name.to_owned(), seconds: deadline.as_secs(), state });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// How a Job stands now.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn look(&self, name: &str) -> Result<State, JobError> {
        let Some(pod) = self.pod(name).await? else { return Ok(State::Going("it has no pod".to_owned())) };
        match end_of(&pod) {
            Some(end) if end.exit_code == 0 => Ok(State::Ended(end)),
            Some(end) => match self.get(name).await? {
                Some(job) if ended(&job).is_some() => Ok(State::Ended(end)),
                _ => Ok(State::Going(format!("its pod {} on {} ended with {}", end.pod, end.node, end.exit_code))),
            },
            None => Ok(State::Going(format!("its pod is {}", phase(&pod)))),
        }
    }

    /// Name of the newest pod of a Job.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn pod_name(&self, name: &str) -> Result<Option<String>, JobError> {
        Ok(self.pod(name).await?.and_then(|pod| pod.metadata.name))
    }

    /// What the container wrote to standard output and error. A Job's answer is the JSON document in it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn log(&self, pod: &str) -> Result<String, JobError> {
        let pods: Api<Pod> = Api::namespaced(self.access.live(&self.avoid).await?, &self.access.namespace);
        let params = LogParams { container: Some(CONTAINER.to_owned()), ..LogParams::default() };
        pods.logs(pod, &params)
            .await
            .map_err(|source| JobError::Request { what: format!("read the log of pod {pod}"), source })
    }
}

impl Jobs<'_> {
    /// Runs a Job on the first candidate whose kubelet starts it: a node that has just died is still Ready for half a minute
    /// and may be tried first.
    ///
    /// # Errors
    /// `NotStarted` with each candidate's reason when none did.
    pub async fn run_somewhere(
        &self,
        candidates: &[NodeName],
        make: impl Fn(&NodeName) -> Request,
        start: Duration,
        deadline: Duration,
    ) -> Result<End, JobError> {
        let name = self.start_somewhere(candidates, make, start).await?;
        self.wait_end(&name, deadline).await
    }

    /// Starts a Job on the first candidate whose kubelet runs it, and gives its name.
    ///
    /// # Errors
    /// `NotStarted` with each candidate's reason when none did.
    pub async fn start_somewhere(
        &self,
        candidates: &[NodeName],
        make: impl Fn(&NodeName) -> Request,
        start: Duration,
    ) -> Result<String, JobError> {
        let mut said = Vec::new();
        for place in candidates {
            let request = make(place);
            self.start(&request).await?;
            match self.wait_started(&request.name, start).await {
                Ok(()) => return Ok(request.name),
                Err(JobError::NotStarted(why)) => {
                    said.push(why);
                    self.delete(&request.name).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(JobError::NotStarted(said.join("; ")))
    }
}

/// The control plane nodes on which a Job about `target` may run, the likeliest first: Ready before not, not cordoned before
/// cordoned, then by name.
pub fn candidates(nodes: &[NodeView], target: Option<&NodeName>) -> Vec<NodeName> {
    let mut fit: Vec<&NodeView> =
        nodes.iter().filter(|node| node.control_plane && Some(&node.name) != target).collect();
    fit.sort_by_key(|node| (node.ready.known() != Some(&true), node.cordon != Cordon::None, node.name.clone()));
    fit.into_iter().map(|node| node.name.clone()).collect()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Why a pod is Pending, in the cluster's own words.
fn why_pending(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    let status = pod.status.as_ref();
    let waiting = status
        .and_then(|status| status.container_statuses.as_ref())
        .and_then(|list| list.first())
        .and_then(|container| container.state.as_ref())
        .and_then(|state| state.waiting.as_ref())
        .map(|waiting| {
            format!("{} {}", waiting.reason.as_deref().unwrap_or(""), waiting.message.as_deref().unwrap_or(""))
        });
    let condition = status.and_then(|status| status.conditions.as_ref()).and_then(|list| {
        list.iter().find(|condition| condition.status != "True").and_then(|condition| condition.message.clone())
    });
    let why = waiting.or(condition).unwrap_or_else(|| "the kubelet has said nothing yet".to_owned());
    format!("Pending on {node}: {}", why.trim())
}

/// How the pod's container ended, once it has.
fn end_of(pod: &Pod) -> Option<End> {
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
