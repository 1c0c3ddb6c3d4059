//! `quorate upgrade` on a workstation: starts the preflight Job, follows the chain to its end, exits with its code. The chain
//! lives in the cluster: interrupting this changes nothing, and running it again follows what runs.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::upgrade::Upgrade;
use crate::clock::Clock;
use crate::exit::ExitStatus;
use crate::job::{self, JobError, Jobs, State};
use crate::output;
use crate::place;
use crate::report::{Outcome, Report};
use crate::upgrade::chain::{operation, step_request};
use crate::upgrade::lifted::Lifted;
use crate::upgrade::live::Live;
use crate::upgrade::record::{self, Stored};
use crate::version::Version;
use k8s_openapi::api::batch::v1::Job;
use quorum_safety::{Code, NodeName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the chain is looked at.
const EVERY: Duration = Duration::from_millis(700);
/// How long the API may be away before following is given up; the chain goes on without us.
const AWAY: Duration = Duration::from_secs(180);
/// How long a chain may have no running step before it counts as ended.
const GAP: Duration = Duration::from_secs(5);

/// What an upgrade came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    api_version: &'static str,
    kind: &'static str,
    to: Version,
    seconds: u64,
    /// The last step.
    step: String,
    #[serde(flatten)]
    report: Report,
}

/// Runs the command.
///
/// # Errors
/// When the chain could not be started or followed.
pub async fn run(global: &Global, upgrade: &Upgrade, clock: Clock) -> anyhow::Result<ExitStatus> {
    let to = upgrade.to;
    let access = Access::new(global).await?;
    lift(&access, upgrade, clock).await?;
    let jobs = Jobs::new(&access, Vec::new());
    let operation = operation(to);
    let began = clock.boottime();
    let seconds = || clock.boottime().saturating_sub(began).as_secs();
    let mut live = Live::new();
    loop {
        match running(&jobs, &operation, &mut live, &seconds).await? {
            Running::Chain => {
                live.line(seconds(), &format!("an upgrade to {to} is running: following it"));
                break;
            }
            Running::Finishing => {
                live.line(
                    seconds(),
                    "what was left half done is being finished by `quorate reconcile`: following that first",
                );
                let last = follow(&jobs, &operation, clock, &mut live, seconds).await?;
                live.line(seconds(), &format!("{}: {}", last.step, last.report.summary));
            }
            Running::Nothing => {
                if let Some(report) = preflight(global, &access, to, &mut live, seconds()).await? {
                    return finish(global, to, seconds(), "preflight".to_owned(), report);
                }
                break;
            }
        }
    }
    let last = follow(&jobs, &operation, clock, &mut live, seconds).await?;
    live.finish();
    let report = match last.report {
        // What was left is done; the upgrade is not.
        report if last.finishes_only && report.outcome == Outcome::Ok => {
            Report { outcome: Outcome::Midway, ..report }.and("; run the same command again for what is left")
        }
        report => report,
    };
    finish(global, to, seconds(), last.step, report)
}

/// Puts down which checks are lifted, where every step of this upgrade reads it, also of one that runs already.
async fn lift(access: &Access, upgrade: &Upgrade, clock: Clock) -> anyhow::Result<()> {
    let Some(because) = upgrade.because.as_ref().filter(|_| !upgrade.lift.is_empty()) else { return Ok(()) };
    let at = clock.now();
    let until = at + upgrade.lifted_for;
    let lifted = |code: &Code| Lifted { code: *code, because: because.clone(), at, until };
    let lifted: Vec<Lifted> = upgrade.lift.iter().map(lifted).collect();
    let client = access.live(&[]).await?;
    Stored::update(&client, &access.namespace, upgrade.to, None, |record| record.lift(&lifted)).await?;
    lifted.iter().for_each(|it| output::progress(&format!("{it}; recorded in ConfigMap {}", record::name(upgrade.to))));
    Ok(())
}

/// The last step and what it said.
struct Last {
    step: String,
    report: Report,
    finishes_only: bool,
}

/// What runs of an upgrade.
enum Running {
    /// Its chain.
    Chain,
    /// Only a step that finishes or undoes what was left; nothing comes after it by itself.
    Finishing,
    /// Nothing.
    Nothing,
}

async fn running(
    jobs: &Jobs<'_>,
    operation: &str,
    live: &mut Live,
    seconds: &impl Fn() -> u64,
) -> Result<Running, JobError> {
    let mut running = Running::Nothing;
    for job in jobs.of_operation(operation).await?.iter().filter(|job| job::is_step(job)) {
        if job::ended(job).is_some() {
            continue;
        }
        match jobs.look(&name_of(job)).await? {
            // What it did is found by the next one, whatever its container still does: that is the Lease's matter.
            State::Stranded(why) => live.line(seconds(), &format!("{} is given up: {why}", name_of(job))),
            State::Going(_) | State::Ended(_) if !job::finishes_only(job) => return Ok(Running::Chain),
            State::Going(_) => running = Running::Finishing,
            // Its Job's own status says so in a moment.
            State::Ended(_) => {}
        }
    }
    Ok(running)
}

