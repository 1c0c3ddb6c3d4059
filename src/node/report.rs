//! What the node step answers: one JSON document, small enough for a termination message at its worst.

use super::plan::Step;
use crate::output::TERMINATION_LIMIT;
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the node step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The node is on target.
    Done,
    /// Not like this; this run changed nothing.
    Refused,
    /// Something needed could not be seen; this run changed nothing.
    Unknown,
    /// Something was changed and not finished; running the step again goes on from there.
    Midway,
}

/// Versions found on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Installed packages: kubeadm, kubelet, kubectl.
    pub packages: BTreeMap<String, Version>,
    /// The kubelet that runs, which is not always the one installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_kubelet: Option<Version>,
    /// Image tags in the static pod manifests, by component.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub static_pods: BTreeMap<String, String>,
    /// The tag of etcd's image that kubeadm would write for the target; none where that cannot be told: only the target's own kubeadm
    /// knows, and only a control plane node asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_wanted: Option<String>,
}

/// One sub-step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// Which.
    pub name: Step,
    /// How long it took, in whole seconds.
    pub seconds: u64,
    /// Why there was nothing to do, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// Whether new connections were handed over to a peer meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandOverReport {
    /// Whether the rule was on.
    pub on: bool,
    /// What it relied on when it was on, or why it was not.
    pub because: String,
}

/// The answer of the node step. Also written to [`super::RESULT`] on the host, which nobody decides anything by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `quorate.dev/v1`.
    pub api_version: String,
    /// `NodeStep`.
    pub kind: String,
    /// The target.
    pub to: Version,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the node is on target: `outcome` is `done`.
    pub done: bool,
    /// The sub-step that did not end well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<Step>,
    /// What is wrong, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last lines of the tool that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// What was there before this run.
    pub before: Versions,
    /// What is there after it.
    pub after: Versions,
    /// What was done, in order.
    pub steps: Vec<StepReport>,
    /// The hand-over of new connections.
    pub hand_over: HandOverReport,
    /// Components whose static pod manifest has other bytes than before this run: their config hash must differ, no other's may.
    pub manifests_changed: Vec<String>,
    /// Whether it is certain that the node is as it was before the first run to this target, so that a cordon may be taken back
    /// without a proof of recovery. Only the step itself says so, of itself and of all earlier runs; what was started and gave no
    /// answer, or another step's unit, leaves it false. Kubeadm's scratch of older upgrades, package lists and quorate's own
    /// files are not the node.
    #[serde(default)]
    pub untouched: bool,
    /// Whether it was refused only since the order came after its time; given again, it may be carried out.
    #[serde(default)]
    pub late: bool,
    /// Whether this pod found the unit running and attached to it.
    pub attached: bool,
    /// systemd's invocation id of the unit; empty outside it.
    pub invocation: String,
}

impl Report {
    /// A report on nothing done yet.
    pub(super) fn new(to: Version) -> Self {
        Self {
            api_version: "quorate.dev/v1".to_owned(),
            kind: "NodeStep".to_owned(),
            to,
            outcome: Outcome::Unknown,
            done: false,
            failed_step: None,
            message: None,
            last_lines: Vec::new(),
            before: Versions::default(),
            after: Versions::default(),
            steps: Vec::new(),
            hand_over: HandOverReport { on: false, because: "not reached".to_owned() },
            manifests_changed: Vec::new(),
            untouched: false,
            late: false,
            attached: false,
            invocation: String::new(),
        }
    }

    /// Makes it small enough for the termination message: long lines are cut, then the oldest lines of the tool go first,
    /// since the last ones say why; then reasons for skipping.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        for line in &mut self.last_lines {
            shorten(line, 240);
        }
        self.last_lines.drain(..self.last_lines.len().saturating_sub(10));
        if let Some(message) = &mut self.message {
            shorten(message, 400);
        }
        shorten(&mut self.hand_over.because, 120);
        shorten(&mut self.invocation, 40);
        let tags = self.before.static_pods.values_mut().chain(self.after.static_pods.values_mut());
        tags.chain(&mut self.before.etcd_wanted).chain(&mut self.after.etcd_wanted).for_each(|tag| shorten(tag, 40));
        for step in &mut self.steps {
            if let Some(reason) = &mut step.skipped {
                shorten(reason, 60);
            }
        }
        while self.size() > TERMINATION_LIMIT && !self.last_lines.is_empty() {
            self.last_lines.remove(0);
        }
        if self.size() > TERMINATION_LIMIT {
            for step in &mut self.steps {
                if let Some(reason) = &mut step.skipped {
                    "…".clone_into(reason);
                }
            }
        }
        self
    }

    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}

/// Cuts a text to at most `limit` bytes of JSON: an escaped character may cost six.
pub(super) fn shorten(text: &mut String, limit: usize) {
    let mut cost = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        cost += match c {
            '"' | '\\' | '\n' | '\t' | '\r' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        (cost > limit.saturating_sub(3)).then_some(at)
    });
    if let Some(end) = end {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(line: &str) -> Report {
        let version: Version = "v1.36.30".parse().unwrap();
        let mut report = Report::new(version);
        let versions = Versions {
            packages: ["kubeadm", "kubectl", "kubelet"].map(|name| (name.to_owned(), version)).into(),
            running_kubelet: Some(version),
            static_pods: super::super::manifests::COMPONENTS.map(|name| (name.to_owned(), line.to_owned())).into(),
            etcd_wanted: Some(line.to_owned()),
        };
        report.outcome = Outcome::Midway;
        report.failed_step = Some(Step::KubeletPackages);
        report.message = Some(line.to_owned());
        report.last_lines = vec![line.to_owned(); 40];
        report.before = versions.clone();
        report.after = versions;
        report.steps = Step::ALL
            .map(|name| StepReport { name, seconds: u64::from(u32::MAX), skipped: Some(line.to_owned()) })
            .into();
        report.hand_over.because = line.to_owned();
        report.manifests_changed = super::super::manifests::COMPONENTS.map(str::to_owned).into();
        report.invocation = line.to_owned();
        report
    }

    #[test]
    fn the_worst_report_fits_the_termination_message() {
        for line in ["x".repeat(5000), "\u{1}".repeat(5000), "\"\\".repeat(3000), "ü€".repeat(2000)] {
            let fitted = worst(&line).fitted();
            let text = serde_json::to_string(&fitted).unwrap();
            assert!(text.len() <= TERMINATION_LIMIT, "{} bytes of {line:.3}", text.len());
            assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), fitted);
            assert_eq!(fitted.failed_step, Some(Step::KubeletPackages));
        }
    }

    #[test]
    fn a_report_that_does_not_say_untouched_is_not() {
        let mut report = Report::new("v1.36.3".parse().unwrap());
        assert!(!report.untouched);
        report.untouched = true;
        let mut json = serde_json::to_value(&report).unwrap();
        assert_eq!(json.get("untouched"), Some(&serde_json::Value::Bool(true)));
        json.as_object_mut().unwrap().remove("untouched");
        assert!(!serde_json::from_value::<Report>(json).unwrap().untouched);
    }

    #[test]
    fn a_usual_report_keeps_the_last_ten_lines() {
        let mut report = Report::new("v1.36.3".parse().unwrap());
        report.last_lines = (0..30).map(|n| format!("line {n}")).collect();
        let fitted = report.fitted();
        assert_eq!(fitted.last_lines.len(), 10);
        assert_eq!(fitted.last_lines.last().unwrap(), "line 29");
    }
}
