//! The steps: each runs in a Job on a control plane node that is not its target, works on one node, and starts the next.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::step::{Step, StepCommand};
use crate::clock::Clock;
use crate::drain;
use crate::exit::ExitStatus;
use crate::output;
use crate::place::{self, OwnPod};
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End, end, not_permitted, unknown};
use crate::upgrade::disrupt;
use crate::upgrade::plan::Plan;
use crate::upgrade::postflight;
use crate::version::Version;
use quorum_safety::{Disruption, Fact, Mine, NodeName, Verdict};
use std::path::Path;
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
        StepCommand::ControlPlane(target) | StepCommand::Worker(target) => {
            (Some(target.to), Some(NodeName(target.node.clone())))
        }
    };
    let pod = OwnPod::from_environment()?;
    if let Some(target) = &target {
        pod.not_on(target)?;
    }
    let report = match attempt(global, step, clock, pod, to, target).await {
        Ok(report) => report,
        // Nothing was touched: what disrupts reports its own end.
        Err(error) => unknown(format!("{error:#}")),
    };
    output::line(&serde_json::to_string(&report)?);
    output::terminate_with(Path::new(output::TERMINATION_LOG), &report)?;
    Ok(report.outcome.in_job())
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
    let chain = Chain::new(&access, &config, clock, pod, to);
    if let Some(stop) = chain.same_image().await? {
        return Ok(stop);
    }
    match (&step.command, target) {
        (StepCommand::Postflight(_), _) => postflight::run(&chain).await,
        (StepCommand::ControlPlane(_) | StepCommand::Worker(_), Some(node)) => one_node(&chain, &node).await,
        (StepCommand::Preflight(_) | StepCommand::ControlPlane(_) | StepCommand::Worker(_), _) => {
            preflight(&chain).await
        }
    }
}

/// Checks everything that can be checked before anything is touched, then starts the first node.
async fn preflight(chain: &Chain<'_>) -> anyhow::Result<End> {
    if let Some(reason) = chain.stopped().await {
        return Ok(not_permitted("nothing was begun", &[reason]));
    }
    let seen = chain.look(Mine::Nothing).await;
    let (fleet, plan, _) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    chain.say(&format!("preflight: {} nodes, {} not on {}", fleet.nodes.len(), plan.steps.len(), chain.to));
    let mut blockers = Vec::new();
    let mut unknowns = Vec::new();
    // Read-only node Jobs, on all nodes at the same time.
    let looks = fleet.nodes.iter().map(|node| async { (&node.name, chain.node_preflight(&node.name).await) });
    let mut packages = Vec::new();
    for (node, answer) in futures::future::join_all(looks).await {
        match answer {
            Fact::Known(answer) => {
                packages.extend(answer.versions.packages.get("kubeadm").map(|version| (node.clone(), *version)));
                let needed = plan.steps.iter().any(|step| step.node == *node);
                if needed {
                    blockers.extend(answer.blockers.iter().map(|text| format!("{node}: {text}")));
                    unknowns.extend(answer.unknown.iter().map(|text| format!("{node}: {text}")));
                }
            }
            Fact::Unknown(why) => unknowns.push(why),
        }
    }
    let versions = packages.clone();
    chain.record(|record| record.kubeadm.extend(versions.clone())).await?;
    // Once more with the packages' versions: a node whose kubeadm lags is not done.
    let (_, plan, _) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    if plan.steps.is_empty() && unknowns.is_empty() {
        return Ok(end(Outcome::Ok, format!("nothing to do: all {} nodes are on {}", plan.done.len(), chain.to)));
    }
    blockers.extend(rehearsals(chain, &plan).await?);
    if !blockers.is_empty() || !unknowns.is_empty() {
        let outcome = if blockers.is_empty() { Outcome::Unknown } else { Outcome::Held };
        blockers.extend(unknowns);
        return Ok(Report::with_blockers(outcome, "nothing was begun", &[], &blockers));
    }
    if let Some(first) = plan.steps.first() {
        let resumed = seen.observation.nodes.known().is_some_and(|nodes| {
            nodes.iter().any(|node| node.cordon == quorum_safety::Cordon::Ours(chain.operation()))
        });
        let verdict = chain.judge(&seen, Disruption::Upgrade(first.node.clone())).await?;
        // What is half done is judged by the step that adopts it, not as something new.
        if !resumed && !matches!(verdict, Verdict::Permitted(_)) {
            return Ok(not_permitted("nothing was begun", verdict.reasons()));
        }
        chain.say(&format!("preflight: passed; {} first", first.node));
    }
    start_next(chain, &seen, &plan).await
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
    let (fleet, plan, _) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    let Some(turn) = plan.steps.first() else { return start_next(chain, &seen, &plan).await };
    let Some(step) = plan.steps.iter().find(|step| step.node == *node) else {
        chain.say(&format!("{node}: on target, left alone"));
        return start_next(chain, &seen, &plan).await;
    };
    // A control plane node before all workers, and the recorded one before the others; otherwise the order may differ: who
    // leads etcd has changed since the Job was made.
    let out_of_turn = turn.control_plane != step.control_plane || turn.mode != step.mode && turn.node != step.node;
    if out_of_turn {
        chain.say(&format!("{node}: {} comes first", turn.node));
        return start_next(chain, &seen, &plan).await;
    }
    chain.say(&format!("{node}: {}", step.missing.join(", ")));
    if let Some(stop) = disrupt::upgrade(chain, &fleet, step).await? {
        return Ok(stop);
    }
    let seen = chain.look(Mine::Nothing).await;
    let (_, plan, _) = match chain.plan(&seen).await? {
        Ok(planned) => planned,
        Err(stop) => return Ok(stop),
    };
    if plan.steps.iter().any(|left| left.node == *node) {
        return Ok(end(
            Outcome::Midway,
            format!("{node} was upgraded and recovered, and is still not on target: run it again"),
        ));
    }
    if !step.control_plane
        && plan.steps.iter().any(|left| !left.control_plane)
        && let Some(stop) = soak(chain, node).await
    {
        return Ok(stop);
    }
    start_next(chain, &seen, &plan).await
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

async fn start_next(chain: &Chain<'_>, seen: &Seen, plan: &Plan) -> anyhow::Result<End> {
    if let Some(reason) = chain.stopped().await {
        return Ok(not_permitted("nothing more was begun", &[reason]));
    }
    let next = chain.start_next(seen, plan).await?;
    Ok(end(Outcome::Ok, format!("done; {next} goes on")))
}
