//! The steps: each runs in a Job on a control plane node that is not its target, works on one node, and starts the next.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::step::{Step, StepCommand};
use crate::clock::Clock;
use crate::drain;
use crate::event;
use crate::exit::{ExitStatus, UsageError};
use crate::lock::{self, Leases};
use crate::node::Preflight;
use crate::place::{self, OwnPod};
use crate::quiesce;
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End, end, not_permitted, unknown};
use crate::upgrade::disrupt;
use crate::upgrade::fleet::{Fleet, FleetNode};
use crate::upgrade::passing::Passing;
use crate::upgrade::plan::Plan;
use crate::upgrade::postflight;
use crate::version::Version;
use futures::StreamExt;
use quorum_safety::{Disruption, Fact, Mine, NodeName, Verdict};
use std::time::Duration;

/// How often the kill switch is looked at while waiting (incident R31).
const KILL_SWITCH_EVERY: Duration = Duration::from_secs(5);

/// Runs a step and leaves its report.
///
/// # Errors
/// When there is no report at all.
pub async fn run(global: &Global, step: &Step, clock: Clock) -> anyhow::Result<ExitStatus> {
    let (to, target) = match &step.command {
        StepCommand::Preflight(target) | StepCommand::Postflight(target) => (target.to, None),
        StepCommand::ControlPlane(target) | StepCommand::Worker(target) => (Some(target.to), Some(target)),
    };
    let target = target.map(|target| NodeName(target.node.clone()));
    let pod = OwnPod::from_environment()?;
    if let Some(target) = &target {
        pod.not_on(target)?;
    }
    let (report, status) = match attempt(global, step, clock, pod, to, target).await {
        Ok(report) => (report.fitted(), None),
        // No verdict at all: the Job fails and tries again, by the live fleet. Bad usage stays bad.
        Err(error) if error.is::<UsageError>() => return Err(error),
        Err(error) => (unknown(format!("{error:#}")), Some(ExitStatus::Unknown)),
    };
    report.leave()?;
    Ok(status.unwrap_or_else(|| report.outcome.in_job()))
}

async fn attempt(
    global: &Global,
    step: &Step,
    clock: Clock,
    pod: OwnPod,
    to: Option<Version>,
    target: Option<NodeName>,
) -> anyhow::Result<End> {
    let access = Access::new(global).await?;
    let config = place::configuration(global, &access).await?;
    let Some(to) = to.or(config.upgrade.target) else {
        let text = "no version to upgrade to: name one with --to, or as `upgrade.target` in ConfigMap quorate-config";
        return Ok(end(Outcome::Refused, text));
    };
    let mut chain = Chain::new(&access, &config, clock, pod, to);
    chain.finish_only = match &step.command {
        StepCommand::ControlPlane(order) | StepCommand::Worker(order) => order.finish_only,
        StepCommand::Preflight(_) | StepCommand::Postflight(_) => false,
    };
    chain.recorded().await?.lifted_now(clock.now()).for_each(|lifted| chain.say(&lifted.to_string()));
    let report = match (chain.same_image().await?, &step.command, &target) {
        (Some(stop), ..) => stop,
        (None, StepCommand::Postflight(_), _) => postflight::run(&chain).await?,
        (None, StepCommand::ControlPlane(_) | StepCommand::Worker(_), Some(node)) if chain.finish_only => {
            finish(&chain, node).await?
        }
        (None, StepCommand::ControlPlane(_) | StepCommand::Worker(_), Some(node)) => one_node(&chain, node).await?,
        (None, StepCommand::Preflight(_) | StepCommand::ControlPlane(_) | StepCommand::Worker(_), _) => {
            preflight(&chain).await?
        }
    };
    // Nobody follows it: people are told.
    if let (true, Some(node)) = (chain.finish_only, &target) {
        event::about_node(&access, node, event::finished(&report), clock).await;
    }
    Ok(report)
}

