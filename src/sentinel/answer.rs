//! What a sentinel last said, as it leaves it on its Node for `quorate sentinel status`. For people: it decides nothing.

use super::plan::Plan;
use super::reason::Reason;
use quorum_safety::UnixSeconds;
use serde::{Deserialize, Serialize};

/// The annotation of a Node; its value is an [`Answer`] as JSON.
pub const ANNOTATION: &str = "quorate.dev/sentinel";
/// How many reasons are left there, and how much of each.
const REASONS: usize = 6;
const DETAIL: usize = 160;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whether the gate is open, or may be.
    pub open: bool,
    /// Since when a reboot is wanted, as this process saw it; none while none is.
    pub pending_since: Option<UnixSeconds>,
    /// Why it is not open, or will not stay so; the first ones.
    pub reasons: Vec<Reason>,
    /// Since when this is the answer.
    pub since: UnixSeconds,
}

impl Answer {
    /// The answer of a plan.
    pub fn of(plan: &Plan, pending_since: Option<UnixSeconds>, now: UnixSeconds) -> Self {
        let mut reasons: Vec<Reason> = plan.reasons.iter().take(REASONS).cloned().collect();
        for reason in &mut reasons {
            crate::report::shorten(&mut reason.detail, DETAIL);
        }
        Self { open: plan.open, pending_since: pending_since.filter(|_| plan.pending), reasons, since: now }
    }

    /// Whether it says the same, whenever that was, and in whatever words: figures in them move with every look.
    pub fn same(&self, other: &Self) -> bool {
        let codes = |answer: &Self| answer.reasons.iter().map(|reason| reason.code.clone()).collect::<Vec<_>>();
        self.open == other.open
            && self.pending_since.is_some() == other.pending_since.is_some()
            && codes(self) == codes(other)
    }
}
