//! What a Lease says of its holder.

use crate::in_flight::{Holder, Lock};
use crate::membership::NodeName;
use crate::observation::{Fact, UnixSeconds};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The holder's record: the JSON of the annotation `quorate.dev/holder`. It is written before what it announces is done, so
/// that whoever comes next can finish or undo it. An unknown field makes it unreadable, and unreadable blocks: a newer version
/// may mean something by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// `holderIdentity`: short, unique for one attempt of one actor.
    pub identity: String,
    /// The operation, such as `upgrade-v1.36.3`.
    pub operation: String,
    /// The node that is disrupted.
    pub target: NodeName,
    /// What holds it, for people: `step control-plane`, `etcd defrag`.
    pub actor: String,
    /// The pod it runs in; none for a process outside of a pod (`--here`).
    pub pod: Option<PodRef>,
    /// The node on which the holder runs. Never the target, except with `--here`.
    pub node: NodeName,
    /// `status.nodeInfo.bootID` of that node when the Lease was taken.
    pub boot_id: String,
    /// How far it is.
    pub step: Step,
    /// When the operation began on this target; kept when it is adopted. For people.
    pub since: UnixSeconds,
    /// When the step was announced. For people.
    pub step_since: UnixSeconds,
}

/// One pod, as one life of it: a pod of the same name with another UID is another pod (k8s#138229).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How far a holder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// The name of the step, such as `acquired`, `drain`, `node-step`.
    pub name: String,
    /// Whether anything may have been changed that somebody has to finish or undo. Once true it stays true until the operation
    /// is finished or undone.
    pub touched: bool,
}

impl Step {
    /// The Lease is held and nothing has been changed.
    pub fn acquired() -> Self {
        Self { name: "acquired".to_owned(), touched: false }
    }

    /// A step that only looks.
    pub fn looking(name: impl Into<String>) -> Self {
        Self { name: name.into(), touched: false }
    }

    /// A step that changes something; from its announcement on, the operation counts as half done.
    pub fn touching(name: impl Into<String>) -> Self {
        Self { name: name.into(), touched: true }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A release by hand: the JSON of the annotation `quorate.dev/released`. It does not empty the Lease, but for the last stage; it is the
/// proof with which the next actor takes it, once the holder named here has had the time to see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Release {
    /// The `holderIdentity` that is released; of no use against any other.
    pub identity: String,
    /// Why.
    pub because: String,
    /// Who did it, as far as known. For people.
    pub by: String,
    /// When. For people.
    pub at: UnixSeconds,
    /// How far the release has come.
    pub stage: Stage,
}

/// How far a release by hand has come. What may be recorded when: [`super::by_hand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The holder is told to stop. Until it has seen that, or its deadline passes, it goes on with what it announced.
    Told,
    /// The holder acts no more; that was proven before this was recorded.
    Stopped,
    /// What the holder left half done was finished or undone by hand after it had stopped, and is given up. Whoever records this empties
    /// the Lease in the same write: a name in it would hold up everybody until somebody asks for this very Lease.
    Abandoned,
}

/// A Lease as it was read, linearizably.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few are made, and none is kept in a list")]
pub enum LeaseView {
    /// The object does not exist.
    Absent,
    /// It exists, and neither names a holder nor carries a record.
    Free {
        /// `metadata.resourceVersion`, the precondition of the next write.
        version: String,
    },
    /// It names a holder or carries a record.
    Held {
        /// `metadata.resourceVersion`, the precondition of the next write.
        version: String,
        /// `spec.holderIdentity`; empty when only the record is left.
        identity: String,
        /// The record; unknown when missing, unreadable, or of another identity.
        record: Fact<Record>,
        /// A release by hand; unknown when unreadable.
        release: Fact<Option<Release>>,
    },
}

impl LeaseView {
    /// The resourceVersion, if the object exists.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Absent => None,
            Self::Free { version } | Self::Held { version, .. } => Some(version),
        }
    }

    /// The Lease as `judge` wants to know it. A holder whose record cannot be read is still a holder.
    pub fn lock(&self) -> Lock {
        match self {
            Self::Absent | Self::Free { .. } => Lock::Free,
            Self::Held { record: Fact::Known(record), .. } => Lock::Held(Holder {
                identity: record.identity.clone(),
                operation: record.operation.clone(),
                target: record.target.clone(),
            }),
            Self::Held { identity, record: Fact::Unknown(why), .. } => Lock::Held(Holder {
                identity: identity.clone(),
                operation: format!("unknown: {why}"),
                target: NodeName("unknown".to_owned()),
            }),
        }
    }
}
