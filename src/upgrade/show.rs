//! `quorate plan`: what an upgrade would do, in which order, what blocks it, and about how long it takes. Changes nothing: the
//! drains are rehearsed as dry runs.

use crate::access::Access;
use crate::cli::Global;
use crate::clock::Clock;
use crate::config::Config;
use crate::drain;
use crate::exit::ExitStatus;
use crate::observe::cluster;
use crate::output;
use crate::place;
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::fleet::Fleet;
use crate::upgrade::kubeadm_config::ClusterConfiguration;
use crate::upgrade::plan::{Mode, NodePlan, Plan};
use crate::upgrade::record::{ChainRecord, Stored};
use crate::version::Version;
use quorum_safety::{Code, Disruption, Mine, Reason, Record};
use serde::Serialize;

/// What a node takes when nothing was measured here yet: seconds.
const CONTROL_PLANE_SECONDS: u64 = 210;
const WORKER_SECONDS: u64 = 90;
/// Seconds for which an observation says something of now.
const FRESH: i64 = 300;

/// A plan with what blocks it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    plan: Plan,
    /// Seconds that all of it may take.
    estimate: u64,
    /// Whether the estimate rests on nodes that were upgraded before.
    measured: bool,
    /// What would stop it now.
    blockers: Vec<String>,
    /// Why the first node may not go now, by the last published observation.
    reasons: Vec<Reason>,
    /// Age of that observation, seconds; none when there is none.
    observation_age: Option<i64>,
}

/// Runs the command.
///
/// # Errors
/// When the cluster cannot be read.
pub async fn run(global: &Global, to: Version, clock: Clock) -> anyhow::Result<ExitStatus> {
    let access = Access::new(global).await?;
    let config = place::configuration(global, &access).await?;
    let client = access.live(&[]).await?;
    let view = cluster::observe(&client, config.times.answer.get()).await;
    // One that an older version wrote says nothing to this one.
    let published = Seen::published(&client, &access.namespace).await.unwrap_or_else(|error| {
        output::progress(&format!("the last observation cannot be read: {error}"));
        None
    });
    let record = Stored::read(&client, &access.namespace, to).await?.record;
    let configured = match ClusterConfiguration::read(&client).await {
        Ok(configuration) => configuration.configured(),
        Err(why) => return refused(global, Outcome::Unknown, why),
    };
    // Who leads etcd is only known from the published observation: it decides who is last, and is looked at again then. Everything
    // else is asked now.
    let mut observation = match &published {
        Some(seen) => seen.observation.clone(),
        None => crate::observe::without_etcd(view.uid.clone(), clock),
    };
    observation.nodes = view.nodes;
    let in_flight = crate::lock::observe(&client, &access.namespace, &config, Mine::Nothing).await;
    let stopped = crate::lock::stopped_by(&in_flight.kill_switch);
    let now = Seen { observation, in_flight };
    let fleet = match Fleet::of(&now) {
        Ok(fleet) => fleet,
        Err(error) => return refused(global, Outcome::Unknown, error.to_string()),
    };
    let plan = match Plan::make(&fleet, to, &record, &configured) {
        Ok(plan) => plan,
        Err(error) => return refused(global, Outcome::Refused, error.to_string()),
    };
    let options = drain::Options::new(&config, None);
    let (mut blockers, unknown) = fleet.unwell_workers();
    for step in &plan.steps {
        let rehearsal = drain::rehearse(&access, &step.node.0, &options).await?;
        blockers.extend(rehearsal.stopping().iter().map(|blocker| format!("{}: {blocker}", step.node)));
    }
    let blocked = Outcome::of_blockers(&blockers, &unknown);
    blockers.extend(unknown);
    let age = published.map(|seen| clock.unix().0.saturating_sub(seen.observation.taken_at.0));
    let mut reasons: Vec<Reason> = stopped.into_iter().collect();
    if let Some(first) = plan.steps.first() {
        reasons.extend(first_may_go(&now, first, age, &config));
    }
    let (estimate, measured) = estimate(&plan, &record);
    let shown = Shown {
        api_version: quorum_safety::API_VERSION,
        kind: "Plan",
        estimate,
        measured,
        blockers,
        reasons,
        observation_age: age,
        plan,
    };
    output::answer(global.output, &shown, || text(&shown))?;
    Ok(blocked.unwrap_or_else(|| Outcome::of_reasons(&shown.reasons)).status())
}

