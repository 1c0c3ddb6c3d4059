//! Defragmentation of etcd: where it pays, and how long it may take.

use super::Period;
use serde::{Deserialize, Serialize};

/// Defragmentation of etcd (`quorate etcd defrag`).
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Defrag {
    /// How much of a member's database must lie free for a defragmentation to pay, percent.
    #[cfg_attr(test, schemars(range(min = 1, max = 100)))]
    pub fragmented: u64,
    /// How large that database must be, bytes.
    pub least_size: u64,
    /// How long a member may be away for each gigabyte of its database, counted whole, and for one more.
    pub per_gigabyte: Period,
}

impl Default for Defrag {
    fn default() -> Self {
        Self { fragmented: 45, least_size: 100 << 20, per_gigabyte: Period::seconds(60) }
    }
}

impl Defrag {
    /// What is wrong with it, in words that go on after "configuration: ".
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=100).contains(&self.fragmented) {
            let percent = self.fragmented;
            return Err(format!("`defrag.fragmented` is {percent}: expected a percentage from 1 to 100"));
        }
        if !self.per_gigabyte.0.is_positive() {
            let time = self.per_gigabyte.0;
            return Err(format!("`defrag.perGigabyte` is {time}: expected more than nothing, such as 60s"));
        }
        Ok(())
    }
}
