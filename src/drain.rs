//! Emptying a node: rehearse, cordon, drain, uncordon. Four functions with values between them; whoever runs a step calls
//! them in that order and holds the Lease from before the cordon until after the uncordon.
//!
//! - [`rehearse`] changes nothing. It asks the API server for every eviction as a dry run and counts the pods of each budget
//!   itself, since a dry run uses up no budget.
//! - [`cordon`] is one PATCH that also records whose cordon it is and what was there before; [`uncordon`] puts that back, and
//!   is what undoes a step that is given up before its node was touched.
//! - [`drain`] evicts until every pod that was there is gone by its UID, or names what blocks when its deadline passes.

pub mod budget;
pub mod cordon;
mod evict;
mod eviction;
pub mod filters;
pub(crate) mod link;
mod rehearse;

pub use cordon::{Cordoned, Owner, Uncordoned, cordon, uncordon};
pub use evict::{Overseer, Progress, Report, drain};
pub use filters::UnmanagedPods;
pub use quorum_safety::lock::PodRef;
pub use rehearse::{Departing, Rehearsal, rehearse};

use crate::config::{BudgetPolicy, Config};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often whoever runs a drain is asked whether to stop (incident R31, decisions.md "Numbers").
pub const STOP_EVERY: Duration = Duration::from_secs(5);

/// The pod that an object describes; none when the API left out a part that it always sends.
fn pod_ref(pod: &Pod) -> Option<PodRef> {
    Some(PodRef {
        namespace: pod.metadata.namespace.clone()?,
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
    })
}

/// A pod that does not go, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blocker {
    /// The pod.
    pub pod: PodRef,
    /// The budget that keeps it, in the pod's namespace; several, separated by `, `, when the pod is in several.
    pub budget: Option<String>,
    /// What kind of obstacle it is.
    pub kind: BlockKind,
    /// A sentence for people.
    pub reason: String,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.pod, self.reason)
    }
}

/// The kinds of obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockKind {
    /// No controller would bring the pod back.
    Unmanaged,
    /// A pod that acts for quorate runs on the node that it takes down (incident R01).
    OwnActor,
    /// The budget needs all the pods it counts: no amount of waiting helps (incident R33).
    BudgetNeverAllows,
    /// The budget allows none now.
    BudgetExhausted,
    /// The budget lets it go once a replacement of a pod before it is ready elsewhere. The drain takes longer; it is not
    /// stopped.
    BudgetInTurn,
    /// The budget refuses and the policy of the namespace deletes the pod after half of the deadline.
    DeletedAfterHalf,
    /// Two or more budgets match: the eviction API refuses such a pod for ever.
    SeveralBudgets,
    /// It has been told to go and is still there.
    Leaving,
    /// The API server refuses for another reason, such as a webhook or a missing right.
    Denied,
    /// It could not be found out.
    Unknown,
}

impl BlockKind {
    /// Whether a drain that meets it cannot end as things are.
    pub const fn stops(self) -> bool {
        match self {
            Self::BudgetInTurn | Self::DeletedAfterHalf => false,
            Self::Unmanaged
            | Self::OwnActor
            | Self::BudgetNeverAllows
            | Self::BudgetExhausted
            | Self::SeveralBudgets
            | Self::Leaving
            | Self::Denied
            | Self::Unknown => true,
        }
    }
}

/// What a drain may do and how long it may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a drain may take as a whole.
    pub deadline: Duration,
    /// How long one request may take: webhooks answer evictions, so this is longer than a read's.
    pub request: Duration,
    /// How many evictions are under way at the same time.
    pub parallel: usize,
    /// The least time between two evictions of the same pod, before jitter; a longer Retry-After wins.
    pub retry: Duration,
    /// How often the pods of the node are listed.
    pub poll: Duration,
    /// What to do with a pod whose budget refuses, by namespace; honour where not named.
    pub namespaces: BTreeMap<String, BudgetPolicy>,
    /// What to do with pods that nothing would bring back.
    pub unmanaged: UnmanagedPods,
    /// UID of the pod that this process runs in, if any: it never drains its own node (incident R01).
    pub own_uid: Option<String>,
    /// How long a rehearsal waits for another pod that acts for quorate to end: the step before this one may only just
    /// have started it.
    pub settle: Duration,
}

impl Options {
    /// The options of a configuration; `own_uid` is the UID of the pod that this process runs in.
    pub fn new(config: &Config, own_uid: Option<String>) -> Self {
        Self {
            deadline: config.times.drain.get(),
            request: Duration::from_secs(10),
            parallel: 8,
            // kubectl drain waits 5 s after a refusal too.
            retry: Duration::from_secs(5),
            poll: Duration::from_secs(1),
            namespaces: config.drain.namespaces.clone(),
            unmanaged: config.drain.unmanaged_pods,
            settle: if own_uid.is_some() { Duration::from_secs(30) } else { Duration::ZERO },
            own_uid,
        }
    }

    fn policy(&self, namespace: &str) -> BudgetPolicy {
        self.namespaces.get(namespace).copied().unwrap_or(BudgetPolicy::Honour)
    }
}

/// Why a node could not be rehearsed, cordoned, drained or uncordoned. What was done is safe to do again.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The API could not be asked, or answered something unexpected.
    #[error("cannot {what}: {said}")]
    Api {
        /// What was asked.
        what: String,
        /// The last answer.
        said: String,
    },
    /// Somebody else changed the node each time that we tried.
    #[error("node {node} was changed by somebody else each of {attempts} times")]
    Contended {
        /// The node.
        node: String,
        /// How often we tried.
        attempts: usize,
    },
    /// The annotation that says whose cordon it is cannot be read.
    #[error("annotation {annotation} of node {node} cannot be read: {because}", annotation = cordon::ANNOTATION)]
    Unreadable {
        /// The node.
        node: String,
        /// Why.
        because: String,
    },
    /// Something stands in the way that waiting does not remove; nothing was evicted if it was there at the start.
    #[error("node {node} cannot be drained: {}", listed(.blockers))]
    Blocked {
        /// The node.
        node: String,
        /// What stands in the way.
        blockers: Vec<Blocker>,
    },
    /// The deadline passed (incident R33).
    #[error("node {node} was not drained in {} s: {}{}", .after.as_secs(), listed(.blockers), and_the_api(.trouble))]
    Deadline {
        /// The node.
        node: String,
        /// How long it was tried.
        after: Duration,
        /// Every pod that is still there, with what keeps it.
        blockers: Vec<Blocker>,
        /// The last thing that went wrong between us and the API, if it had not been put right.
        trouble: Option<String>,
    },
    /// Whoever runs the drain said stop (incident R31), or has no time left under its Lease.
    #[error("drain of node {node} stopped with {} pods left: {because}", .left.len())]
    Stopped {
        /// The node.
        node: String,
        /// Why.
        because: String,
        /// What is still there.
        left: Vec<PodRef>,
    },
}

fn listed(blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return "what is left on it is not known".to_owned();
    }
    blockers.iter().map(Blocker::to_string).collect::<Vec<_>>().join("; ")
}

fn and_the_api(trouble: &Option<String>) -> String {
    trouble.as_ref().map(|said| format!(" (and the API: {said})")).unwrap_or_default()
}
