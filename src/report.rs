//! The one-line report that a Job leaves in its termination message: at most 3 KiB, whatever the verdict.

use crate::exit::ExitStatus;
use crate::output::TERMINATION_LIMIT;
use quorum_safety::{Answer, Class, Reason, StoredVerdict};
use serde::{Deserialize, Serialize};

/// What a Job of ours says at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// One sentence for people.
    pub summary: String,
    /// The reasons, worst first; their details are shortened, and the least of them left out, until the report fits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// How many reasons did not fit.
    #[serde(default)]
    pub left_out: usize,
}

/// How a Job of ours ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Done, permitted, or nothing to do.
    Ok,
    /// Not now.
    Held,
    /// Something needed could not be seen.
    Unknown,
    /// Not like this.
    Refused,
    /// Something was changed and not finished.
    Midway,
}

impl Outcome {
    /// The exit code of the command line for it.
    pub const fn status(self) -> ExitStatus {
        match self {
            Self::Ok => ExitStatus::Ok,
            Self::Held => ExitStatus::Held,
            Self::Unknown => ExitStatus::Unknown,
            Self::Refused => ExitStatus::Refused,
            Self::Midway => ExitStatus::Midway,
        }
    }

    /// The exit code in a Job: a refusal is an answer, not a failure (incident R22).
    pub const fn in_job(self) -> ExitStatus {
        match self {
            Self::Ok | Self::Held | Self::Unknown | Self::Refused => ExitStatus::Ok,
            Self::Midway => ExitStatus::Midway,
        }
    }

    /// The outcome of a verdict: held for something unknown is unknown.
    pub fn of(verdict: &StoredVerdict) -> Self {
        match verdict.answer {
            Answer::Permitted => Self::Ok,
            Answer::Refused => Self::Refused,
            Answer::Held => Self::of_reasons(&verdict.reasons),
        }
    }

    /// The outcome of some reasons.
    pub fn of_reasons(reasons: &[Reason]) -> Self {
        match reasons.iter().map(|reason| reason.class).max() {
            None => Self::Ok,
            Some(Class::Refusal) => Self::Refused,
            Some(Class::Unknown) => Self::Unknown,
            Some(Class::Hold) => Self::Held,
        }
    }
}

impl Report {
    /// A report that fits the termination message.
    pub fn new(outcome: Outcome, summary: impl Into<String>, reasons: &[Reason]) -> Self {
        let mut report = Self { outcome, summary: summary.into(), reasons: reasons.to_vec(), left_out: 0 };
        shorten(&mut report.summary, 600);
        for limit in [400, 200, 100, 50] {
            if report.fits() {
                return report;
            }
            for reason in &mut report.reasons {
                shorten(&mut reason.detail, limit);
            }
        }
        while !report.fits() && report.reasons.pop().is_some() {
            report.left_out += 1;
        }
        report
    }

    fn fits(&self) -> bool {
        serde_json::to_string(self).is_ok_and(|text| text.len() <= TERMINATION_LIMIT)
    }
}

/// Cuts a text at a character boundary, with an ellipsis where something is missing.
fn shorten(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('…');
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::Code;

    #[test]
    fn the_worst_report_fits_the_termination_message() {
        // Every code, each with a long detail of characters that JSON writes as six bytes.
        let detail = "\u{1}ü".repeat(4_000);
        let reasons: Vec<Reason> = Code::ALL.iter().map(|code| Reason::new(*code, detail.clone())).collect();
        let report = Report::new(Outcome::Refused, detail, &reasons);
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.len() <= TERMINATION_LIMIT, "{}", text.len());
        assert!(!report.reasons.is_empty());
        assert_eq!(report.reasons.len() + report.left_out, Code::ALL.len());
    }

    #[test]
    fn a_short_report_loses_nothing() {
        let reasons = [Reason::new(Code::LeaseHeld, "by upgrade-v1.36.3")];
        let report = Report::new(Outcome::Held, "not now", &reasons);
        assert_eq!(report.reasons, reasons);
        assert_eq!(report.left_out, 0);
    }
}
