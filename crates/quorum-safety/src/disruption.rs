//! What somebody wants to do to a control plane.

use crate::membership::{MemberId, NodeName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A disruption that is judged before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Disruption {
    /// The node is drained and rebooted.
    Reboot(NodeName),
    /// The node is drained and its components are restarted in another version.
    Upgrade(NodeName),
    /// Leadership moves to this member.
    MoveLeader(MemberId),
    /// The member is defragmented: it serves nobody meanwhile.
    Defragment(MemberId),
    /// A learner is added; a voter is never added directly (etcd-notes, 2b rows 2 and 3).
    AddLearner,
    /// This learner is made a voter.
    Promote(MemberId),
    /// This member is removed.
    Remove(MemberId),
    /// This member is removed, a learner added and promoted: judged as a plan, each step again on its own.
    Replace(MemberId),
    /// The cluster's data is replaced by a snapshot.
    Restore,
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reboot(node) => write!(f, "reboot of {node}"),
            Self::Upgrade(node) => write!(f, "upgrade of {node}"),
            Self::MoveLeader(member) => write!(f, "moving leadership to member {member}"),
            Self::Defragment(member) => write!(f, "defragmentation of member {member}"),
            Self::AddLearner => f.write_str("adding a learner"),
            Self::Promote(member) => write!(f, "promotion of learner {member}"),
            Self::Remove(member) => write!(f, "removal of member {member}"),
            Self::Replace(member) => write!(f, "replacement of member {member}"),
            Self::Restore => f.write_str("restore from a snapshot"),
        }
    }
}
