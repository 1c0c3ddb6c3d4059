//! `quorate plan`: what an upgrade would do, in which order, what blocks it, and about how long it takes. Changes nothing: the
//! drains are rehearsed as dry runs.

use crate::access::Access;
use crate::cli::Global;
use crate::clock::Clock;
use crate::drain;
use crate::exit::ExitStatus;
use crate::observe::cluster;
use crate::output;
use crate::place;
use crate::quiesce;
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::fleet::Fleet;
use crate::upgrade::kubeadm_config::ClusterConfiguration;
use crate::upgrade::plan::{Mode, NodePlan, Plan};
use crate::upgrade::record::{self, Measured, Stored};
use crate::version::Version;
use quorum_safety::{Code, Disruption, Mine, NodeName, Policy, Reason, Record};
use serde::Serialize;
use std::time::Duration;

/// What a node takes when nothing was measured here yet: seconds.
const CONTROL_PLANE_SECONDS: u64 = 210;
const WORKER_SECONDS: u64 = 90;
/// Seconds for which an observation says something of now.
const FRESH: i64 = 300;

/// How long a node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pace {
    seconds: u64,
    /// The upgrade in which that was measured on this cluster; none when no node of the kind was ever measured here.
    measured_in: Option<Version>,
}

/// How long a node takes, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Paces {
    control_plane: Pace,
    worker: Pace,
}

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
    /// What the estimate rests on.
    pace: Paces,
    /// What is done with the workloads of `upgrade.quiesce` while a control plane node is worked on, a line each.
    quiesce: Vec<String>,
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
    let mut quiesced = Vec::new();
    if plan.steps.iter().any(|step| step.control_plane) {
        let rehearsal = quiesce::rehearse(&access, &config, clock).await?;
        quiesced = rehearsal.told;
        blockers.extend(rehearsal.blockers);
    }
    let blocked = Outcome::of_blockers(&blockers, &unknown);
    blockers.extend(unknown);
    let age = published.map(|seen| clock.unix().0.saturating_sub(seen.observation.taken_at.0));
    let mut reasons: Vec<Reason> = stopped.into_iter().collect();
    if let Some(first) = plan.steps.first() {
        reasons.extend(first_may_go(&now, first, age, record.policy(config.policy(), clock.now())));
    }
    let measured = record::measured(&client, &access.namespace).await.unwrap_or_else(|error| {
        output::progress(&format!("how long earlier upgrades took is not known: {error}"));
        Vec::new()
    });
    let pace = Paces::of(&measured, &fleet);
    let shown = Shown {
        api_version: quorum_safety::API_VERSION,
        kind: "Plan",
        estimate: pace.estimate(&plan, config.times.worker_soak.get()),
        pace,
        quiesce: quiesced,
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
fn first_may_go(now: &Seen, first: &NodePlan, age: Option<i64>, policy: Policy) -> Vec<Reason> {
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
            let judged = Record::judged(now.observation.clone(), now.in_flight.clone(), wanted, policy);
            judged.0.reasons().to_vec()
        }
    }
}

/// A plan that cannot be made.
fn refused(global: &Global, outcome: Outcome, why: String) -> anyhow::Result<ExitStatus> {
    let report = Report::new(outcome, why, &[]);
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(outcome.status())
}

impl Paces {
    /// The longest that a node of each kind took in the last upgrade in which one was finished, or what they take in general. Whose kind is
    /// not known any more, since it has left the cluster, measures nothing.
    fn of(measured: &[Measured], fleet: &Fleet) -> Self {
        let pace = |control_plane: bool, in_general: u64| {
            let of_kind = |node: &NodeName| fleet.get(node).is_some_and(|node| node.control_plane == control_plane);
            let longest = |upgrade: &Measured| {
                let seconds = upgrade.seconds.iter().filter(|(node, _)| of_kind(node)).map(|(_, seconds)| *seconds);
                Some(Pace { seconds: seconds.max()?, measured_in: Some(upgrade.to) })
            };
            measured.iter().find_map(longest).unwrap_or(Pace { seconds: in_general, measured_in: None })
        };
        Self { control_plane: pace(true, CONTROL_PLANE_SECONDS), worker: pace(false, WORKER_SECONDS) }
    }

    const fn kind(&self, control_plane: bool) -> Pace {
        if control_plane { self.control_plane } else { self.worker }
    }