/// Starts preflight; or why it runs on no node.
async fn preflight(
    global: &Global,
    access: &Access,
    to: Version,
    live: &mut Live,
    seconds: u64,
) -> anyhow::Result<Option<Report>> {
    let config = place::configuration(global, access).await?;
    let nodes = place::nodes(access, &config).await?;
    let name = job::name("preflight", Some(&to.to_string()), None);
    let make = |place: &NodeName| step_request(to, "preflight", &name, None, place);
    live.line(seconds, &format!("upgrade to {to}: starting preflight"));
    let jobs = Jobs::new(access, Vec::new());
    match jobs.start_somewhere(&job::candidates(&nodes, None), make, config.times.job_start.get()).await {
        Ok(_) => Ok(None),
        Err(JobError::NotStarted(why)) => {
            let summary = "preflight did not start on any control plane node";
            Ok(Some(Report::with_blockers(Outcome::Unknown, summary, &[], &[why])))
        }
        Err(error) => Err(error.into()),
    }
}

fn finish(global: &Global, to: Version, seconds: u64, step: String, report: Report) -> anyhow::Result<ExitStatus> {
    let status = report.outcome.status();
    let ended = Ended { api_version: quorum_safety::API_VERSION, kind: "Upgrade", to, seconds, step, report };
    output::answer(global.output, &ended, || ended.report.text())?;
    Ok(status)
}

/// Follows until no step runs any more, and gives the last one and what it said.
async fn follow(
    jobs: &Jobs<'_>,
    operation: &str,
    clock: Clock,
    live: &mut Live,
    seconds: impl Fn() -> u64,
) -> anyhow::Result<Last> {
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    let mut answered = clock.boottime();
    let mut idle_since: Option<Duration> = None;
    loop {
        match look(jobs, operation, live, &mut shown, &seconds).await {
            Ok(Some(last)) => {
                let since = *idle_since.get_or_insert(clock.boottime());
                if clock.boottime().saturating_sub(since) >= GAP {
                    return Ok(last);
                }
                answered = clock.boottime();
            }
            Ok(None) => {
                idle_since = None;
                answered = clock.boottime();
            }
            Err(error) => {
                let away = clock.boottime().saturating_sub(answered);
                if away >= AWAY {
                    return Err(anyhow::Error::new(error).context(format!(
                        "the API has not answered for {} s; the chain may go on without us",
                        away.as_secs()
                    )));
                }
            }
        }
        live.tick();
        tokio::time::sleep(EVERY).await;
    }
}

/// Shows what is new; gives the last step's report when none runs.
async fn look(
    jobs: &Jobs<'_>,
    operation: &str,
    live: &mut Live,
    shown: &mut BTreeMap<String, usize>,
    seconds: &impl Fn() -> u64,
) -> Result<Option<Last>, JobError> {
    let mut steps: Vec<Job> = jobs.of_operation(operation).await?.into_iter().filter(job::is_step).collect();
    steps.sort_by_key(|job| job.metadata.creation_timestamp.clone().map(|time| time.0));
    let mut running = false;
    let mut stranded = None;
    for job in &steps {
        let mut is_running = job::ended(job).is_none();
        if is_running && let State::Stranded(why) = jobs.look(&name_of(job)).await? {
            is_running = false;
            let report = Report::unfinished("nothing more is heard of the last step", &why);
            stranded = Some(Last { step: name_of(job), report, finishes_only: job::finishes_only(job) });
        }
        running |= is_running;
        // A finished Job of an earlier run has nothing new to say.
        if is_running || shown.contains_key(&uid(job)) {
            show_log(jobs, job, live, shown, seconds).await?;
        }
    }
    if running {
        return Ok(None);
    }
    if stranded.is_some() {
        return Ok(stranded);
    }
    let Some(last) = steps.last() else {
        let report = missing("no step is left in the cluster");
        return Ok(Some(Last { step: "none".to_owned(), report, finishes_only: false }));
    };
    show_log(jobs, last, live, shown, seconds).await?;
    let report = match jobs.look(&name_of(last)).await? {
        State::Ended(end) => match serde_json::from_str::<Report>(&end.message) {
            // Said before the next one was seen, or somebody has deleted it.
            Ok(Report { next: Some(next), .. }) => missing(&format!("{next} was to go on, and there is no such Job")),
            Ok(report) => report,
            Err(_) => {
                missing(&format!("pod {} on {} ended with {}: {}", end.pod, end.node, end.exit_code, end.message))
            }
        },
        State::Going(state) | State::Stranded(state) => missing(&state),
    };
    Ok(Some(Last { step: name_of(last), report, finishes_only: job::finishes_only(last) }))
}

/// A step that ended without a report was killed: what it left is found and finished by the next run.
fn missing(what: &str) -> Report {
    Report::unfinished("the last step ended without a report", what)
}

fn name_of(job: &Job) -> String {
    job.metadata.name.clone().unwrap_or_default()
}

fn uid(job: &Job) -> String {
    job.metadata.uid.clone().unwrap_or_default()
}

async fn show_log(
    jobs: &Jobs<'_>,
    job: &Job,
    live: &mut Live,
    shown: &mut BTreeMap<String, usize>,
    seconds: &impl Fn() -> u64,
) -> Result<(), JobError> {
    let name = job.metadata.name.clone().unwrap_or_default();
    let target = job.metadata.annotations.as_ref().and_then(|annotations| annotations.get(job::TARGET)).cloned();
    let Some(pod) = jobs.pod_name(&name).await? else { return Ok(()) };
    for line in jobs.new_lines(&pod, shown.entry(uid(job)).or_insert(0)).await {
        // The step's own clock is left out: one clock on the screen.
        let text = line
            .trim_start()
            .split_once(' ')
            .map_or(line.as_str(), |(time, rest)| if time.contains(':') { rest } else { &line });
        live.step(seconds(), target.as_deref(), text);
    }
    Ok(())
}
