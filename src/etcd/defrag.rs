//! `quorate etcd defrag`: gives back the room that lies free in the members' databases, where it pays. On a workstation the order is read from
//! one look, and a Job is made for one member after the other, each on its member's own node: only there is it seen whether the disk has room
//! for the copy that etcd makes. The node is not taken down for it, so this is no breach of the rule that no Job runs on its target.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::etcd::Defrag;
use crate::clock::Clock;
use crate::config::Config;
use crate::etcd::members::nobody_known;
use crate::exit::{ExitStatus, UsageError};
use crate::job::{self, Placement, Request};
use crate::lock::{self, Claimant, Leases};
use crate::observe::Sources;
use crate::observe::etcd::ClientFiles;
use crate::output;
use crate::place::{self, InPlace, OwnPod};
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::status;
use act::Work;
pub use cure::Step;
use plan::Plan;
use quorum_safety::{Code, Fact, Mine, NodeName, Reason};
use std::path::Path;
use std::time::Duration;

mod act;
mod aside;
mod cure;
pub mod plan;
mod request;
mod room;

/// The template of a defragmentation.
const TEMPLATE: &str = "quorate-defrag";
/// How long to wait for a Lease whose holder has just ended, or whose proof of being gone takes time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the command.
///
/// # Errors
/// When it could not be carried out; what was refused, or is half done, is an answer.
pub async fn run(global: &Global, defrag: &Defrag, clock: Clock) -> anyhow::Result<ExitStatus> {
    if defrag.cure_nospace {
        let report = cure::run(global, defrag, clock).await?;
        output::answer(global.output, &report.document(), || report.text())?;
        return Ok(report.outcome.status());
    }
    let asked = Asked { global, defrag, clock };
    match (defrag.in_job, defrag.dry_run) {
        (true, false) => {
            let report = asked.in_job().await?.fitted();
            report.leave()?;
            Ok(report.outcome.in_job())
        }
        (true, true) => asked.plan_in_job().await,
        (false, _) => {
            let (seen, config, access) = match asked.look().await? {
                Ok(looked) => looked,
                Err(status) => return Ok(status),
            };
            if let Some(report) = nobody_known(&seen) {
                output::answer(global.output, &report.document(), || report.text())?;
                return Ok(report.outcome.status());
            }
            let plan = Plan::of(&seen, &config);
            match access.filter(|_| !defrag.dry_run) {
                None => {
                    output::answer(global.output, &plan, || plan.text())?;
                    Ok(Outcome::of_reasons(&plan.reasons).status())
                }
                Some(access) => {
                    plan.text().lines().for_each(output::progress);
                    let report = asked.by_jobs(&access, &config, &plan).await?;
                    output::answer(global.output, &report.document(), || report.text())?;
                    Ok(report.outcome.status())
                }
            }
        }
    }
}

/// What was asked for.
struct Asked<'a> {
    global: &'a Global,
    defrag: &'a Defrag,
    clock: Clock,
}

