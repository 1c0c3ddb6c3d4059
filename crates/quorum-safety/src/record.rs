//! A verdict as it is stored: with everything it was made from, so that `quorate explain FILE` can judge again.

use crate::disruption::Disruption;
use crate::in_flight::InFlight;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::reason::Reason;
use crate::verdict::Verdict;
use serde::{Deserialize, Serialize};

/// The `apiVersion` of a [`Record`].
pub const API_VERSION: &str = "quorate.dev/v1";
/// The `kind` of a [`Record`].
pub const KIND: &str = "Verdict";

/// A verdict with all that was judged. Reading one gives no permission: a stored verdict holds no `Permit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// `quorate.dev/v1`.
    #[serde(deserialize_with = "api_version")]
    pub api_version: String,
    /// `Verdict`.
    #[serde(deserialize_with = "kind")]
    pub kind: String,
    /// What was seen.
    pub observation: Observation,
    /// What was under way.
    pub in_flight: InFlight,
    /// What was asked.
    pub disruption: Disruption,
    /// What it was measured against.
    pub policy: Policy,
    /// The answer that was given.
    pub verdict: StoredVerdict,
}

impl Record {
    /// Judges, and keeps what was judged beside the answer.
    pub fn judged(
        observation: Observation,
        in_flight: InFlight,
        disruption: Disruption,
        policy: Policy,
    ) -> (Verdict, Self) {
        let verdict = crate::judge::judge(&observation, &in_flight, &disruption, &policy);
        let record = Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            observation,
            in_flight,
            disruption,
            policy,
            verdict: StoredVerdict::from(&verdict),
        };
        (verdict, record)
    }

    /// The answer of today's rule to the stored question. It equals `verdict` unless the rule has changed since.
    pub fn judge_again(&self) -> StoredVerdict {
        let Self { api_version: _, kind: _, observation, in_flight, disruption, policy, verdict: _ } = self;
        StoredVerdict::from(&crate::judge::judge(observation, in_flight, disruption, policy))
    }
}

/// The kinds of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It may start.
    Permitted,
    /// Not now.
    Held,
    /// Not like this.
    Refused,
}

/// A verdict as text: no permission is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredVerdict {
    /// Which answer.
    pub answer: Answer,
    /// All reasons, worst class first; none when permitted.
    pub reasons: Vec<Reason>,
    /// How many more voters may fail while it lasts, when permitted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub margin: Option<usize>,
}

impl From<&Verdict> for StoredVerdict {
    fn from(verdict: &Verdict) -> Self {
        let (answer, margin) = match verdict {
            Verdict::Permitted(permit) => (Answer::Permitted, Some(permit.margin())),
            Verdict::Held(_) => (Answer::Held, None),
            Verdict::Refused(_) => (Answer::Refused, None),
        };
        Self { answer, reasons: verdict.reasons().to_vec(), margin }
    }
}

fn api_version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    exactly(deserializer, "apiVersion", API_VERSION)
}

fn kind<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    exactly(deserializer, "kind", KIND)
}

fn exactly<'de, D: serde::Deserializer<'de>>(deserializer: D, field: &str, expected: &str) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == expected {
        Ok(text)
    } else {
        Err(serde::de::Error::custom(format!("{field} is `{text}`: only `{expected}` can be judged again")))
    }
}