    /// Seconds for all steps, and for the waits between two workers.
    fn estimate(&self, plan: &Plan, soak: Duration) -> u64 {
        let workers: u64 = plan.steps.iter().map(|step| u64::from(!step.control_plane)).sum();
        let steps: u64 = plan.steps.iter().map(|step| self.kind(step.control_plane).seconds).sum();
        steps.saturating_add(soak.as_secs().saturating_mul(workers.saturating_sub(1)))
    }

    /// What it rests on, for the kinds of which there are nodes in the plan.
    fn text(&self, plan: &Plan) -> String {
        let kinds = [(true, "control plane node"), (false, "worker")];
        let present = kinds.into_iter().filter(|(kind, _)| plan.steps.iter().any(|step| step.control_plane == *kind));
        let told = present.map(|(kind, name)| {
            let Pace { seconds, measured_in } = self.kind(kind);
            match measured_in {
                Some(upgrade) => format!("{seconds} s for a {name}, as measured in the upgrade to {upgrade}"),
                None => format!("{seconds} s for a {name}, of which none was measured here yet"),
            }
        });
        told.collect::<Vec<_>>().join("; ")
    }
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
    for line in &shown.quiesce {
        text.push_str(&format!("while a control plane node is worked on: {line}\n"));
    }
    let (minutes, basis) = (shown.estimate.div_ceil(60), shown.pace.text(plan));
    text.push_str(&format!("about {minutes} min, without waiting for drains: {basis}\n"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::plan::Configured;
    use crate::upgrade::record::ChainRecord;
    use quorum_safety::fixture;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    const SOAK: Duration = Duration::from_secs(600);

    /// Three control plane nodes and a worker, to be upgraded.
    fn planned() -> (Fleet, Plan) {
        let whole = fixture::healthy(3);
        let fleet = Fleet::of(&Seen { observation: whole.seen, in_flight: whole.in_flight }).unwrap();
        let configured = Configured { version: version("v1.36.1"), etcd: None };
        let plan = Plan::make(&fleet, version("v1.36.3"), &ChainRecord::default(), &configured).unwrap();
        assert_eq!(plan.steps.len(), 4);
        (fleet, plan)
    }

    fn measured(to: &str, seconds: &[(&str, u64)]) -> Measured {
        let seconds = seconds.iter().map(|(node, seconds)| ((*node).into(), *seconds)).collect();
        Measured { to: version(to), seconds }
    }

    #[test]
    fn an_estimate_rests_on_the_last_upgrade_that_had_a_node_of_the_kind() {
        let (fleet, plan) = planned();
        let nothing = Paces::of(&[], &fleet);
        assert_eq!(nothing.estimate(&plan, SOAK), 3 * CONTROL_PLANE_SECONDS + WORKER_SECONDS);
        assert_eq!(
            nothing.text(&plan),
            "210 s for a control plane node, of which none was measured here yet; 90 s for a worker, of which none was measured here yet"
        );

        // Before the one that is asked for has begun, and when it has got as far as its first node.
        let last = measured("v1.36.1", &[("k1", 300), ("k2", 320), ("w1", 40), ("gone", 9_000)]);
        let older = measured("v1.36.0", &[("k1", 1), ("w1", 1)]);
        let paces = Paces::of(&[last.clone(), older.clone()], &fleet);
        assert_eq!(paces.estimate(&plan, SOAK), 3 * 320 + 40);
        let paces = Paces::of(&[measured("v1.36.3", &[("k1", 250)]), last, older], &fleet);
        assert_eq!(paces.estimate(&plan, SOAK), 3 * 250 + 40);
        assert_eq!(
            paces.text(&plan),
            "250 s for a control plane node, as measured in the upgrade to v1.36.3; 40 s for a worker, as measured in the upgrade to v1.36.1"
        );

        // Of a kind that the plan has no node of nothing is said.
        let workers =
            Plan { steps: plan.steps.into_iter().filter(|step| !step.control_plane).collect(), ..planned().1 };
        assert_eq!(paces.text(&workers), "40 s for a worker, as measured in the upgrade to v1.36.1");
        assert_eq!(paces.estimate(&workers, SOAK), 40);
        // Two workers, and one wait between them.
        let twice = workers.steps.iter().chain(&workers.steps).cloned().collect();
        assert_eq!(paces.estimate(&Plan { steps: twice, ..workers }, SOAK), 40 + 600 + 40);
    }
}
