//! Jobs made from the templates in the cluster: suspended CronJobs whose `jobTemplate` is copied, so that service account,
//! image and mounts are what the manifests say. This file speaks to the API; what a Job is made of and what a pod says are pure.

use crate::access::{Access, AccessError, ROUNDS, ReadError, unanswered};
use crate::observe::cluster::CONTROL_PLANE;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams, Preconditions};
use kube::{Api, Client};
use quorum_safety::{Cordon, NodeName, NodeView};
use std::time::Duration;

mod pod;
mod render;

use pod::{end_of, is_begun, phase, why_pending};
use render::tell_apiservers;
pub use render::{Placement, Request, name, render, short_hash, unique_name};

/// Label of everything that belongs to an operation; its value names it.
pub const OPERATION: &str = "quorate.dev/operation";
/// Annotation of a Job: the node it is about.
pub const TARGET: &str = "quorate.dev/target";
/// The container of every template that runs the binary.
pub const CONTAINER: &str = "quorate";
/// The argument of a step that only finishes or undoes.
pub const FINISH_ONLY: &str = "--finish-only";
/// Longest name of a Job: its pods carry it as a label value.
pub const NAME_LIMIT: usize = 63;

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

/// The InternalIPs of the control plane nodes.
async fn control_plane_addresses(client: &Client) -> Result<Vec<String>, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&ListParams::default().labels(CONTROL_PLANE)).await?;
    let addresses = list.items.into_iter().filter_map(|node| node.status.and_then(|status| status.addresses)).flatten();
    Ok(addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address).collect())
}

/// Deletes a Job, in the background with its pods; with a UID that very one. False when it was not there any more.
async fn delete(jobs: &Api<Job>, name: &str, uid: Option<String>) -> Result<bool, JobError> {
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::background() };
    match jobs.delete(name, &params).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(source) => Err(JobError::Request { what: format!("delete Job {name}"), source }),
    }
}

/// How a Job came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It was made now; its UID.
    New(Option<String>),
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

/// The arguments of a Job's container; none when it is no Job of ours.
pub fn args(job: &Job) -> &[String] {
    let args = || {
        let pod = job.spec.as_ref()?.template.spec.as_ref()?;
        pod.containers.iter().find(|container| container.name == CONTAINER)?.args.as_deref()
    };
    args().unwrap_or_default()
}

/// Whether it is a step of an upgrade, and not a node Job that a step starts.
pub fn is_step(job: &Job) -> bool {
    args(job).first().is_some_and(|first| first == "step")
}