/// Checks everything that can be checked before anything is touched, then starts the first node. What is half done is finished
/// before anything is checked: it may be what fails the checks.
async fn preflight(chain: &Chain<'_>) -> anyhow::Result<End> {
    let seen = chain.look(Mine::Nothing).await;
    let (fleet, plan) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    chain.say(&format!("preflight: {} nodes, {} not on {}", fleet.nodes.len(), plan.steps.len(), chain.to));
    if let Some(half) = plan.steps.iter().find(|step| step.begun) {
        chain.say(&format!("preflight: {} is half done and goes first", half.node));
        return start_next(chain, &seen, &plan).await;
    }
    if let Some(reason) = chain.stopped().await {
        return Ok(not_permitted("nothing was begun", &[reason]));
    }
    let seen = if give_block_back(chain).await { chain.look(Mine::Nothing).await } else { seen };
    // What fails is met again by the rehearsal.
    for error in chain.restore_left().await {
        chain.say(&format!("preflight: {error}"));
    }
    let checked = check_nodes(chain, &fleet).await?;
    // Once more with the packages' versions: a node whose kubeadm lags is not done.
    let (_, plan) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    if plan.steps.is_empty() && checked.unheard.is_empty() {
        return Ok(end(Outcome::Ok, format!("nothing to do: all {} nodes are on {}", plan.done.len(), chain.to)));
    }
    let needed = |node: &NodeName| plan.steps.iter().any(|step| step.node == *node);
    let (mut blockers, mut unknowns) = fleet.unwell_workers();
    blockers.extend(rehearsals(chain, &plan).await?);
    if plan.steps.iter().any(|step| step.control_plane) {
        let rehearsal = quiesce::rehearse(chain.access, chain.config, chain.clock).await?;
        rehearsal.told.iter().for_each(|line| chain.say(&format!("preflight: {line}")));
        blockers.extend(rehearsal.blockers);
    }
    unknowns.extend(checked.unheard);
    for (node, answer) in checked.answers.iter().filter(|(node, _)| needed(node)) {
        blockers.extend(answer.blockers.iter().map(|text| format!("{node}: {text}")));
        // Its Lease may have been deleted; whatever it does, it takes its node down.
        if let Fact::Known(Some(unit)) = &answer.running {
            blockers.push(format!("{node}: `{unit}` runs on its host"));
        }
        unknowns.extend(answer.unknown.iter().map(|text| format!("{node}: {text}")));
        for note in &answer.notes {
            chain.say(&format!("preflight: {node}: {note}"));
        }
    }
    if let Some(outcome) = Outcome::of_blockers(&blockers, &unknowns) {
        blockers.extend(unknowns);
        return Ok(Report::with_blockers(outcome, "nothing was begun", &[], &blockers));
    }
    let mut seen = seen;
    if let Some(first) = plan.steps.first() {
        let passing = Passing::of(chain, &first.node);
        loop {
            let verdict = chain.judge(&seen, Disruption::Upgrade(first.node.clone())).await?;
            if matches!(verdict, Verdict::Permitted(_)) {
                break;
            }
            if !passing.another_look(verdict.reasons()).await {
                return Ok(not_permitted("nothing was begun", verdict.reasons()).on(&seen.observation));
            }
            seen = chain.look(Mine::Nothing).await;
        }
        chain.say(&format!("preflight: passed; {} first", first.node));
    }
    start_next(chain, &seen, &plan).await
}

/// Gives kured's lock back where a block of ours was left in it by what is over. Only when nothing is half done: then the block may be all
/// that keeps kured from a second node. Says whether there was one.
async fn give_block_back(chain: &Chain<'_>) -> bool {
    let leases = Leases::new(chain.access.clone(), Vec::new(), lock::timings(chain.config), chain.clock);
    match lock::kured::clear_stale(&leases, &chain.config.kured, &lock::names(chain.config)).await {
        Ok(None) => false,
        Ok(Some(block)) => {
            chain.say(&format!("preflight: kured's lock was left by {block}, which is over: given back"));
            true
        }
        // What it is then is judged with everything else.
        Err(why) => {
            chain.say(&format!("preflight: whether kured's lock was left by somebody is not known: {why}"));
            false
        }
    }
}

/// What the nodes said of themselves.
struct Checked {
    answers: Vec<(NodeName, Preflight)>,
    /// Why some said nothing.
    unheard: Vec<String>,
}

/// Workers that are looked at, at the same time.
const LOOKS: usize = 8;

/// Read-only node Jobs; what they say of packages, and of the etcd that kubeadm wants, is recorded. A look starts a pod and asks apt:
/// nothing of ours may load two voters at the same time, so control plane nodes are looked at one after the other.
async fn check_nodes(chain: &Chain<'_>, fleet: &Fleet) -> anyhow::Result<Checked> {
    let look = async |node: &FleetNode| (node.name.clone(), chain.node_preflight(&node.name).await);
    let looks = |control_plane: bool, at_once: usize| {
        let nodes = fleet.nodes.iter().filter(move |node| node.control_plane == control_plane);
        futures::stream::iter(nodes.map(look)).buffered(at_once).collect::<Vec<_>>()
    };
    let (control_plane, workers) = futures::join!(looks(true, 1), looks(false, LOOKS));
    let mut checked = Checked { answers: Vec::new(), unheard: Vec::new() };
    for (node, answer) in control_plane.into_iter().chain(workers) {
        match answer {
            Fact::Known(answer) => checked.answers.push((node, answer)),
            Fact::Unknown(why) => checked.unheard.push(why),
        }
    }
    chain
        .record(|record| checked.answers.iter().for_each(|(node, answer)| record.heard(node, &answer.versions)))
        .await?;
    Ok(checked)
}

