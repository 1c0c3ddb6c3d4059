//! `quorate reconcile`: looks for what was left half done, and starts what finishes or undoes it. It never begins anything: what has
//! changed nothing on a host is taken back, what has is finished, and the next node is nobody's business here. A CronJob runs it every
//! ten minutes; what it did is an Event on the node and a line.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::reconcile::Reconcile;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::{self, Told};
use crate::exit::ExitStatus;
use crate::job::{self, JobError, Jobs, Placement, Request, State};
use crate::lock::{self, Claimant, Guard, Leases, Taken, take};
use crate::output;
use crate::place::{self, OwnPod};
use crate::quiesce;
use crate::report::{Outcome, Report};
use crate::upgrade::chain::{kind_of_step, step_request};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use plan::{About, Act, Finish, JobState, LeaseLook, StepJob, decide};
use quorum_safety::{Cordon, Fact, NodeName, NodeView};
use std::time::Duration;

pub mod plan;

/// How long the Job of the command line may take: it waits for a proof once, and for a step's pod to start.
const JOB_DEADLINE: Duration = Duration::from_secs(300);
/// How long to wait for the proof that a holder is gone that has changed nothing.
const PATIENCE: Duration = Duration::from_secs(90);
/// The reason of the Event of what was given back.
const RELEASED: &str = "QuorateReleased";

/// Runs the command.
///
/// # Errors
/// When it could not be found out what is left.
pub async fn run(global: &Global, args: &Reconcile, clock: Clock) -> anyhow::Result<ExitStatus> {
    let access = Access::new(global).await?;
    let config = place::configuration(global, &access).await?;
    if args.in_job {
        let pod = OwnPod::from_environment()?;
        let report = reconcile(&access, &config, &pod, clock).await?.fitted();
        report.leave()?;
        return Ok(report.outcome.in_job());
    }
    let report = by_job(&access, &config, clock).await?;
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(report.outcome.status())
}

