//! Work on a node itself. A privileged pod pinned to the node enters the host and either looks (`preflight`) or starts a systemd unit
//! that does the work (`upgrade` starts `run`) and waits for its end; the unit survives the pod. What the step needs to know comes as
//! arguments, and what is done is seen from the host's own state; the API is asked for one thing only (`mirror`).

use crate::cli::node::{NodeCommand, Upgrade};
use crate::clock::Clock;
use crate::exit::ExitStatus;
use crate::output;
use crate::replace::replace;
use anyhow::Context;
use report::{Outcome, Report};
use serde::Serialize;
use std::path::Path;

mod apiserver;
mod aside;
mod certificate;
pub(crate) mod command;
mod connections;
mod conntrack;
mod enter;
mod etcd;
mod handover;
mod host;
mod known_ready;
mod kubeadm;
pub(crate) mod manifests;
mod mark;
mod mirror;
mod netlink;
mod nft;
mod packages;
mod plan;
mod preflight;
pub(crate) mod probe;
pub(crate) mod program;
mod report;
mod repository;
mod run;
mod unit;
mod unready;

pub use plan::Step;
pub use preflight::Preflight;
pub use report::{HandOverReport, Outcome as NodeOutcome, Report as NodeReport, StepReport, Versions};

/// The unit on the host; its name is the lock there. "No such unit" is half of the proof that a holder is gone.
pub const UNIT: &str = "quorate-node-step.service";
/// The last report, on the host, in memory: a disk that is full is what some of them tell of. Nobody decides anything by it.
pub const RESULT: &str = "/run/quorate/node-step.json";

/// Runs `quorate node …`.
///
/// # Errors
/// When the host cannot be entered, or the answer cannot be given.
pub async fn main(command: &NodeCommand, clock: Clock) -> anyhow::Result<ExitStatus> {
    match command {
        NodeCommand::Preflight(order) => {
            let container = enter::host()?;
            let answer = preflight::preflight(order, clock).await.fitted();
            say(&container.termination_log(), &answer)?;
            // What blocks is in the answer, and so is what could not be seen: the Job completes.
            Ok(ExitStatus::Ok)
        }
        NodeCommand::Upgrade(order) => {
            let mut container = enter::host()?;
            let report = match unit::start_or_attach(order, &mut container, clock).await {
                Ok(report) => report,
                Err(error) => without_unit(order, &error),
            };
            say(&container.termination_log(), &report.clone().fitted())?;
            Ok(status(&report))
        }
        NodeCommand::Run(order) => {
            let mut report = run::upgrade(order, clock).await;
            report.invocation = invocation();
            let report = report.fitted();
            leave(Path::new(RESULT), &report)?;
            output::progress(&format!("{}: {:?}", unit::description(order), report.outcome));
            Ok(status(&report))
        }
        NodeCommand::HandOver(order) => {
            enter::host()?;
            aside::hold_on_host(order).await
        }
        NodeCommand::PutBack(order) => {
            run::put_back_after(order)?;
            Ok(ExitStatus::Ok)
        }
    }
}

/// A refusal is an answer: the Job completes. Midway and unknown fail it.
fn status(report: &Report) -> ExitStatus {
    match report.outcome {
        Outcome::Done | Outcome::Refused => ExitStatus::Ok,
        Outcome::Unknown => ExitStatus::Unknown,
        Outcome::Midway => ExitStatus::Midway,
    }
}

/// The report of a pod that got none from the unit. It never says `untouched`: what another step, or a unit that gave no answer,
/// does on this host is not known here.
fn without_unit(order: &Upgrade, error: &unit::UnitError) -> Report {
    let mut report = Report::new(order.to);
    report.message = Some(error.to_string());
    report.outcome = match error {
        unit::UnitError::Other { .. } => Outcome::Refused,
        // It was killed, or is still at it: what it changed is not known, so it counts as begun.
        unit::UnitError::NoReport(_) | unit::UnitError::StillRuns(_) => Outcome::Midway,
        unit::UnitError::Tool(error) => {
            report.last_lines = error.last_lines();
            Outcome::Unknown
        }
        unit::UnitError::File { .. } => Outcome::Unknown,
    };
    report
}

/// One line of JSON on standard output, the last line of the pod's log, and the same in the termination message.
fn say<T: Serialize>(termination_log: &Path, answer: &T) -> anyhow::Result<()> {
    output::line(&serde_json::to_string(answer)?);
    output::terminate_with(termination_log, answer)
}

/// Leaves the report on the host, whole or not at all.
fn leave(path: &Path, report: &Report) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        replace(path, &serde_json::to_vec(report)?, 0o644)
    };
    write().with_context(|| format!("cannot leave the report at {}", path.display()))
}

/// systemd's id of this run of the unit; empty outside of one.
fn invocation() -> String {
    std::env::var("INVOCATION_ID").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::Mode;

    #[test]
    fn a_pod_without_an_answer_of_the_unit_never_says_untouched() {
        let order = Upgrade::bare("v1.36.3", Mode::Node);
        let tool = command::ToolError::Start { tool: "systemd-run".to_owned(), why: "not there".to_owned() };
        for (error, outcome) in [
            (unit::UnitError::Other { running: "a".to_owned(), wanted: "b".to_owned() }, Outcome::Refused),
            (unit::UnitError::NoReport("oom-kill".to_owned()), Outcome::Midway),
            (unit::UnitError::StillRuns(1), Outcome::Midway),
            (unit::UnitError::Tool(tool), Outcome::Unknown),
            (unit::UnitError::File { path: RESULT.into(), source: std::io::Error::other("x") }, Outcome::Unknown),
        ] {
            let report = without_unit(&order, &error);
            assert_eq!(report.outcome, outcome, "{error}");
            assert!(!report.untouched, "{error}");
        }
    }
}
