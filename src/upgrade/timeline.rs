//! How long each part of a node's way took: for people, and for the account of an upgrade. Nothing is decided by it.

use crate::node::StepReport;
use crate::upgrade::sub_step::SubStep;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::time::Duration;

/// One part of a node's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// The sub-step, or what the node step did of it.
    pub name: String,
    /// Whole seconds that it took.
    pub seconds: u64,
    /// What was done in it; of the work on the host only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Self>,
}

/// When each sub-step began, by a clock that never jumps.
#[derive(Debug)]
pub struct Timeline(RefCell<Vec<(SubStep, Duration)>>);

impl Timeline {
    /// Begins with everything that comes before something is changed: the rehearsal, the locks, the verdict.
    pub fn from(begin: Duration) -> Self {
        Self(RefCell::new(vec![(SubStep::Acquired, begin)]))
    }

    /// A sub-step begins, and the one before it has ended.
    pub fn enter(&self, step: SubStep, now: Duration) {
        self.0.borrow_mut().push((step, now));
    }

    /// The parts, the last of which ends now; `host` is what the node step did.
    pub fn parts(&self, now: Duration, host: &[StepReport]) -> Vec<Part> {
        let entered = self.0.borrow();
        let ends = entered.iter().skip(1).map(|(_, begin)| *begin).chain([now]);
        let done = host.iter().filter(|step| step.skipped.is_none());
        let host: Vec<Part> =
            done.map(|step| Part { name: step.name.to_string(), seconds: step.seconds, parts: Vec::new() }).collect();
        let part = |((step, begin), end): (&(SubStep, Duration), Duration)| Part {
            name: step.name().to_owned(),
            seconds: end.saturating_sub(*begin).as_secs(),
            parts: if *step == SubStep::NodeStep { host.clone() } else { Vec::new() },
        };
        entered.iter().zip(ends).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Step;

    #[test]
    fn each_part_lasts_until_the_next_begins() {
        let at = Duration::from_secs;
        let timeline = Timeline::from(at(100));
        timeline.enter(SubStep::Cordon, at(112));
        timeline.enter(SubStep::NodeStep, at(113));
        timeline.enter(SubStep::Recovery, at(190));
        let step = |name, skipped: Option<&str>| StepReport { name, seconds: 60, skipped: skipped.map(str::to_owned) };
        let host = [step(Step::Kubeadm, None), step(Step::Hold, Some("held already"))];
        let parts = timeline.parts(at(200), &host);
        let told: Vec<(&str, u64, usize)> =
            parts.iter().map(|part| (part.name.as_str(), part.seconds, part.parts.len())).collect();
        assert_eq!(told, [("acquired", 12, 0), ("cordon", 1, 0), ("node-step", 77, 1), ("recovery", 10, 0)]);
        assert_eq!(parts[2].parts[0].name, "kubeadm");
    }
}