/// Whether it is a step that only finishes or undoes what is half done, and no part of a chain.
pub fn finishes_only(job: &Job) -> bool {
    is_step(job) && args(job).iter().any(|arg| arg == FINISH_ONLY)
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
    /// Not ended, and nothing more will be heard of it: its node is silent or gone; which, in words.
    Stranded(String),
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

    /// Asks something that changes nothing, again where there was no answer.
    async fn read<T, F>(&self, what: &str, request: impl Fn(Client) -> F) -> Result<T, JobError>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        self.access.read(&self.avoid, request).await.map_err(|error| match error {
            ReadError::Access(error) => JobError::Access(error),
            ReadError::Api(source) => JobError::Request { what: what.to_owned(), source },
        })
    }

    fn jobs(&self, client: Client) -> Api<Job> {
        Api::namespaced(client, &self.access.namespace)
    }

    /// Makes a Job. One of that name that runs is followed; one that has ended is replaced: a completed refusal is judged
    /// again, a failure is tried again (incident R09).
    ///
    /// # Errors
    /// When the template is not as expected or the API refuses.
    pub async fn start(&self, request: &Request) -> Result<Started, JobError> {
        let mut left = ROUNDS;
        loop {
            left -= 1;
            match self.start_once(request).await {
                // Whether it was made shows when it is made again: one of that name is there then.
                Err(JobError::Request { what, source }) if left > 0 && unanswered(&source) => {
                    tracing::info!(what, %source, "Starting it again");
                }
                other => return other,
            }
        }
    }

    async fn start_once(&self, request: &Request) -> Result<Started, JobError> {
        let client = self.access.live(&self.avoid).await?;
        let templates: Api<CronJob> = Api::namespaced(client.clone(), &self.access.namespace);
        let template = templates.get(request.template).await.map_err(|source| match source {
            kube::Error::Api(status) => JobError::Template {
                namespace: self.access.namespace.clone(),
                name: request.template.to_owned(),
                what: status.to_string(),
            },
            source => JobError::Request { what: format!("read the template {}", request.template), source },
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
                Ok(made) => return Ok(Started::New(made.metadata.uid)),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed("create")(error)),
            }
            let Some(present) = jobs.get_opt(&request.name).await.map_err(failed("read"))? else { continue };
            // A pod that has succeeded is the end, also while the Job's own status says nothing of it yet: whoever followed it now
            // would get the answer to an earlier question.
            let over = ended(&present).is_some()
                || matches!(self.look(&request.name).await?, State::Ended(_) | State::Stranded(_));
            if !over && present.metadata.deletion_timestamp.is_none() {
                return Ok(Started::Running);
            }
            self.delete_exactly(&jobs, &present).await?;
        }
        Err(JobError::NotStarted(format!("Job {} is there and cannot be replaced", request.name)))
    }

    /// Deletes that very Job and waits until it is gone. Its pods go by themselves: one on a dead node is Terminating for as long as
    /// the node is dead, and must not be waited for.
    async fn delete_exactly(&self, jobs: &Api<Job>, job: &Job) -> Result<(), JobError> {
        let name = job.metadata.name.clone().unwrap_or_default();
        if !delete(jobs, &name, job.metadata.uid.clone()).await? {
            return Ok(());
        }
        let failed = |source| JobError::Request { what: format!("read Job {name}"), source };
        for _ in 0..60 {
            match jobs.get_opt(&name).await.map_err(failed)? {
                Some(present) if present.metadata.uid == job.metadata.uid => {}
                _ => return Ok(()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(JobError::NotStarted(format!("Job {name} does not go away")))
    }

    /// Tells the cluster that a Job is of no more use; it goes by itself, with its pods.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn discard(&self, name: &str) -> Result<(), JobError> {
        self.discard_this(name, None).await
    }

    /// The same, of the Job with this UID only: another of that name is somebody else's.
    async fn discard_this(&self, name: &str, uid: Option<String>) -> Result<(), JobError> {
        let client = self.access.live(&self.avoid).await?;
        delete(&self.jobs(client), name, uid).await.map(drop)
    }

    /// The Job of that name.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Job>, JobError> {
        let what = format!("read Job {name}");
        self.read(&what, |client| async move { self.jobs(client).get_opt(name).await }).await
    }

    /// All Jobs of ours.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn all(&self) -> Result<Vec<Job>, JobError> {
        let params = &ListParams::default();
        Ok(self.read("list the Jobs", |client| async move { self.jobs(client).list(params).await }).await?.items)
    }

    /// All Jobs of an operation.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn of_operation(&self, operation: &str) -> Result<Vec<Job>, JobError> {
        let params = ListParams::default().labels(&format!("{OPERATION}={operation}"));
        let (what, params) = (format!("list the Jobs of {operation}"), &params);
        Ok(self.read(&what, |client| async move { self.jobs(client).list(params).await }).await?.items)
    }

    /// The newest pod of a Job; never one of an earlier Job of that name, whose pods may outlive it.
    async fn pod(&self, name: &str) -> Result<Option<Pod>, JobError> {
        let Some(uid) = self.get(name).await?.and_then(|job| job.metadata.uid) else { return Ok(None) };
        let params = ListParams::default().labels(&format!("batch.kubernetes.io/controller-uid={uid}"));
        let (what, params) = (format!("list the pods of Job {name}"), &params);
        let list =
            self.read(&what, |client| async move {
                Api::<Pod>::namespaced(client, &self.access.namespace).list(params).await
            })
            .await?;
        Ok(list.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0)))
    }

    /// Waits until the Job's pod runs or has ended.
    ///
    /// # Errors
    /// When it does not within the deadline: why it is Pending.
    pub async fn wait_started(&self, name: &str, deadline: Duration) -> Result<(), JobError> {
        self.wait_started_or_begun(name, deadline, deadline).await
    }

    /// The same, with more time for a pod whose kubelet is at work on it than for one of which no kubelet has said a word.
    async fn wait_started_or_begun(&self, name: &str, silent: Duration, begun: Duration) -> Result<(), JobError> {
        let since = tokio::time::Instant::now();
        let mut until = since + silent;
        let mut state = "no pod yet".to_owned();
        loop {
            match self.pod(name).await {
                Ok(Some(pod)) => match phase(&pod) {
                    "Pending" => {
                        state = why_pending(&pod);
                        until = since + if is_begun(&pod) { begun } else { silent };
                    }
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
                Ok(State::Going(state) | State::Stranded(state)) => state,
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
            None => match self.stranded(&pod).await? {
                Some(why) => Ok(State::Stranded(why)),
                None => Ok(State::Going(format!("its pod is {}", phase(&pod)))),
            },
        }
    }

    /// Whether the kubelet that a pod depends on is silent or gone, so that nothing will be heard of the pod. Nothing is proved about
    /// what its container does: that is the Lease's matter, not the Job's.
    async fn stranded(&self, pod: &Pod) -> Result<Option<String>, JobError> {
        let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else { return Ok(None) };
        let what = format!("read node {name}");
        let node = self.read(&what, |client| async move { Api::<Node>::all(client).get_opt(name).await }).await?;
        let Some(node) = node else { return Ok(Some(format!("its node {name} is gone"))) };
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        // The node controller writes `Unknown` when it has not heard of a kubelet for its grace period.
        let silent = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown");
        Ok(silent.then(|| format!("its node {name} has not been heard of")))
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
        let params = LogParams { container: Some(CONTAINER.to_owned()), ..LogParams::default() };
        let (what, params) = (format!("read the log of pod {pod}"), &params);
        self.read(&what, |client| async move {
            Api::<Pod>::namespaced(client, &self.access.namespace).logs(pod, params).await
        })
        .await
    }

    /// What people are told in a pod's log after the first `shown` lines of that, which then counts these too. A container that has not
    /// started yet, or a kubelet that is away, has no log: the next look shows it.
    pub async fn new_lines(&self, pod: &str, shown: &mut usize) -> Vec<String> {
        let Ok(log) = self.log(pod).await else { return Vec::new() };
        let lines = log.lines().filter(|line| !line.starts_with('{')).skip(*shown);
        let new: Vec<String> = lines.map(str::to_owned).collect();
        *shown = shown.saturating_add(new.len());
        new
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

    /// Starts a Job on the first candidate whose kubelet runs it, and gives its name. `start` is for a kubelet that says nothing:
    /// it may be dead. One that has begun gets three times as long: a node that has just booted, or whose apiserver has just lost its
    /// etcd, is slow, and the next candidate may be the one that is broken.
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
            let uid = match self.start(&request).await {
                // Somebody else's: it is theirs to move or to take away.
                Ok(Started::Running) => {
                    self.wait_started(&request.name, start).await?;
                    return Ok(request.name);
                }
                Ok(Started::New(uid)) => uid,
                Err(JobError::NotStarted(why)) => {
                    said.push(why);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match self.wait_started_or_begun(&request.name, start, start * 3).await {
                Ok(()) => return Ok(request.name),
                Err(JobError::NotStarted(why)) => said.push(why),
                Err(error) => return Err(error),
            }
            // It must not start late, beside the one on the next node; and a Job of that name would be in the next one's way.
            if let Err(error) = self.discard_this(&request.name, uid).await {
                said.push(error.to_string());
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
