//! `quorate gate`: observe, judge, report. In place, in a Job, or from a workstation by a Job.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::gate::Gate;
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::{ExitStatus, UsageError};
use crate::job::{self, Jobs, Placement, Request};
use crate::observe::Sources;
use crate::output;
use crate::place::{self, InPlace, OwnPod};
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::status::{self, Status};
use quorum_safety::{Answer, Code, Disruption, Mine, NodeName, Reason, Record, StoredVerdict};
use std::path::Path;
use std::time::Duration;

/// How long a gate Job may take, from its pod's start.
const JOB_DEADLINE: Duration = Duration::from_secs(90);

/// Runs the command.
///
/// # Errors
/// When there is no verdict at all.
pub async fn run(global: &Global, gate: &Gate, clock: Clock) -> anyhow::Result<ExitStatus> {
    let node = gate.node.as_deref().map(NodeName::from);
    if gate.here {
        let place = InPlace::new(global).await?;
        let node = node.unwrap_or_else(|| place.node.clone());
        let config = place.configuration(global).await?;
        let seen = seen::look(&place.sources(), &config, Mine::Nothing, clock).await;
        return answer(global, judged(&seen, &node, &config));
    }
    let access = Access::new(global).await?;
    if gate.in_job {
        let pod = OwnPod::from_environment()?;
        if let Some(node) = &node {
            pod.not_on(node)?;
        }
        let config = place::configuration(global, &access).await?;
        return in_job(&access, node, &config, &place::in_pod(&access), clock).await;
    }
    match node {
        Some(node) => {
            let record = by_job(global, &access, &node, clock).await?;
            answer_either(global, record)
        }
        None => status::fresh(global, &access, clock).await,
    }
}

/// Judges an upgrade or reboot of a node on what was seen.
fn judged(seen: &Seen, node: &NodeName, config: &Config) -> Record {
    let wanted = Disruption::Upgrade(node.clone());
    Record::judged(seen.observation.clone(), seen.in_flight.clone(), wanted, config.policy()).1
}

async fn in_job(
    access: &Access,
    node: Option<NodeName>,
    config: &Config,
    sources: &Sources<'_>,
    clock: Clock,
) -> anyhow::Result<ExitStatus> {
    let seen = seen::look(sources, config, Mine::Nothing, clock).await;
    if let Err(error) = publish(access, &seen).await {
        tracing::warn!(%error, "The observation could not be published");
    }
    let (report, document) = match node {
        Some(node) => {
            let record = judged(&seen, &node, config);
            let report = Report::new(Outcome::of(&record.verdict), summary(&record), &record.verdict.reasons);
            let report = report.on(&record.observation);
            (report, serde_json::to_string(&record)?)
        }
        None => {
            let status = Status::of(&seen, config);
            (Report::new(Outcome::Ok, status.summary(), &[]).on(&seen.observation), serde_json::to_string(&status)?)
        }
    };
    // One line, so that whoever reads the pod's log finds it among the lines of standard error.
    output::line(&document);
    output::terminate_with(Path::new(output::TERMINATION_LOG), &report.document())?;
    Ok(report.outcome.in_job())
}

async fn publish(access: &Access, seen: &Seen) -> anyhow::Result<()> {
    let client = access.live(&[]).await?;
    Ok(seen.publish(&client, &access.namespace).await?)
}

/// What a gate Job said: its whole record, or only the report when its log could not be read.
pub enum Said {
    /// Everything.
    Record(Box<Record>),
    /// The termination message only.
    Report(Report),
}

