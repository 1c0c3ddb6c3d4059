//! What an actor does about a Lease.

use super::facts::{HolderFacts, Life, NodeState, PodState, Proof, prove_gone};
use super::record::{LeaseView, PodRef, Record, Stage, Step};
use crate::membership::NodeName;
use crate::observation::Fact;
use crate::reason::{Code, Reason};
use serde::Serialize;

/// What an actor wants a Lease for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The `holderIdentity` it would write, unique for this attempt.
    pub identity: String,
    /// The operation.
    pub operation: String,
    /// The node it would disrupt.
    pub target: NodeName,
}

/// What to do about a Lease. Every write carries the resourceVersion that was judged: if another write came between, read again
/// and decide again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Create it; somebody else's creation makes this one fail.
    Create,
    /// It is free: take it.
    Acquire,
    /// It is mine already: an answer was lost, or I was late and go on after looking anew.
    Renew,
    /// The same operation on the same target was left half done by a holder that is gone: finish or undo it.
    Adopt {
        /// Why the old holder is known to be gone.
        proof: Proof,
        /// How far it was.
        step: Step,
    },
    /// Its holder is gone and has nothing half done: take it for another operation or target.
    TakeOver {
        /// Why the old holder is known to be gone.
        proof: Proof,
    },
    /// Not now; all reasons.
    Wait(Vec<Wait>),
}

/// Why a Lease is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Wait {
    /// The Lease could not be read.
    #[error("the Lease could not be read: {0}")]
    LeaseUnknown(String),
    /// The holder's record could not be read.
    #[error("the record of the holder could not be read: {0}")]
    RecordUnknown(String),
    /// A release is recorded that could not be read.
    #[error("a release is recorded and could not be read: {0}")]
    ReleaseUnknown(String),
    /// My own hold was released by hand.
    #[error("this hold was released by hand: {0}")]
    MineReleased(String),
    /// The facts are about another holder than the Lease names by now.
    #[error("the holder changed while it was looked at")]
    FactsOfAnother,
    /// A release is recorded; the holder may not have seen it, or it is not of this holder.
    #[error("a release is recorded, but not of this holder, or its deadline has not passed")]
    ReleaseTooFresh,
    /// The holder's pod runs.
    #[error("the pod of the holder, {pod} on node {node}, has not ended")]
    PodRuns {
        /// The pod.
        pod: PodRef,
        /// Its node.
        node: NodeName,
    },
    /// The holder's pod could not be read.
    #[error("the pod of the holder could not be read: {0}")]
    PodUnknown(String),
    /// The holder is no pod.
    #[error("the holder does not run in a pod, but as a process on node {node}")]
    NoPod {
        /// Its node.
        node: NodeName,
    },
    /// The holder's pod is not there; it may have been deleted by force.
    #[error(
        "the pod of the holder, {pod}, is not there, but its processes may still run on node {node} until its deadline has passed"
    )]
    MayStillRun {
        /// The pod.
        pod: PodRef,
        /// Its node.
        node: NodeName,
    },
    /// The holder's node is not Ready.
    #[error(
        "node {node} of the holder is not Ready: that {} is missing or ended there proves nothing",
        pod.as_ref().map_or_else(|| "its process".to_owned(), |pod| format!("its pod {pod}"))
    )]
    NodeUnreachable {
        /// The node.
        node: NodeName,
        /// The holder's pod, if it is one.
        pod: Option<PodRef>,
    },
    /// The holder's node is not in the API.
    #[error("node {node} of the holder is not in the API: the machine may run all the same")]
    NodeGone {
        /// The node.
        node: NodeName,
    },
    /// The holder's node could not be read.
    #[error("the node of the holder could not be read: {0}")]
    NodeUnknown(String),
    /// The target's host still runs the node step.
    #[error("the target still runs the unit quorate-node-step")]
    UnitRuns,
    /// The target's host could not be looked at.
    #[error("whether the target still runs the unit quorate-node-step is not known: {0}")]
    UnitUnknown(String),
    /// The holder may still act.
    #[error("the deadline of the holder has not passed")]
    DeadlineNotPassed,
    /// Something else is half done under this Lease.
    #[error("{operation} on {target} is half done (step {step}): it must be finished or undone first")]
    HalfDone {
        /// The operation.
        operation: String,
        /// Its target.
        target: NodeName,
        /// How far it is.
        step: String,
    },
}