/// Asks by a Job, and reads its report.
async fn by_job(access: &Access, config: &Config, clock: Clock) -> anyhow::Result<Report> {
    let nodes = place::nodes(access, config).await?;
    let jobs = Jobs::new(access, Vec::new());
    let name = job::unique_name("reconcile", None, clock);
    let make = |place: &NodeName| Request {
        template: "quorate-reconcile",
        name: name.clone(),
        args: vec!["reconcile".to_owned(), "--in-job".to_owned()],
        operation: "reconcile".to_owned(),
        target: None,
        placement: Placement::On(place.clone()),
    };
    let candidates = job::candidates(&nodes, None);
    let end = match jobs.run_somewhere(&candidates, make, config.times.job_start.get(), JOB_DEADLINE).await {
        Ok(end) => end,
        Err(error @ (JobError::NotStarted(_) | JobError::NotEnded { .. })) => {
            return Ok(Report::with_blockers(Outcome::Unknown, "nobody could look", &[], &[error.to_string()]));
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = jobs.discard(&name).await {
        tracing::warn!(%error, "The Job stays until its time to live is over");
    }
    serde_json::from_str(&end.message).or_else(|_| {
        let text = format!("its pod {} on {} ended with {}: {}", end.pod, end.node, end.exit_code, end.message);
        Ok(Report::with_blockers(Outcome::Unknown, "there is no answer", &[], &[text]))
    })
}

/// One pass.
async fn reconcile(access: &Access, config: &Config, pod: &OwnPod, clock: Clock) -> anyhow::Result<Report> {
    let jobs = Jobs::new(access, Vec::new());
    let leases = Leases::new(access.clone(), Vec::new(), lock::timings(config), clock);
    // In this order: a step gives its Lease back before its Job ends. A Job that has ended, and then a Lease that is held for it, is
    // something left behind.
    let steps = steps(&jobs).await?;
    let looks = looks(&leases, config).await?;
    let nodes = place::nodes(access, config).await?;
    let mut told = Said::default();
    let mut next = None;
    for act in decide(&looks, &nodes, &steps, clock.now()) {
        match act {
            Act::Finish(finish) => {
                let (started, note) = start(&jobs, config, &nodes, &finish).await;
                let reason = if started.is_some() { "QuorateFinishing" } else { "QuorateNotFinished" };
                let event = Told { warning: started.is_none(), reason, note: note.clone() };
                event::about_node(access, &finish.node, event, clock).await;
                if started.is_some() {
                    told.done.push(note)
                } else {
                    told.left.push(note)
                }
                next = next.or(started);
            }
            Act::Free { lease, operation, target } => match free(&leases, pod, &lease, (&operation, &target)).await {
                Ok(note) => told.did(access, RELEASED, &lease, note, clock).await,
                Err(note) => told.left.push(note),
            },
            Act::Leave(why) => told.left.push(why),
            Act::Hand(about, what) => told.hand(access, about, what, clock).await,
        }
    }
    // With anything half done, or not known, our block may be all that keeps kured from a second node; whoever finishes it takes it over.
    let half_done = next.is_some() || !told.left.is_empty() || !told.hands.is_empty();
    if half_done || nodes.iter().any(|node| matches!(node.cordon, Cordon::Ours(_))) {
        return Ok(told.report(next));
    }
    match lock::kured::clear_stale(&leases, &config.kured, &lock::names(config)).await {
        Ok(None) => {}
        Ok(Some(block)) => {
            let note = format!("kured's lock was left by {block}, which is over: given back");
            told.did(access, RELEASED, lock::CONTROL_PLANE, note, clock).await;
        }
        Err(why) => told.left.push(format!("whether kured's lock was left by somebody is not known: {why}")),
    }
    let restored = quiesce::restore_left(access, config, &leases).await;
    for note in restored.told {
        told.did(access, "QuorateRestored", lock::CONTROL_PLANE, note, clock).await;
    }
    for error in restored.failed {
        if error.is_unknown() {
            told.left.push(error.to_string());
        } else {
            told.hand(access, About::Lease(lock::CONTROL_PLANE.to_owned()), error.to_string(), clock).await;
        }
    }
    Ok(told.report(next))
}

/// Starts the step that finishes or undoes; gives its Job, if it runs, and a sentence.
async fn start(jobs: &Jobs<'_>, config: &Config, nodes: &[NodeView], finish: &Finish) -> (Option<String>, String) {
    let Finish { to, node, control_plane, what, attempt } = finish;
    let kind = kind_of_step(*control_plane);
    let name = job::name(kind, Some(&to.to_string()), Some(node));
    let make = |place: &NodeName| {
        let mut request = step_request(*to, kind, &name, Some(node), place);
        request.args.extend([job::FINISH_ONLY.to_owned(), format!("--attempt={attempt}")]);
        request
    };
    let candidates = job::candidates(nodes, Some(node));
    let half = format!("the upgrade to {to} is half done on {node}: {what}");
    match jobs.start_somewhere(&candidates, make, config.times.job_start.get()).await {
        Ok(job) => {
            let note = format!("{half}; {job} finishes or undoes it (attempt {attempt})");
            (Some(job), note)
        }
        Err(error) => (None, format!("{half}; no step could be started: {error}")),
    }
}

/// What was done, what was left alone, what needs a person.
#[derive(Debug, Default)]
struct Said {
    done: Vec<String>,
    left: Vec<String>,
    hands: Vec<String>,
}

impl Said {
    async fn did(&mut self, access: &Access, reason: &'static str, lease: &str, note: String, clock: Clock) {
        let event = Told { warning: false, reason, note: note.clone() };
        event::about_lease(access, lease, event, clock).await;
        self.done.push(note);
    }

    async fn hand(&mut self, access: &Access, about: About, what: String, clock: Clock) {
        let event = Told { warning: true, reason: "QuorateNeedsAHand", note: what.clone() };
        match about {
            About::Lease(lease) => event::about_lease(access, &lease, event, clock).await,
            About::Node(node) => event::about_node(access, &node, event, clock).await,
        }
        self.hands.push(what);
    }

    fn report(self, next: Option<String>) -> Report {
        let outcome = if self.left.is_empty() && self.hands.is_empty() { Outcome::Ok } else { Outcome::Held };
        let summary = match (self.done.len(), self.left.len(), self.hands.len()) {
            (0, 0, 0) => "nothing is half done".to_owned(),
            (done, left, 0) => format!("{done} done, {left} left alone"),
            (done, left, hands) => format!("{done} done, {left} left alone, {hands} need a hand"),
        };
        let lines: Vec<String> = self.hands.into_iter().chain(self.done).chain(self.left).collect();
        let mut report = Report::with_blockers(outcome, summary, &[], &lines);
        report.next = next;
        report
    }
}

/// The Jobs of all steps and how they stand.
async fn steps(jobs: &Jobs<'_>) -> Result<Vec<StepJob>, JobError> {
    let mut steps = Vec::new();
    for job in jobs.all().await? {
        // Only of those that have not ended is more asked.
        let Some(mut step) = StepJob::of(&job, JobState::Ended(ended_at(&job))) else { continue };
        if job::ended(&job).is_none() {
            step.state = match jobs.look(&step.name).await? {
                State::Going(_) => JobState::Going,
                State::Stranded(why) => JobState::Stranded(why),
                // Its pod has ended, and the Job's own status says so in a moment.
                State::Ended(_) => JobState::Ended(None),
            };
        }
        steps.push(step);
    }
    Ok(steps)
}

fn ended_at(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let over =
        conditions.iter().filter(|one| one.status == "True" && matches!(one.type_.as_str(), "Complete" | "Failed"));
    over.filter_map(|one| one.last_transition_time.as_ref()).map(|time| time.0).max()
}

/// All Leases, and whether their holders live.
async fn looks(leases: &Leases, config: &Config) -> anyhow::Result<Vec<LeaseLook>> {
    let client = leases.client().await?;
    let mut looks = Vec::new();
    for name in lock::names(config) {
        let seen = leases.read(&name).await?;
        let life = lock::report::life_of(leases, &client, &seen.view).await;
        looks.push(LeaseLook { name, abandoned: seen.abandoned(), view: seen.view, life });
    }
    Ok(looks)
}

/// Takes a Lease over from a holder that has changed nothing and is proven gone, and gives it back. Says what was done, or why not.
async fn free(
    leases: &Leases,
    pod: &OwnPod,
    lease: &str,
    (operation, target): (&str, &NodeName),
) -> Result<String, String> {
    let held = format!("Lease {lease} is held for {operation} on {target}, which has changed nothing");
    let who = Claimant::in_pod(leases, (leases.namespace(), &pod.name), ("reconcile", target), "reconcile")
        .await
        .map_err(|why| format!("{held}: {why}"))?;
    let unit = |_| async { Fact::Unknown("not looked at by reconcile".to_owned()) };
    match take(leases, lease, &who, PATIENCE, unit).await {
        Taken::Got(guard) => match Guard::release(*guard).await {
            Ok(()) => Ok(format!("{held}; its holder is gone: it is free")),
            Err(error) => Err(format!("{held}; its holder is gone, and it could not be given back: {error}")),
        },
        Taken::Held(waits) => {
            let waits: Vec<String> = waits.iter().map(ToString::to_string).collect();
            Err(format!("{held}, and is not free: {}", waits.join("; ")))
        }
    }
}
