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
    /// Since when a reboot is wanted at the latest: when the host's file was last written, or seen; none while none is.
    pub pending_since: Option<UnixSeconds>,
    /// Why it is not open, or will not stay so; the first ones.
    pub reasons: Vec<Reason>,
    /// What does not keep it closed, and should be known: of a worker, what of kured would be a reason on a control plane node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Reason>,
    /// Since when this is the answer.
    pub since: UnixSeconds,
}

impl Answer {
    /// The answer of a plan.
    pub fn of(plan: &Plan, advice: &[Reason], pending_since: Option<UnixSeconds>, now: UnixSeconds) -> Self {
        let first = |all: &[Reason]| {
            let mut first: Vec<Reason> = all.iter().take(REASONS).cloned().collect();
            first.iter_mut().for_each(|reason| crate::report::shorten(&mut reason.detail, DETAIL));
            first
        };
        let pending_since = pending_since.filter(|_| plan.pending);
        Self { open: plan.open, pending_since, reasons: first(&plan.reasons), advice: first(advice), since: now }
    }

    /// Whether it says the same, whenever that was: figures in it move with every look.
    pub fn same(&self, other: &Self) -> bool {
        let told = |answer: &Self| answer.reasons.iter().map(Reason::without_figures).collect::<Vec<_>>();
        self.open == other.open
            && self.pending_since.is_some() == other.pending_since.is_some()
            && told(self) == told(other)
            && self.advice == other.advice
    }
}

#[cfg(test)]
mod tests {
    use super::super::reason::Code;
    use super::*;

    /// What is left on the Node would go on naming a node that is well again.
    #[test]
    fn another_node_is_another_answer_and_another_minute_is_not() {
        let of = |detail: &str| Answer {
            open: false,
            pending_since: None,
            reasons: vec![Reason::new(Code::Soak, detail)],
            advice: Vec::new(),
            since: UnixSeconds(0),
        };
        assert!(of("k1 is up since 5 min").same(&of("k1 is up since 6 min")));
        assert!(!of("k1 is up since 5 min").same(&of("k2 is up since 5 min")));
        let advice = vec![Reason::new(Code::KuredLockTtl, "--lock-ttl=30m")];
        assert!(!of("k1 is up since 5 min").same(&Answer { advice, ..of("k1 is up since 5 min") }));
    }
}