impl Wait {
    /// The reason of the catalogue that it belongs to.
    pub fn code(&self) -> Code {
        match self {
            Self::LeaseUnknown(_)
            | Self::RecordUnknown(_)
            | Self::ReleaseUnknown(_)
            | Self::PodUnknown(_)
            | Self::NodeUnknown(_)
            | Self::UnitUnknown(_) => Code::LeaseUnknown,
            Self::MineReleased(_) => Code::LeaseNotMine,
            Self::FactsOfAnother
            | Self::ReleaseTooFresh
            | Self::PodRuns { .. }
            | Self::NoPod { .. }
            | Self::MayStillRun { .. }
            | Self::NodeUnreachable { .. }
            | Self::NodeGone { .. }
            | Self::UnitRuns
            | Self::DeadlineNotPassed
            | Self::HalfDone { .. } => Code::LeaseHeld,
        }
    }

    /// The same as a reason of a verdict, naming the Lease.
    pub fn reason(&self, lease: &str) -> Reason {
        Reason::new(self.code(), format!("{lease}: {self}"))
    }
}

/// Decides what to do about a Lease, from what it says and what was seen of its holder.
pub fn decide(lease: &Fact<LeaseView>, me: &Claim, facts: &HolderFacts) -> Decision {
    let (identity, record, release) = match lease {
        Fact::Unknown(why) => return Decision::Wait(vec![Wait::LeaseUnknown(why.clone())]),
        Fact::Known(LeaseView::Absent) => return Decision::Create,
        Fact::Known(LeaseView::Free { .. }) => return Decision::Acquire,
        Fact::Known(LeaseView::Held { identity, record, release, .. }) => (identity, record, release),
    };
    let release = match release {
        Fact::Known(release) => release.as_ref(),
        Fact::Unknown(why) => return Decision::Wait(vec![Wait::ReleaseUnknown(why.clone())]),
    };
    if *identity == me.identity {
        return renew(me, record, release.map(|release| release.because.as_str()));
    }
    if facts.of != *identity {
        return Decision::Wait(vec![Wait::FactsOfAnother]);
    }
    let abandoned = release.is_some_and(|release| release.stage == Stage::Abandoned && release.identity == *identity);
    let proof = match prove_gone(record, release, facts) {
        Ok(proof) => proof,
        Err(mut doubts) => {
            doubts.extend(half_done(record, me, abandoned));
            return Decision::Wait(doubts);
        }
    };
    match record {
        Fact::Known(record) if same(record, me) => Decision::Adopt { proof, step: record.step.clone() },
        Fact::Known(_) | Fact::Unknown(_) => match half_done(record, me, abandoned) {
            Some(wait) => Decision::Wait(vec![wait]),
            // The record says that nothing was touched, and the host says otherwise: believe the host.
            None if facts.unit == Fact::Known(true) => Decision::Wait(vec![Wait::UnitRuns]),
            None => Decision::TakeOver { proof },
        },
    }
}

/// Whether the holder of a Lease is alive, gone, or neither for sure.
pub fn life(lease: &LeaseView, facts: &HolderFacts) -> Life {
    let LeaseView::Held { record, release, .. } = lease else { return Life::Nobody };
    let release = match release {
        Fact::Known(release) => release.as_ref(),
        Fact::Unknown(why) => return Life::Unproven(vec![Wait::ReleaseUnknown(why.clone())]),
    };
    match prove_gone(record, release, facts) {
        Ok(proof) => Life::Gone(proof),
        Err(doubts) => match (&facts.pod, &facts.node) {
            (Fact::Known(PodState::Running), Fact::Known(NodeState::Present { ready: true, .. })) => Life::Alive,
            _ => Life::Unproven(doubts),
        },
    }
}

fn same(record: &Record, me: &Claim) -> bool {
    record.operation == me.operation && record.target == me.target
}

fn renew(me: &Claim, record: &Fact<Record>, released: Option<&str>) -> Decision {
    match (record, released) {
        (_, Some(because)) => Decision::Wait(vec![Wait::MineReleased(because.to_owned())]),
        (Fact::Unknown(why), None) => Decision::Wait(vec![Wait::RecordUnknown(why.clone())]),
        (Fact::Known(record), None) if same(record, me) => Decision::Renew,
        // One identity, two purposes: the identity was not unique.
        (Fact::Known(_), None) => Decision::Wait(vec![Wait::FactsOfAnother]),
    }
}

/// What stands in the way of another operation even when the holder is gone.
fn half_done(record: &Fact<Record>, me: &Claim, abandoned: bool) -> Option<Wait> {
    match record {
        Fact::Known(record) if same(record, me) || !record.step.touched || abandoned => None,
        Fact::Known(record) => Some(Wait::HalfDone {
            operation: record.operation.clone(),
            target: record.target.clone(),
            step: record.step.name.clone(),
        }),
        Fact::Unknown(_) if abandoned => None,
        Fact::Unknown(why) => Some(Wait::RecordUnknown(why.clone())),
    }
}
