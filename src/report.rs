//! The one-line report that a Job leaves in its termination message: at most 3 KiB, whatever the verdict.

use crate::exit::ExitStatus;
use crate::output::{self, TERMINATION_LIMIT};
use quorum_safety::{API_VERSION, Answer, Class, Observation, Reason, StoredVerdict};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What a Job of ours says at its end. It is printed as a [`Document`].
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
    /// What else stands in the way, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<String>,
    /// How many reasons and lines did not fit.
    #[serde(default)]
    pub left_out: usize,
    /// The Job that goes on; none when this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Which observation was judged; none where nothing was. In a box, since a report is what many functions fail with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Box<ObservationDigest>>,
}

/// A report as it is printed: with what it is. Without, it is a part of other documents.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// Names an observation: the first 16 hex digits of the SHA-256 of its JSON. For who holds a report and looks for its verdict:
/// `jq -cj .observation FILE | sha256sum`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObservationDigest(String);

impl ObservationDigest {
    /// The name of this observation.
    pub fn of(observation: &Observation) -> Self {
        let json = serde_json::to_vec(observation).unwrap_or_default();
        Self(Sha256::digest(json).iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
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
    /// It could not be carried out, and nothing was changed.
    Failed,
    /// What was to be proven was found wrong.
    NotVerified,
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
            Self::Failed => ExitStatus::Failed,
            Self::NotVerified => ExitStatus::NotVerified,
        }
    }

    /// The exit code in a Job: a refusal is an answer, not a failure (incident R22).
    pub const fn in_job(self) -> ExitStatus {
        match self {
            Self::Ok | Self::Held | Self::Unknown | Self::Refused => ExitStatus::Ok,
            Self::Midway => ExitStatus::Midway,
            Self::Failed => ExitStatus::Failed,
            Self::NotVerified => ExitStatus::NotVerified,
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

    /// The outcome of what stands in the way, and of what is not known; none when there is nothing of either.
    pub fn of_blockers(blockers: &[String], unknowns: &[String]) -> Option<Self> {
        match (blockers, unknowns) {
            ([], []) => None,
            ([], _) => Some(Self::Unknown),
            (_, _) => Some(Self::Held),
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
        Self::with_blockers(outcome, summary, reasons, &[])
    }

    /// Something ended before it was over, and nobody knows how far it came: `what` is all that is known.
    pub fn unfinished(how: &str, what: &str) -> Self {
        let summary = format!("{how}; run the same command again: it goes on from what is there");
        Self::with_blockers(Outcome::Midway, summary, &[], &[what.to_owned()])
    }

    /// The same, with what stands in the way besides the rule's reasons.
    pub fn with_blockers(
        outcome: Outcome,
        summary: impl Into<String>,
        reasons: &[Reason],
        blockers: &[String],
    ) -> Self {
        let (reasons, blockers) = (reasons.to_vec(), blockers.to_vec());
        Self { outcome, summary: summary.into(), reasons, blockers, left_out: 0, next: None, judged: None }.fitted()
    }

    /// The same, of a verdict on this observation.
    #[must_use]
    pub fn on(mut self, observation: &Observation) -> Self {
        self.judged = Some(Box::new(ObservationDigest::of(observation)));
        self.fitted()
    }

    /// Prints it on a line of its own and leaves it in the termination message: how a Job ends.
    ///
    /// # Errors
    /// When it cannot be left there.
    pub fn leave(&self) -> anyhow::Result<()> {
        let document = self.document();
        output::line(&serde_json::to_string(&document)?);
        output::terminate_with(Path::new(output::TERMINATION_LOG), &document)
    }

    /// As it is printed.
    pub const fn document(&self) -> Document<'_> {
        Document { api_version: API_VERSION, kind: "Report", report: self }
    }

    /// Shortened until it fits the termination message; to be asked again after anything was added.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        shorten(&mut self.summary, 800);
        for limit in [400, 200, 100, 50] {
            if self.fits() {
                return self;
            }
            for reason in &mut self.reasons {
                shorten(&mut reason.detail, limit);
            }
            for blocker in &mut self.blockers {
                shorten(blocker, limit);
            }
        }
        while !self.fits() && (self.blockers.pop().is_some() || self.reasons.pop().is_some()) {
            self.left_out += 1;
        }
        // Characters that JSON writes as six bytes.
        for limit in [400, 200] {
            if !self.fits() {
                shorten(&mut self.summary, limit);
            }
        }
        self
    }

    /// Makes something of it known after it was made: a sentence more.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.summary.push_str(more);
        self.fitted()
    }

