//! The answer of `judge`.

use crate::disruption::Disruption;
use crate::in_flight::InFlight;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::reason::{Class, Reason};
use crate::record::StoredVerdict;
use serde::Serialize;

/// Whether a disruption may start. A refusal is an answer, not an error.
///
/// It is serialized as a [`StoredVerdict`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It may.
    Permitted(Permit),
    /// Not now: waiting may change the answer.
    Held(Reasons),
    /// Not like this.
    Refused(Reasons),
}

impl Verdict {
    /// All reasons; none when permitted.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Permitted(_) => &[],
            Self::Held(reasons) | Self::Refused(reasons) => reasons.as_slice(),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredVerdict::from(self).serialize(serializer)
    }
}

/// One or more reasons, worst class first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Reasons(Vec<Reason>);

impl Reasons {
    /// The reasons, sorted and without repeats; `None` for an empty list.
    pub(crate) fn new(mut reasons: Vec<Reason>) -> Option<Self> {
        reasons.sort();
        reasons.dedup();
        if reasons.is_empty() { None } else { Some(Self(reasons)) }
    }

    /// The reasons, worst class first.
    pub fn as_slice(&self) -> &[Reason] {
        &self.0
    }

    /// The worst class among them, which decides between Held and Refused.
    pub fn worst(&self) -> Class {
        self.0.iter().map(|reason| reason.class).max().unwrap_or(Class::Unknown)
    }
}

/// Permission to start one disruption, once. Only `judge` makes one, it is not `Clone`, and what disrupts takes it by value.
///
/// ```compile_fail
/// fn twice(permit: quorum_safety::Permit) -> (quorum_safety::Permit, quorum_safety::Permit) {
///     (permit.clone(), permit)
/// }
/// ```
///
/// Nor can it be read from a file:
///
/// ```compile_fail
/// fn read(text: &str) -> quorum_safety::Permit {
///     serde_json::from_str(text).unwrap()
/// }
/// ```
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Permit {
    pub(crate) disruption: Disruption,
    pub(crate) margin: usize,
}

impl Permit {
    /// What may start.
    pub fn disruption(&self) -> &Disruption {
        &self.disruption
    }

    /// How many more voters may fail while it lasts; 0 on three nodes.
    pub fn margin(&self) -> usize {
        self.margin
    }

    /// Uses the permission up.
    pub fn begin(self) -> Disrupting {
        Disrupting { disruption: self.disruption }
    }
}

/// A disruption that has been permitted and may have begun. It is asked again before the cordon and after the drain.
#[derive(Debug)]
#[must_use]
pub struct Disrupting {
    pub(crate) disruption: Disruption,
}

impl Disrupting {
    /// What is being done.
    pub fn disruption(&self) -> &Disruption {
        &self.disruption
    }

    /// Whether the disruption would still be permitted on what is seen now.
    ///
    /// # Errors
    /// All reasons why not: stop while the target is still untouched.
    pub fn still_holds(&self, seen: &Observation, in_flight: &InFlight, policy: &Policy) -> Result<(), Reasons> {
        match crate::judge::judge(seen, in_flight, &self.disruption, policy) {
            Verdict::Permitted(_) => Ok(()),
            Verdict::Held(reasons) | Verdict::Refused(reasons) => Err(reasons),
        }
    }
}
