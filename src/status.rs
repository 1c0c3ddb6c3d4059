//! `quorate status`: the control plane at a glance, and whether one more node may go. Judged from one observation, fresh or
//! published.

use crate::access::Access;
use crate::cli::Global;
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::ExitStatus;
use crate::job::{self, Jobs, Placement, Request};
use crate::output;
use crate::place::{self, InPlace};
use crate::quiesce;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use comfy_table::{Table, presets};
use quorum_safety::{
    Answer, BudgetPods, Budgets, Cordon, Disruption, Fact, InFlight, KillSwitch, Kured, Lock, Mine, NodeName, NodeView,
    Quorum, Record, StoredVerdict, UnixSeconds,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How old a published observation may be before the text calls it old.
const FRESH_FOR: i64 = 120;
/// How many budgets are named.
const BUDGETS_SHOWN: usize = 5;
const JOB_DEADLINE: Duration = Duration::from_secs(90);

/// An observation with what follows from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `quorate.dev/v1`.
    pub api_version: String,
    /// `Status`.
    pub kind: String,
    /// What was seen.
    pub seen: Seen,
    /// How many voters the rule counts as healthy; none from a version that did not say so.
    #[serde(default)]
    pub healthy_voters: Option<usize>,
    /// What is at zero for an upgrade now, a line each; none where it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesced: Option<Fact<Vec<String>>>,
    /// For each node, whether it may go down now.
    pub nodes: Vec<MayGo>,
}

/// Whether a node may go down.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MayGo {
    /// The node.
    pub node: NodeName,
    /// The verdict.
    pub verdict: StoredVerdict,
}

impl Status {
    /// Judges every node on what was seen, as somebody who holds nothing: a published observation may be that of a step
    /// which holds the Lease.
    pub fn of(seen: &Seen, config: &Config) -> Self {
        let mut seen = seen.clone();
        seen.in_flight.mine = Mine::Nothing;
        let names = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
        let nodes = names
            .iter()
            .map(|node| {
                let wanted = Disruption::Upgrade(node.name.clone());
                let (observation, in_flight) = (seen.observation.clone(), seen.in_flight.clone());
                let (_, record) = Record::judged(observation, in_flight, wanted, config.policy());
                MayGo { node: node.name.clone(), verdict: record.verdict }
            })
            .collect();
        let healthy = quorum_safety::healthy_voters(&seen.observation, &seen.in_flight, &config.policy());
        Self {
            api_version: quorum_safety::record::API_VERSION.to_owned(),
            kind: "Status".to_owned(),
            seen,
            healthy_voters: Some(healthy),
            quiesced: None,
            nodes,
        }
    }

    /// One sentence.
    pub fn summary(&self) -> String {
        let may = self.nodes.iter().filter(|node| node.verdict.answer == Answer::Permitted).count();
        format!("{may} of {} nodes may go down now, one at a time", self.nodes.len())
    }

    /// For people.
    pub fn text(&self, now: UnixSeconds) -> String {
        let seen = &self.seen.observation;
        let age = now.0.saturating_sub(seen.taken_at.0);
        let mut text = format!("observed {age} s ago");
        if age > FRESH_FOR {
            text.push_str(" (old: `quorate status --fresh` looks now)");
        }
        text.push('\n');
        text.push_str(&voters(seen, self.healthy_voters));
        text.push('\n');
        text.push_str(&under_way(&self.seen.in_flight));
        text.push('\n');
        text.push_str(&budgets(&seen.budgets));
        match &self.quiesced {
            Some(Fact::Known(lines)) if !lines.is_empty() => {
                text.push_str(&format!("\nquiesced: {}", lines.join("; ")))
            }
            Some(Fact::Unknown(why)) => text.push_str(&format!("\nquiesced: not known: {why}")),
            Some(Fact::Known(_)) | None => {}
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["NODE", "ROLE", "KUBELET", "READY", "CORDON", "ETCD", "APISERVER", "MAY GO"]);
        match &seen.nodes {
            Fact::Known(nodes) => {
                for node in nodes {
                    table.add_row(self.row(node));
                }
                text.push_str(&format!("\n{table}"));
            }
            Fact::Unknown(why) => text.push_str(&format!("\nthe nodes are not known: {why}")),
        }
        for may in &self.nodes {
            for reason in &may.verdict.reasons {
                text.push_str(&format!("\n{}: {reason}", may.node));
            }
        }
        text
    }