    /// For people: the sentence, then each reason and each line.
    pub fn text(&self) -> String {
        let mut text = self.summary.clone();
        for line in self.reasons.iter().map(ToString::to_string).chain(self.blockers.iter().cloned()) {
            text.push_str("\n  ");
            text.push_str(&line);
        }
        if self.left_out > 0 {
            text.push_str(&format!("\n  … and {} more", self.left_out));
        }
        text
    }

    fn fits(&self) -> bool {
        serde_json::to_string(&self.document()).is_ok_and(|text| text.len() <= TERMINATION_LIMIT)
    }
}

/// Cuts a text at a character boundary, with an ellipsis where something is missing.
pub(crate) fn shorten(text: &mut String, limit: usize) {
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
    use quorum_safety::fixture::healthy;

    #[test]
    fn the_worst_report_fits_the_termination_message() {
        // Every code, each with a long detail of characters that JSON writes as six bytes.
        let detail = "\u{1}ü".repeat(4_000);
        let reasons: Vec<Reason> = Code::ALL.iter().map(|code| Reason::new(*code, detail.clone())).collect();
        let lines = vec![detail.clone(); 30];
        let report = Report::with_blockers(Outcome::Refused, detail, &reasons, &lines).on(&healthy(7).seen);
        let text = serde_json::to_string(&report.document()).unwrap();
        assert!(text.len() <= TERMINATION_LIMIT, "{}", text.len());
        assert!(!report.reasons.is_empty());
        assert_eq!(report.reasons.len() + report.blockers.len() + report.left_out, Code::ALL.len() + 30);
        assert!(report.judged.is_some_and(|digest| digest.0.len() == 16));
    }

    #[test]
    fn a_report_says_what_it_is_and_one_of_before_it_did_is_read() {
        let seen = healthy(3).seen;
        let report = Report::new(Outcome::Held, "not now", &[]).on(&seen);
        let json = serde_json::to_value(report.document()).unwrap();
        assert_eq!((&json["apiVersion"], &json["kind"]), (&"quorate.dev/v1".into(), &"Report".into()));
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
        let before: Report = serde_json::from_str(r#"{"outcome":"held","summary":"not now","leftOut":0}"#).unwrap();
        assert_eq!(before, Report { judged: None, ..report });
    }

    /// What is stored of an observation gives the same name again, and another observation another.
    #[test]
    fn an_observation_is_named_by_its_digest() {
        let seen = healthy(3).seen;
        let text = serde_json::to_string(&seen).unwrap();
        let digest = ObservationDigest::of(&seen);
        assert_eq!(ObservationDigest::of(&serde_json::from_str(&text).unwrap()), digest);
        assert_ne!(ObservationDigest::of(&healthy(3).member_dead(2).seen), digest);
        // As sha256sum says.
        let whole: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(whole.starts_with(&digest.0));
    }

    #[test]
    fn a_report_that_grows_still_fits() {
        let lines = vec!["x".repeat(300); 60];
        let report = Report::with_blockers(Outcome::Held, "k2 could not be drained", &[], &lines);
        let mut report = report.and("; everything is as it was");
        report.blockers.extend(lines);
        let report = report.fitted();
        assert!(serde_json::to_string(&report.document()).unwrap().len() <= TERMINATION_LIMIT);
        assert!(report.summary.ends_with("; everything is as it was"), "{}", report.summary);
    }

    #[test]
    fn a_short_report_loses_nothing() {
        let reasons = [Reason::new(Code::LeaseHeld, "by upgrade-v1.36.3")];
        let report = Report::new(Outcome::Held, "not now", &reasons);
        assert_eq!(report.reasons, reasons);
        assert_eq!(report.left_out, 0);
    }
}
