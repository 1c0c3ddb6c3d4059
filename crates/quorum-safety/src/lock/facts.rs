//! What was seen of a holder, and what it proves.

use super::decide::Wait;
use super::held::Timings;
use super::record::{LeaseView, Record, Release};
use crate::observation::Fact;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// What was seen of the present holder of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderFacts {
    /// The identity that the facts are about. Facts of one holder prove nothing of the next.
    pub of: String,
    /// Its pod, found by UID.
    pub pod: Fact<PodState>,
    /// The node it runs on.
    pub node: Fact<NodeState>,
    /// Whether the host of the *target* runs the unit `quorate-node-step`, by a look at the host. A pod that was deleted by force is
    /// gone from the API, its unit is not.
    pub unit: Fact<bool>,
    /// Whether the holder's own deadline has passed: [`Sighting::silent`].
    pub silent: bool,
}

impl HolderFacts {
    /// Nothing is known of this holder yet.
    pub fn unknown(of: impl Into<String>, why: &str) -> Self {
        let why = why.to_owned();
        Self {
            of: of.into(),
            pod: Fact::Unknown(why.clone()),
            node: Fact::Unknown(why.clone()),
            unit: Fact::Unknown(why),
            silent: false,
        }
    }
}

/// The pod of a holder, as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// It exists and has not ended.
    Running,
    /// It exists, is being deleted and has not ended: its processes may live through their grace period.
    Terminating,
    /// Phase Succeeded or Failed: the kubelet has seen its containers end.
    Terminal,
    /// No pod of that UID. It may have been deleted by force while its processes live.
    NotFound,
}

/// The node of a holder, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum NodeState {
    /// The Node object exists.
    Present {
        /// Condition Ready is True. False and Unknown are both `false`: the kubelet's word cannot be trusted.
        ready: bool,
        /// `status.nodeInfo.bootID`.
        boot_id: String,
    },
    /// No such Node. The machine may run all the same.
    Gone,
}

/// Why a holder is known to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Proof {
    /// Its pod has ended, on a Ready node that has not rebooted.
    PodEnded,
    /// Its pod is no more, on a Ready node that has not rebooted, and its own deadline has passed.
    PodDeleted,
    /// Its node has another boot id than when it took the Lease.
    NodeRebooted {
        /// The new boot id.
        boot_id: String,
    },
    /// Somebody released it by hand, and its own deadline has passed.
    Released {
        /// Why.
        because: String,
    },
    /// Its own deadline has passed, and a look at the target's host saw no unit running.
    SilentWithoutUnit,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodEnded => f.write_str("its pod has ended on a Ready node"),
            Self::PodDeleted => f.write_str("its pod is deleted on a Ready node and its deadline has passed"),
            Self::NodeRebooted { boot_id } => write!(f, "its node has rebooted (boot id {boot_id})"),
            Self::Released { because } => write!(f, "it was released by hand: {because}"),
            Self::SilentWithoutUnit => f.write_str("its deadline has passed and the target runs no unit of it"),
        }
    }
}

/// Whether a holder lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Nobody holds the Lease.
    Nobody,
    /// Its pod runs on a Ready node that has not rebooted.
    Alive,
    /// It is gone.
    Gone(Proof),
    /// Neither is proven; why.
    Unproven(Vec<Wait>),
}

/// Since when one observer, on its own boot clock, has seen a Lease unchanged. Wall times of the Lease are not used: clocks of two
/// machines differ, and a holder's own deadline is on its boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    version: Option<String>,
    since: Duration,
}

impl Sighting {
    /// The first look at a Lease, at `now` of the observer's boot clock, taken *after* the answer came.
    pub fn first(view: &LeaseView, now: Duration) -> Self {
        Self { version: view.version().map(str::to_owned), since: now }
    }

    /// A further look: the same sighting if nothing has been written in between, a new one otherwise.
    #[must_use]
    pub fn again(self, view: &LeaseView, now: Duration) -> Self {
        if self.version.as_deref() == view.version() { self } else { Self::first(view, now) }
    }

    /// Whether the holder's own deadline has passed for sure: it counted from before it sent its last write, the observer from
    /// after that write was there.
    pub fn silent(&self, now: Duration, timings: &Timings) -> bool {
        now.checked_sub(self.since).is_some_and(|quiet| quiet >= timings.silence())
    }
}

/// Proves that the holder of a Lease is gone, or says what stands in the way.
///
/// Each proof that leaves room for a process that still runs (deleted by force, released by hand, cut off) also asks that the
/// holder's own deadline has passed, after which it may not act. Design, "Locks"; decisions, "Facts".
///
/// # Errors
/// All doubts, when no proof is found. Never empty.
pub fn prove_gone(record: &Fact<Record>, release: Option<&Release>, facts: &HolderFacts) -> Result<Proof, Vec<Wait>> {
    let mut doubts = Vec::new();
    if let Some(release) = release {
        if release.identity == facts.of && facts.silent {
            return Ok(Proof::Released { because: release.because.clone() });
        }
        doubts.push(Wait::ReleaseTooFresh);
    }
    let record = match record {
        Fact::Known(record) => record,
        // Without a record it is not known where the holder runs, nor what it disrupts.
        Fact::Unknown(why) => {
            doubts.push(Wait::RecordUnknown(why.clone()));
            return Err(doubts);
        }
    };
    if record.identity != facts.of {
        doubts.push(Wait::FactsOfAnother);
        return Err(doubts);
    }
    let node = || record.node.clone();
    match &facts.node {
        Fact::Known(NodeState::Present { boot_id, .. }) if *boot_id != record.boot_id => {
            return Ok(Proof::NodeRebooted { boot_id: boot_id.clone() });
        }
        Fact::Known(NodeState::Present { ready: true, .. }) => match (&record.pod, &facts.pod) {
            (Some(_), Fact::Known(PodState::Terminal)) => return Ok(Proof::PodEnded),
            (Some(_), Fact::Known(PodState::NotFound)) if facts.silent => return Ok(Proof::PodDeleted),
            (Some(pod), Fact::Known(PodState::NotFound)) => {
                doubts.push(Wait::MayStillRun { pod: pod.clone(), node: node() });
            }
            (Some(pod), Fact::Known(PodState::Running | PodState::Terminating)) => {
                doubts.push(Wait::PodRuns { pod: pod.clone(), node: node() });
            }
            (Some(_), Fact::Unknown(why)) => doubts.push(Wait::PodUnknown(why.clone())),
            (None, _) => doubts.push(Wait::NoPod { node: node() }),
        },
        // Neither a pod's end nor its absence means anything where no kubelet speaks: eviction by the node controller marks and
        // deletes pods of nodes that it cannot reach.
        Fact::Known(NodeState::Present { ready: false, .. }) => {
            doubts.push(Wait::NodeUnreachable { node: node(), pod: record.pod.clone() });
        }
        Fact::Known(NodeState::Gone) => doubts.push(Wait::NodeGone { node: node() }),
        Fact::Unknown(why) => doubts.push(Wait::NodeUnknown(why.clone())),
    }
    match &facts.unit {
        Fact::Known(false) if facts.silent => return Ok(Proof::SilentWithoutUnit),
        Fact::Known(false) => {}
        Fact::Known(true) => doubts.push(Wait::UnitRuns),
        Fact::Unknown(why) => doubts.push(Wait::UnitUnknown(why.clone())),
    }
    if !facts.silent {
        doubts.push(Wait::DeadlineNotPassed);
    }
    Err(doubts)
}