impl Asked<'_> {
    /// Looks once, by a Job or in place; `Err` has been answered. Without access nothing is carried out.
    async fn look(&self) -> anyhow::Result<Result<(Seen, Config, Option<Access>), ExitStatus>> {
        if self.defrag.here {
            let place = InPlace::in_folder(self.global, &self.defrag.files.kubernetes_dir).await?;
            let config = place.configuration(self.global).await?;
            let seen = seen::look(&place.sources(), &config, Mine::Nothing, self.clock).await;
            return Ok(Ok((seen, config, None)));
        }
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        match status::ask(&access, &config, self.clock).await? {
            Ok(status) => Ok(Ok((status.seen, config, Some(access)))),
            Err(unseen) => unseen.answer(self.global).map(Err),
        }
    }

    /// On a workstation: a Job for each member, in order. The first that does not end well ends it: the next would be taken down beside it.
    async fn by_jobs(&self, access: &Access, config: &Config, plan: &Plan) -> anyhow::Result<Report> {
        let mut done: Vec<String> = Vec::new();
        for row in plan.due() {
            let node = match &row.node {
                Fact::Known(node) => node,
                Fact::Unknown(why) => {
                    let reason = Reason::new(Code::MemberNodeUnknown, format!("{}: {why}", row.member));
                    let summary = so_far("its node is not known", &done);
                    return Ok(Report::new(Outcome::Unknown, summary, &[reason]));
                }
            };
            let name = job::name("defrag", None, Some(node));
            let wait = format!("--wait={}s", self.defrag.wait.as_secs());
            let make = |_: &NodeName| Request {
                template: TEMPLATE,
                name: name.clone(),
                args: ["etcd", "defrag", "--in-job", "--hand-over", &wait].map(str::to_owned).to_vec(),
                operation: "defrag".to_owned(),
                target: Some(node.clone()),
                placement: Placement::OnTarget,
            };
            let report = super::job::run_there(access, config, node, make).await?;
            if report.outcome != Outcome::Ok {
                let summary = so_far(&report.summary, &done);
                return Ok(Report { summary, ..report }.fitted());
            }
            done.push(report.summary);
        }
        let summary = if done.is_empty() { "nothing is worth it".to_owned() } else { done.join("; ") };
        Ok(Report::new(Outcome::Ok, summary, &[]))
    }

    fn in_pod<'b>(&self, access: &'b Access) -> Sources<'b> {
        place::in_pod_with(access, ClientFiles::in_folder(self.defrag.files.kubernetes_dir.join("pki/etcd")))
    }

    /// What a Job of the template does by itself.
    async fn plan_in_job(&self) -> anyhow::Result<ExitStatus> {
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let seen = seen::look(&self.in_pod(&access), &config, Mine::Nothing, self.clock).await;
        let report = match nobody_known(&seen) {
            Some(report) => report,
            None => {
                let plan = Plan::of(&seen, &config);
                // One line, so that whoever reads the pod's log finds it among the lines of standard error.
                output::line(&serde_json::to_string(&plan)?);
                let summary = format!("{} of {} members are worth it", plan.due().count(), plan.members.len());
                Report::new(Outcome::Ok, summary, &[]).on(&seen.observation)
            }
        };
        output::terminate_with(Path::new(output::TERMINATION_LOG), &report.document())?;
        Ok(report.outcome.in_job())
    }

    /// In the pod of a Job, on the node of the member that it is about.
    async fn in_job(&self) -> anyhow::Result<Report> {
        let pod = OwnPod::from_environment()?;
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let sources = self.in_pod(&access);
        let seen = seen::look(&sources, &config, Mine::Nothing, self.clock).await;
        if let Some(report) = nobody_known(&seen) {
            return Ok(report);
        }
        let Some(member) = plan::on_node(&seen.observation.etcd, &pod.node) else {
            return Err(UsageError(format!("no etcd member runs on {}, where this pod runs", pod.node)).into());
        };
        // Its apiserver will hang while its etcd is away.
        let nodes = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
        let own = nodes.iter().filter(|node| node.name == pod.node).filter_map(|node| node.address.known().cloned());
        let leases = Leases::new(access.clone(), own.collect(), lock::timings(&config), self.clock);
        let operation = plan::operation(member);
        let who =
            match Claimant::in_pod(&leases, (leases.namespace(), &pod.name), (&operation, &pod.node), "etcd defrag")
                .await
            {
                Ok(who) => who,
                Err(why) => return Ok(Report::new(Outcome::Unknown, format!("{why}; nothing was changed"), &[])),
            };
        let unit = |_| async { Fact::Unknown("a defragmentation looks at no host".to_owned()) };
        let patience = PATIENCE.min(self.defrag.wait);
        let hold = match lock::hold(&leases, lock::CONTROL_PLANE, &who, &config, patience, unit).await {
            lock::Outcome::Got(hold) => hold,
            lock::Outcome::Held(reasons) => {
                let summary =
                    format!("defragmentation of member {member}: the lock is not to be had; nothing was changed");
                return Ok(Report::new(Outcome::of_reasons(&reasons), summary, &reasons));
            }
        };
        let work = Work {
            sources,
            config: &config,
            clock: self.clock,
            member,
            node: &pod.node,
            hand_over: self.defrag.hand_over.then(place::service_address),
            data: &self.defrag.data_dir,
            wait: self.defrag.wait,
            began: self.clock.boottime(),
        };
        Ok(work.run(*hold).await)
    }
}

fn so_far(what: &str, done: &[String]) -> String {
    if done.is_empty() { what.to_owned() } else { format!("{what} (done before: {})", done.join("; ")) }
}