/// Asks by a Job on a control plane node that is not the target.
async fn by_job(global: &Global, access: &Access, node: &NodeName, clock: Clock) -> anyhow::Result<Said> {
    let config = place::configuration(global, access).await?;
    let nodes = place::nodes(access, &config).await?;
    if !nodes.iter().any(|present| present.name == *node) {
        let names: Vec<String> = nodes.iter().map(|node| node.name.to_string()).collect();
        return Err(UsageError(format!("no node is called `{node}`: there are {}", names.join(", "))).into());
    }
    let candidates = job::candidates(&nodes, Some(node));
    if candidates.is_empty() {
        // Nobody else could look at etcd from another node; and whatever it said, one voter alone has no majority to spare.
        let reason = Reason::new(Code::SingleVoter, format!("{node} is the only control plane node"));
        return Ok(Said::Report(Report::new(Outcome::Refused, format!("{node} must not go down"), &[reason])));
    }
    let jobs = Jobs::new(access, Vec::new());
    let name = job::unique_name("gate", Some(node), clock);
    let make = |place: &NodeName| Request {
        template: "quorate-gate",
        name: name.clone(),
        args: vec!["gate".to_owned(), "--in-job".to_owned(), "--node".to_owned(), node.0.clone()],
        operation: "gate".to_owned(),
        target: Some(node.clone()),
        placement: Placement::On(place.clone()),
    };
    let end = match jobs.run_somewhere(&candidates, make, config.times.job_start.get(), JOB_DEADLINE).await {
        Ok(end) => end,
        Err(error @ (job::JobError::NotStarted(_) | job::JobError::NotEnded { .. })) => {
            let reason = Reason::new(Code::MembershipUnknown, format!("no control plane node could look: {error}"));
            return Ok(Said::Report(Report::new(Outcome::Unknown, "nobody could look", &[reason])));
        }
        Err(error) => return Err(error.into()),
    };
    let log = jobs.log(&end.pod).await;
    if let Err(error) = jobs.discard(&name).await {
        tracing::warn!(%error, "The gate's Job stays until its time to live is over");
    }
    if let Ok(log) = log
        && let Some(record) = document::<Record>(&log)
    {
        return Ok(Said::Record(Box::new(record)));
    }
    match serde_json::from_str::<Report>(&end.message) {
        Ok(report) => Ok(Said::Report(report)),
        Err(_) => {
            let text = format!(
                "the gate's pod {} on {} ended with {} and left no verdict: {}",
                end.pod, end.node, end.exit_code, end.message
            );
            Ok(Said::Report(Report::new(Outcome::Unknown, text.clone(), &[Reason::new(Code::MembershipUnknown, text)])))
        }
    }
}

/// The JSON document in a pod's log: the last line that is one.
pub(crate) fn document<T: serde::de::DeserializeOwned>(log: &str) -> Option<T> {
    log.lines().rev().filter(|line| line.starts_with('{')).find_map(|line| serde_json::from_str(line).ok())
}

fn answer_either(global: &Global, said: Said) -> anyhow::Result<ExitStatus> {
    match said {
        Said::Record(record) => answer(global, *record),
        Said::Report(report) => {
            output::answer(global.output, &report.document(), || report.text())?;
            Ok(report.outcome.status())
        }
    }
}

fn answer(global: &Global, record: Record) -> anyhow::Result<ExitStatus> {
    output::answer(global.output, &record, || render(&record.verdict, &summary(&record)))?;
    Ok(Outcome::of(&record.verdict).status())
}

/// The verdict in one sentence.
pub(crate) fn summary(record: &Record) -> String {
    let wanted = &record.disruption;
    match record.verdict.answer {
        Answer::Permitted => match record.verdict.margin {
            Some(0) => format!("{wanted}: permitted; while it lasts no other voter may fail"),
            Some(margin) => format!("{wanted}: permitted; while it lasts {margin} more may fail"),
            None => format!("{wanted}: permitted"),
        },
        Answer::Held => format!("{wanted}: held, not now"),
        Answer::Refused => format!("{wanted}: refused"),
    }
}

/// A verdict for people: the sentence, and each reason on a line.
pub(crate) fn render(verdict: &StoredVerdict, summary: &str) -> String {
    let mut text = summary.to_owned();
    for reason in &verdict.reasons {
        text.push_str(&format!("\n  {reason}"));
    }
    text
}
