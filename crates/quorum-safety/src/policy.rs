//! The numbers and standing permissions of an installation.

use crate::reason::Code;
use serde::{Deserialize, Serialize};

/// What `judge` measures against. Every number is a key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// How many raft entries a healthy voter may be behind the highest, and behind in applying.
    pub healthy_lag: u64,
    /// The same for a member that has just come back: the bound of proven recovery.
    pub recovered_lag: u64,
    /// How long the quicker of two linearizable reads through a voter may take, milliseconds, for a new target to be taken.
    #[serde(default = "slow_read")]
    pub slow_read: u64,
    /// How much of its quota the database of a voter may fill, percent, for a new target to be taken.
    #[serde(default = "database_fill")]
    pub database_fill: u64,
    /// The quota that is measured against where etcd does not tell its own, bytes.
    #[serde(default = "assumed_quota")]
    pub assumed_quota: u64,
    /// How long a certificate must still be valid, seconds.
    pub certificate_margin: i64,
    /// How many workers may be disrupted at the same time.
    pub worker_slots: usize,
    /// The single checks that a recorded, time-boxed override lifts for this request. The shell drops expired ones.
    pub lifted: Vec<Code>,
    /// A recorded, time-boxed override for a change of members, and for a defragmentation under NOSPACE, while the API is away: what only
    /// the API knows holds them no more. It holds for nothing else, and for nobody while the nodes can be read or an apiserver is ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_api: bool,
}

/// kubeadm's etcd calls an election when it has heard nothing of its leader for a second. A read takes a few milliseconds where all is
/// well, and up to 4.3 s where the disk was starved (incident R19).
const fn slow_read() -> u64 {
    1_000
}

/// A tenth is left for what an upgrade writes: at the quota no Lease could be renewed and no node uncordoned.
const fn database_fill() -> u64 {
    90
}

/// etcd's own default (`server/storage/quota.go`, `DefaultQuotaBytes`), and kubeadm sets no other.
const fn assumed_quota() -> u64 {
    2 * 1024 * 1024 * 1024
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            healthy_lag: 1_000,
            recovered_lag: 100,
            slow_read: slow_read(),
            database_fill: database_fill(),
            assumed_quota: assumed_quota(),
            certificate_margin: 7 * 24 * 3600,
            worker_slots: 1,
            lifted: Vec::new(),
            without_api: false,
        }
    }
}