/// Every drain that is to come, rehearsed before the first cordon. Budgets may look otherwise by then; what never allows an
/// eviction is found here.
async fn rehearsals(chain: &Chain<'_>, plan: &Plan) -> anyhow::Result<Vec<String>> {
    let options = drain::Options::new(chain.config, Some(chain.pod.uid.clone()));
    let mut blockers = Vec::new();
    for step in &plan.steps {
        let rehearsal = drain::rehearse(chain.access, &step.node.0, &options).await?;
        blockers.extend(
            rehearsal
                .stopping()
                .iter()
                // This very pod runs on one of the nodes; by then its step has ended.
                .filter(|blocker| blocker.pod.uid != chain.pod.uid)
                .map(|blocker| format!("{}: {blocker}", step.node)),
        );
    }
    Ok(blockers)
}

/// One node's step. Which node is whose turn is asked of the live fleet, not of the Job's name (incident R35).
async fn one_node(chain: &Chain<'_>, node: &NodeName) -> anyhow::Result<End> {
    let seen = chain.look(Mine::Nothing).await;
    let (fleet, plan) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    let Some(turn) = plan.steps.first() else { return start_next(chain, &seen, &plan).await };
    let Some(step) = plan.steps.iter().find(|step| step.node == *node) else {
        chain.say(&format!("{node}: on target, left alone"));
        return start_next(chain, &seen, &plan).await;
    };
    // What is half done before all others, a control plane node before all workers, and the recorded one before the others;
    // otherwise the order may differ: who leads etcd has changed since the Job was made.
    let out_of_turn =
        turn.node != step.node && (turn.begun || turn.control_plane != step.control_plane || turn.mode != step.mode);
    if out_of_turn {
        chain.say(&format!("{node}: {} comes first", turn.node));
        return start_next(chain, &seen, &plan).await;
    }
    chain.say(&format!("{node}: {}", step.missing.join(", ")));
    if let Some(stop) = disrupt::upgrade(chain, &fleet, step).await? {
        return Ok(stop);
    }
    let seen = chain.look(Mine::Nothing).await;
    let (_, plan) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    if let Some(left) = plan.steps.iter().find(|left| left.node == *node) {
        let missing = left.missing.join(", ");
        let summary = format!(
            "{node} was upgraded and recovered, and is still not on target: {missing}; `quorate upgrade --to {}` goes on",
            chain.to
        );
        return Ok(end(Outcome::Midway, summary));
    }
    if !step.control_plane
        && plan.steps.iter().any(|left| !left.control_plane)
        && let Some(stop) = soak(chain, node).await
    {
        return Ok(stop);
    }
    start_next(chain, &seen, &plan).await
}

/// Finishes or undoes what is half done on a node, for `quorate reconcile`; starts nothing after it.
async fn finish(chain: &Chain<'_>, node: &NodeName) -> anyhow::Result<End> {
    let seen = chain.look(Mine::Nothing).await;
    let (fleet, plan) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    let Some(half) = plan.steps.iter().find(|step| step.node == *node && step.begun) else {
        return Ok(end(Outcome::Ok, format!("{node}: nothing is half done on it")));
    };
    chain.say(&format!("{node}: {}", half.missing.join(", ")));
    match disrupt::upgrade(chain, &fleet, half).await? {
        Some(stop) => Ok(stop),
        None => {
            let then = format!("`quorate upgrade --to {}` goes on with what is left", chain.to);
            Ok(end(Outcome::Ok, format!("{node}: what was half done is finished; {then}")))
        }
    }
}

/// Waits between two workers; the kill switch ends the wait.
async fn soak(chain: &Chain<'_>, node: &NodeName) -> Option<End> {
    let soak = chain.config.times.worker_soak.get();
    chain.say(&format!("{node}: done; {} s until the next worker", soak.as_secs()));
    let until = chain.clock.boottime() + soak;
    while chain.clock.boottime() < until {
        if let Some(reason) = chain.stopped().await {
            return Some(not_permitted(format!("{node} is done; nothing more was begun"), &[reason]));
        }
        tokio::time::sleep(KILL_SWITCH_EVERY.min(until.saturating_sub(chain.clock.boottime()))).await;
    }
    None
}

/// Starts what comes next. When that fails, what is done stays as it is, and the Job tries again. The kill switch stops what would begin
/// something, not the way back of what is half done.
async fn start_next(chain: &Chain<'_>, seen: &Seen, plan: &Plan) -> anyhow::Result<End> {
    let begins = !plan.steps.first().is_some_and(|step| step.begun);
    if begins && let Some(reason) = chain.stopped().await {
        return Ok(not_permitted("nothing more was begun", &[reason]));
    }
    let next = chain.start_next(seen, plan).await?;
    Ok(chain.goes_on("done", next))
}
