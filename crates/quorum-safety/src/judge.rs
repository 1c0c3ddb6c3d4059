//! The rule.

use crate::disruption::Disruption;
use crate::in_flight::InFlight;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::reason::{Class, Code, Reason};
use crate::verdict::{Reasons, Verdict};

/// Decides whether a disruption may start, from what was seen and what is under way.
pub fn judge(_seen: &Observation, _in_flight: &InFlight, _wanted: &Disruption, _policy: &Policy) -> Verdict {
    let reasons = vec![Reason::new(Code::MembershipUnknown, "the rule is not written yet")];
    match Reasons::new(reasons) {
        Some(reasons) if reasons.worst() == Class::Refusal => Verdict::Refused(reasons),
        Some(reasons) => Verdict::Held(reasons),
        None => unreachable!(),
    }
}