    fn row(&self, node: &NodeView) -> Vec<String> {
        let seen = &self.seen.observation;
        let member = seen.etcd.members.iter().find(|member| member.node.known() == Some(&node.name));
        let etcd = match member.map(|member| (&member.second, member.id)) {
            None if node.control_plane => "no member".to_owned(),
            None => String::new(),
            Some((Fact::Known(sample), id)) if sample.leader == Some(id) => format!("leader {}", sample.version),
            Some((Fact::Known(sample), _)) if sample.is_learner => format!("learner {}", sample.version),
            Some((Fact::Known(sample), _)) => format!("follower {}", sample.version),
            Some((Fact::Unknown(_), _)) => "no answer".to_owned(),
        };
        let apiserver = match seen.apiservers.iter().find(|server| server.node == node.name).map(|server| &server.ready)
        {
            None => "",
            Some(Fact::Known(true)) => "ready",
            Some(Fact::Known(false)) => "not ready",
            Some(Fact::Unknown(_)) => "no answer",
        };
        let may = self.nodes.iter().find(|may| may.node == node.name).map_or("", |may| match may.verdict.answer {
            Answer::Permitted => "yes",
            Answer::Held => "held",
            Answer::Refused => "refused",
        });
        let by = format!("by {}", node.cordoned_by.as_ref().map_or("somebody else", |writer| writer.manager.as_str()));
        let cordon = match &node.cordon {
            Cordon::None => "",
            Cordon::Ours(operation) => operation,
            Cordon::Foreign => &by,
        };
        [
            node.name.0.as_str(),
            if node.control_plane { "control plane" } else { "worker" },
            node.kubelet_version.known().map_or("unknown", String::as_str),
            match &node.ready {
                Fact::Known(true) => "yes",
                Fact::Known(false) => "no",
                Fact::Unknown(_) => "unknown",
            },
            cordon,
            &etcd,
            apiserver,
            may,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// A member that is cut off from the others answers for itself, and is not healthy: how many may fail is a matter of those that are.
fn voters(seen: &quorum_safety::Observation, healthy: Option<usize>) -> String {
    match &seen.etcd.membership {
        Fact::Known(membership) => {
            let quorum = Quorum::of(membership);
            let answered = membership
                .voters()
                .filter(|voter| {
                    seen.etcd.members.iter().any(|view| view.id == voter.id && view.second.known().is_some())
                })
                .count();
            let (healthy, spare) = match healthy.map(|healthy| (healthy, quorum.tolerance(healthy))) {
                Some((healthy, Some(spare))) => (format!("{healthy} are healthy"), format!("{spare} may fail")),
                Some((healthy, None)) => (format!("{healthy} are healthy"), "that is too few".to_owned()),
                None => ("how many are healthy is not known".to_owned(), "how many may fail neither".to_owned()),
            };
            format!(
                "etcd: {answered} of {} voters answer, {healthy}, {} are a quorum: {spare}",
                membership.voters().count(),
                quorum.size()
            )
        }
        Fact::Unknown(why) => format!("etcd: not known: {why}"),
    }
}

/// What a drain would have to wait for.
fn budgets(budgets: &Fact<Budgets>) -> String {
    let budgets = match budgets {
        Fact::Known(budgets) => budgets,
        Fact::Unknown(why) => return format!("budgets: not known: {why}"),
    };
    let shown = budgets.named.iter().take(BUDGETS_SHOWN).map(|budget| {
        let pods = match &budget.pods {
            Fact::Known(BudgetPods { healthy, desired, expected }) => {
                format!("{healthy} of {expected} healthy, {desired} must stay")
            }
            Fact::Unknown(why) => why.clone(),
        };
        format!("{}/{} ({pods})", budget.namespace, budget.name)
    });
    let shown: Vec<String> = shown.collect();
    let more = budgets.closed.saturating_sub(shown.len());
    let all = format!("budgets: {} of {} let no pod go", budgets.closed, budgets.count);
    match (shown.is_empty(), more) {
        (true, _) => all,
        (false, 0) => format!("{all}: {}", shown.join("; ")),
        (false, more) => format!("{all}: {}; and {more} more", shown.join("; ")),
    }
}

fn under_way(in_flight: &InFlight) -> String {
    let mut parts = Vec::new();
    match &in_flight.control_plane {
        Fact::Known(Lock::Free) => {}
        Fact::Known(Lock::Held(holder)) => parts.push(format!("{} on {}", holder.operation, holder.target)),
        Fact::Unknown(why) => parts.push(format!("Lease control-plane-disruption unknown: {why}")),
    }
    match &in_flight.workers {
        Fact::Known(locks) => {
            for lock in locks {
                if let Lock::Held(holder) = lock {
                    parts.push(format!("{} on {}", holder.operation, holder.target));
                }
            }
        }
        Fact::Unknown(why) => parts.push(format!("worker Leases unknown: {why}")),
    }
    match &in_flight.kured {
        Fact::Known(Kured::Absent | Kured::Free) => {}
        Fact::Known(Kured::Held(by)) => parts.push(format!("kured's lock held by {by}")),
        Fact::Unknown(why) => parts.push(format!("kured unknown: {why}")),
    }
    match &in_flight.kill_switch {
        Fact::Known(KillSwitch::Off) => {}
        Fact::Known(KillSwitch::Engaged(reason)) => parts.push(format!("kill switch engaged: {reason}")),
        Fact::Unknown(why) => parts.push(format!("kill switch unknown: {why}")),
    }
    if parts.is_empty() { "under way: nothing".to_owned() } else { format!("under way: {}", parts.join("; ")) }
}

/// Runs the command.
///
/// # Errors
/// When nothing could be read.
pub async fn run(global: &Global, options: &crate::cli::upgrade::Status, clock: Clock) -> anyhow::Result<ExitStatus> {
    if options.here {
        let place = InPlace::new(global).await?;
        let config = place.configuration(global).await?;
        let seen = seen::look(&place.sources(), &config, Mine::Nothing, clock).await;
        let quiesced = match &place.access {
            Ok(access) => quiesce::seen(access, &config, clock).await,
            Err(why) => Fact::Unknown(why.clone()),
        };
        return show(global, Status::of(&seen, &config), quiesced, clock);
    }
    let access = Access::new(global).await?;
    if options.fresh {
        return fresh(global, &access, clock).await;
    }
    let config = place::configuration(global, &access).await?;
    let client = access.live(&[]).await?;
    // One that another version wrote says nothing to this one.
    let published = Seen::published(&client, &access.namespace).await.unwrap_or_else(|error| {
        output::progress(&error.to_string());
        None
    });
    match published {
        Some(seen) => {
            let quiesced = quiesce::seen(&access, &config, clock).await;
            show(global, Status::of(&seen, &config), quiesced, clock)
        }
        None => {
            output::progress("no observation to show: looking now, by a Job");
            fresh(global, &access, clock).await
        }
    }
}

/// Looks now, by a Job on any control plane node.
///
/// # Errors
/// When no Job could look.
pub async fn fresh(global: &Global, access: &Access, clock: Clock) -> anyhow::Result<ExitStatus> {
    let config = place::configuration(global, access).await?;
    match ask(access, &config, clock).await? {
        Ok(status) => show(global, status, quiesce::seen(access, &config, clock).await, clock),
        Err(unseen) => unseen.answer(global),
    }
}

/// Nothing was seen, and why.
pub struct Unseen(Report);

impl Unseen {
    fn new(what: &str, why: String) -> Self {
        Self(Report::with_blockers(Outcome::Unknown, what, &[], &[why]))
    }

    /// There is nothing to show: an answer all the same, in the form that was asked for.
    ///
    /// # Errors
    /// When it cannot be written in that form.
    pub fn answer(self, global: &Global) -> anyhow::Result<ExitStatus> {
        output::answer(global.output, &self.0.document(), || self.0.text())?;
        Ok(self.0.outcome.status())
    }
}

/// Asks a Job on any control plane node what it sees now.
///
/// # Errors
/// When no Job could be asked, for another reason than that no node runs it.
pub async fn ask(access: &Access, config: &Config, clock: Clock) -> anyhow::Result<Result<Status, Unseen>> {
    let nodes = place::nodes(access, config).await?;
    let candidates = job::candidates(&nodes, None);
    let jobs = Jobs::new(access, Vec::new());
    let name = job::unique_name("status", None, clock);
    let make = |place: &NodeName| Request {
        template: "quorate-gate",
        name: name.clone(),
        args: vec!["gate".to_owned(), "--in-job".to_owned()],
        operation: "status".to_owned(),
        target: None,
        placement: Placement::On(place.clone()),
    };
    let end = match jobs.run_somewhere(&candidates, make, config.times.job_start.get(), JOB_DEADLINE).await {
        Ok(end) => end,
        Err(error @ (job::JobError::NotStarted(_) | job::JobError::NotEnded { .. })) => {
            return Ok(Err(Unseen::new("nobody could look", error.to_string())));
        }
        Err(error) => return Err(error.into()),
    };
    let log = jobs.log(&end.pod).await?;
    if let Err(error) = jobs.discard(&name).await {
        tracing::warn!(%error, "The Job stays until its time to live is over");
    }
    Ok(crate::gate::document::<Status>(&log).ok_or_else(|| {
        let why = format!("pod {} on {} left no answer: {}", end.pod, end.node, end.message);
        Unseen::new("nobody has told what was seen", why)
    }))
}

fn show(global: &Global, mut status: Status, quiesced: Fact<Vec<String>>, clock: Clock) -> anyhow::Result<ExitStatus> {
    status.quiesced = Some(quiesced);
    output::answer(global.output, &status, || status.text(clock.unix()))?;
    Ok(ExitStatus::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, unknown};
    use quorum_safety::{BudgetView, Writer};

    fn voters_line(cluster: &Cluster) -> String {
        let seen = Seen { observation: cluster.seen.clone(), in_flight: cluster.in_flight.clone() };
        let text = Status::of(&seen, &Config::default()).text(seen.observation.taken_at);
        text.lines().find(|line| line.starts_with("etcd:")).unwrap().to_owned()
    }

    #[test]
    fn a_cordon_is_told_with_its_author() {
        let row = |writer: Option<&str>| {
            let cluster = healthy(3).on_node("k2", |node| {
                node.cordon = Cordon::Foreign;
                node.cordoned_by = writer.map(|manager| Writer { manager: manager.to_owned(), at: None });
            });
            let seen = Seen { observation: cluster.seen, in_flight: cluster.in_flight };
            let text = Status::of(&seen, &Config::default()).text(seen.observation.taken_at);
            text.lines().find(|line| line.trim_start().starts_with("k2 ")).unwrap().to_owned()
        };
        assert!(row(Some("kubectl-cordon")).contains(" by kubectl-cordon "), "{}", row(Some("kubectl-cordon")));
        assert!(row(None).contains(" by somebody else "), "{}", row(None));
    }

    #[test]
    fn a_budget_that_lets_no_pod_go_is_named_and_holds_nothing() {
        let closed = |name: &str, pods| BudgetView { namespace: "shop".to_owned(), name: name.to_owned(), pods };
        let pods = BudgetPods { healthy: 1, desired: 1, expected: 1 };
        let many = ["a", "b", "c", "d", "e", "f"].map(|name| closed(name, unknown()));
        for (seen, wanted) in [
            (Fact::Known(Budgets { count: 3, closed: 0, named: Vec::new() }), "budgets: 0 of 3 let no pod go"),
            (
                Fact::Known(Budgets { count: 3, closed: 1, named: vec![closed("till", Fact::Known(pods))] }),
                "budgets: 1 of 3 let no pod go: shop/till (1 of 1 healthy, 1 must stay)",
            ),
            (
                Fact::Known(Budgets { count: 6, closed: 6, named: many.into() }),
                "; shop/e (no answer within 3 s); and 1 more",
            ),
            (Fact::Unknown("the API is away".to_owned()), "budgets: not known: the API is away"),
        ] {
            let mut cluster = healthy(3);
            cluster.seen.budgets = seen;
            let seen = Seen { observation: cluster.seen, in_flight: cluster.in_flight };
            let status = Status::of(&seen, &Config::default());
            assert!(status.nodes.iter().all(|node| node.verdict.answer == Answer::Permitted));
            let text = status.text(seen.observation.taken_at);
            assert!(text.lines().any(|line| line.ends_with(wanted)), "{wanted}:\n{text}");
        }
    }

    #[test]
    fn what_is_at_zero_is_told_and_so_is_that_it_is_not_known() {
        let told = |quiesced: Option<Fact<Vec<String>>>| {
            let cluster = healthy(3);
            let seen = Seen { observation: cluster.seen, in_flight: cluster.in_flight };
            let status = Status { quiesced, ..Status::of(&seen, &Config::default()) };
            let text = status.text(seen.observation.taken_at);
            text.lines().find(|line| line.starts_with("quiesced:")).map(str::to_owned)
        };
        let lines =
            ["Deployment shop/operator (from 2, by me)", "StatefulSet shop/broker (from 3, by me)"].map(str::to_owned);
        let both = "quiesced: Deployment shop/operator (from 2, by me); StatefulSet shop/broker (from 3, by me)";
        assert_eq!(told(Some(Fact::Known(lines.into()))).as_deref(), Some(both));
        assert_eq!(told(Some(unknown())).as_deref(), Some("quiesced: not known: no answer within 3 s"));
        assert_eq!((told(None), told(Some(Fact::Known(Vec::new())))), (None, None));
    }

    /// Safety review, finding 20: a member that is cut off answers Status, and the line said that one more may fail.
    #[test]
    fn who_answers_is_told_from_who_is_healthy() {
        let cut_off = || healthy(3).on_member(2, |view| view.linearizable_read = unknown());
        for (cluster, wanted) in [
            (healthy(3), "etcd: 3 of 3 voters answer, 3 are healthy, 2 are a quorum: 1 may fail"),
            (cut_off(), "etcd: 3 of 3 voters answer, 2 are healthy, 2 are a quorum: 0 may fail"),
            // No majority says the same any more.
            (cut_off().member_dead(3), "etcd: 2 of 3 voters answer, 0 are healthy, 2 are a quorum: that is too few"),
            (healthy(5), "etcd: 5 of 5 voters answer, 5 are healthy, 3 are a quorum: 2 may fail"),
        ] {
            assert_eq!(voters_line(&cluster), wanted);
        }
    }
}