/// Why the first node may not go now. What is half done is judged by the step that adopts it. An old observation of etcd says nothing of
/// now, and is unknown.
fn first_may_go(now: &Seen, first: &NodePlan, age: Option<i64>, config: &Config) -> Vec<Reason> {
    if first.begun {
        return Vec::new();
    }
    let looks_now = "`quorate status --fresh` looks now";
    match age {
        None => vec![Reason::new(Code::MembershipUnknown, format!("etcd has not been observed yet; {looks_now}"))],
        Some(age) if age > FRESH => {
            vec![Reason::new(Code::MembershipUnknown, format!("etcd was last observed {age} s ago; {looks_now}"))]
        }
        Some(_) => {
            let wanted = Disruption::Upgrade(first.node.clone());
            let judged = Record::judged(now.observation.clone(), now.in_flight.clone(), wanted, config.policy());
            judged.0.reasons().to_vec()
        }
    }
}

/// A plan that cannot be made.
fn refused(global: &Global, outcome: Outcome, why: String) -> anyhow::Result<ExitStatus> {
    let report = Report::new(outcome, why, &[]);
    output::answer(global.output, &report, || report.text())?;
    Ok(outcome.status())
}

/// Seconds for all steps: the longest that a node of its kind took here, or what they take in general.
fn estimate(plan: &Plan, record: &ChainRecord) -> (u64, bool) {
    let measured = record.seconds.values().max();
    let each = |control_plane: bool| match measured {
        Some(seconds) => *seconds,
        None if control_plane => CONTROL_PLANE_SECONDS,
        None => WORKER_SECONDS,
    };
    (plan.steps.iter().map(|step| each(step.control_plane)).sum(), measured.is_some())
}

fn text(shown: &Shown) -> String {
    let plan = &shown.plan;
    let mut text = format!("from {} to {}\n", plan.from, plan.to);
    if plan.steps.is_empty() {
        text.push_str(&format!("nothing to do: all {} nodes are on {}", plan.done.len(), plan.to));
        return text;
    }
    for (number, step) in plan.steps.iter().enumerate() {
        let what = match (step.control_plane, step.mode) {
            (true, Mode::Apply) => "lock, drain, hand over, kubeadm upgrade apply, kubelet, recovery, uncordon",
            (true, Mode::Node) => "lock, drain, hand over, kubeadm upgrade node, kubelet, recovery, uncordon",
            (false, _) => "lock, drain, kubeadm upgrade node, kubelet, recovery, uncordon, soak",
        };
        text.push_str(&format!("{}. {}: {what}\n   {}\n", number + 1, step.node, step.missing.join(", ")));
    }
    if !plan.done.is_empty() {
        let names: Vec<String> = plan.done.iter().map(ToString::to_string).collect();
        text.push_str(&format!("left alone, on target: {}\n", names.join(", ")));
    }
    let basis = if shown.measured { "measured on this cluster" } else { "nothing was measured here yet" };
    text.push_str(&format!("about {} min ({basis}), without waiting for drains\n", shown.estimate.div_ceil(60)));
    match shown.observation_age {
        Some(age) => text.push_str(&format!("etcd as observed {age} s ago; `quorate status --fresh` looks now\n")),
        None => text.push_str(
            "etcd has not been observed yet: who leads it, and goes last, is not known; `quorate status --fresh`\n",
        ),
    }
    if shown.blockers.is_empty() && shown.reasons.is_empty() {
        text.push_str("nothing blocks it; packages, disk and manifests of each node are looked at by the preflight");
    } else {
        text.push_str("blocked by:");
        for line in shown.reasons.iter().map(ToString::to_string).chain(shown.blockers.iter().cloned()) {
            text.push_str(&format!("\n  {line}"));
        }
    }
    text
}
