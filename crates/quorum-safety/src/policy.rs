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
    /// How long a certificate must still be valid, seconds.
    pub certificate_margin: i64,
    /// How many workers may be disrupted at the same time.
    pub worker_slots: usize,
    /// The single checks that a recorded, time-boxed override lifts for this request. The shell drops expired ones.
    pub lifted: Vec<Code>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            healthy_lag: 1_000,
            recovered_lag: 100,
            certificate_margin: 7 * 24 * 3600,
            worker_slots: 1,
            lifted: Vec::new(),
        }
    }
}
