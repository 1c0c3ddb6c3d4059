//! Disruptions that are already under way, and what stops new ones.

use crate::membership::NodeName;
use crate::observation::Fact;
use serde::{Deserialize, Serialize};

/// Who holds which lock, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InFlight {
    /// The Lease `control-plane-disruption`.
    pub control_plane: Fact<Lock>,
    /// The Leases `worker-disruption-N`, in the order of their slots.
    pub workers: Fact<Vec<Lock>>,
    /// The Lease `etcd-snapshot`.
    pub snapshot: Fact<Lock>,
    /// kured's lock, an annotation on its DaemonSet.
    pub kured: Fact<Kured>,
    /// The ConfigMap `quorate-kill-switch`.
    pub kill_switch: Fact<KillSwitch>,
    /// What the asker itself holds.
    pub mine: Mine,
}

/// A Lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lock {
    /// Nobody holds it, or it does not exist.
    Free,
    /// Held, expired or not: expiry alone never hands a Lease over.
    Held(Holder),
}

/// Who holds a Lease, as its annotation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Holder {
    /// `holderIdentity`: short, unique for one attempt of one actor.
    pub identity: String,
    /// The operation, such as `upgrade-v1.36.3`.
    pub operation: String,
    /// The node that is disrupted.
    pub target: NodeName,
}

/// kured's lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kured {
    /// No kured in this cluster.
    Absent,
    /// There, and its lock is free.
    Free,
    /// There, and its lock is held by this `nodeID`.
    Held(String),
}

/// The kill switch: exists means engaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KillSwitch {
    /// Not there.
    Off,
    /// There; the reason that its author gave, possibly empty.
    Engaged(String),
}

/// What the asker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mine {
    /// Nothing: a gate that only asks, or an actor before its Lease.
    Nothing,
    /// The Lease of this identity, newly taken: the control plane must be whole.
    Taken(String),
    /// The Lease of this identity, for an operation that has already begun on the target: it may be finished or undone on a
    /// control plane that is not whole.
    Adopted(String),
}
