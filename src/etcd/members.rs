//! `quorate etcd members`: who the members are, and every change of them. On a workstation a Job looks, what will happen is spelt out and
//! confirmed, and a Job does it under the locks; on a control plane node, with the API away, it is done in place.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::etcd::{Files, How, List, MembersCommand};
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::{ExitStatus, UsageError};
use crate::job::{self, Placement, Request};
use crate::lock::{self, Claimant, Leases};
use crate::observe::Sources;
use crate::observe::etcd::ClientFiles;
use crate::place::{self, InPlace, OwnPod};
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::{output, status};
use act::{Locks, Work};
pub(super) use host::{HostLock, LOCK as HOST_LOCK};
use list::MemberList;
use plan::{Begun, Order, Typed, Wanted};
use quorum_safety::{Code, Disruption, Fact, Membership, Mine, NodeName, Policy, Reason, Verdict, judge};
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

mod act;
mod host;
pub mod leadership;
pub mod list;
pub mod plan;
pub mod request;
pub mod words;

/// The template of a change.
const TEMPLATE: &str = "quorate-members";
/// How long to wait for a Lease whose holder has just ended, or whose proof of being gone takes time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the command.
///
/// # Errors
/// When it could not be carried out; what was refused, or is half done, is an answer.
pub async fn run(global: &Global, command: &MembersCommand, clock: Clock) -> anyhow::Result<ExitStatus> {
    let (typed, how) = match command {
        MembersCommand::List(list) => return show(global, list, clock).await,
        MembersCommand::Add(add) => (Typed::Add(&add.node, add.peer_url.as_deref()), &add.how),
        MembersCommand::Promote(of) => (Typed::Promote(&of.member), &of.how),
        MembersCommand::Remove(of) => (Typed::Remove(&of.member), &of.how),
        MembersCommand::MoveLeader(of) => (Typed::MoveLeader(&of.member), &of.how),
        MembersCommand::Replace(it) => {
            (Typed::Replace(&it.member, it.node.as_deref(), it.peer_url.as_deref()), &it.how)
        }
    };
    let asked = Asked { global, typed, how, clock };
    if how.in_job {
        let report = asked.in_job().await?.fitted();
        report.leave()?;
        return Ok(report.outcome.in_job());
    }
    let report = if how.here { asked.here().await? } else { asked.by_job().await? };
    let report = match report {
        Ok(report) => report,
        Err(status) => return Ok(status),
    };
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(report.outcome.status())
}

/// `list`.
async fn show(global: &Global, list: &List, clock: Clock) -> anyhow::Result<ExitStatus> {
    let seen = if list.here {
        let place = InPlace::in_folder(global, &list.files.kubernetes_dir).await?;
        let config = place.configuration(global).await?;
        seen::look(&place.sources(), &config, Mine::Nothing, clock).await
    } else {
        let access = Access::new(global).await?;
        let config = place::configuration(global, &access).await?;
        if list.in_job {
            let seen = seen::look(&in_pod(&access, &list.files), &config, Mine::Nothing, clock).await;
            let found = MemberList::of(&seen);
            // One line, so that whoever reads the pod's log finds it among the lines of standard error.
            output::line(&serde_json::to_string(&found)?);
            let report = Report::new(Outcome::Ok, found.summary(), &[]).on(&seen.observation);
            output::terminate_with(Path::new(output::TERMINATION_LOG), &report.document())?;
            return Ok(ExitStatus::Ok);
        }
        match status::ask(&access, &config, clock).await? {
            Ok(status) => status.seen,
            Err(unseen) => return unseen.answer(global),
        }
    };
    let found = MemberList::of(&seen);
    output::answer(global.output, &found, || found.text())?;
    Ok(if found.unproven.is_none() { ExitStatus::Ok } else { ExitStatus::Unknown })
}

fn in_pod<'a>(access: &'a Access, files: &Files) -> Sources<'a> {
    place::in_pod_with(access, ClientFiles::in_folder(files.kubernetes_dir.join("pki/etcd")))
}

/// A change that was asked for.
struct Asked<'a> {
    global: &'a Global,
    typed: Typed<'a>,
    how: &'a How,
    clock: Clock,
}

impl Asked<'_> {
    fn policy(&self, config: &Config) -> Policy {
        Policy { lifted: self.how.lift.clone(), without_api: self.how.without_api, ..config.policy() }
    }

    /// Why, where that has to be said.
    fn because(&self) -> Result<&str, UsageError> {
        let because = self.how.because.as_deref().unwrap_or_default();
        let needed = self.how.without_api || !self.how.lift.is_empty();
        if needed && because.trim().is_empty() {
            return Err(UsageError("--because is empty: say why, it is recorded".to_owned()));
        }
        Ok(because)
    }

    /// Everything before anything is done: who is meant, what would happen, what stands against it, whether it is confirmed. `Err` has
    /// been answered.
    fn prepare(&self, seen: &Seen, config: &Config, begun: Option<&Begun>) -> anyhow::Result<Result<Order, Report>> {
        self.because()?;
        if let Some(report) = nobody_known(seen) {
            return Ok(Err(report));
        }
        let order = plan::order(self.typed, &seen.observation, begun).map_err(UsageError)?;
        let policy = self.policy(config);
        words::story(&order, seen, &policy).iter().for_each(|line| output::progress(line));
        let goes_on = begun.is_some_and(|begun| begun.operation == order.operation());
        if goes_on {
            output::progress("it has begun before, and is gone on with");
        } else if let Some(report) = self.stands_against(&order, seen, &policy) {
            return Ok(Err(report));
        }
        if self.how.dry_run {
            return Ok(Err(Report::new(
                Outcome::Ok,
                format!("{}: permitted as things are; nothing was changed", order.wanted.disruption()),
                &[],
            )));
        }
        self.confirm(&order, seen)?;
        Ok(Ok(order))
    }

    /// What the rule says now: a refusal ends it. What is only not now may be over when the locks are held, but for a dry run.
    fn stands_against(&self, order: &Order, seen: &Seen, policy: &Policy) -> Option<Report> {
        let wanted = order.wanted.disruption();
        // A node that waits for its member is held by nothing but the Lease that will name it.
        let verdict = match wanted {
            Disruption::AddLearner => judge(&seen.observation, &lock_for(&seen.in_flight, order), &wanted, policy),
            _ => judge(&seen.observation, &seen.in_flight, &wanted, policy),
        };
        let reasons = match &verdict {
            Verdict::Permitted(_) => return None,
            Verdict::Held(reasons) | Verdict::Refused(reasons) => reasons.as_slice(),
        };
        let outcome = Outcome::of_reasons(reasons);
        if outcome != Outcome::Refused && !self.how.dry_run {
            for reason in reasons {
                output::progress(&format!("not now, and looked at again under the locks: {reason}"));
            }
            return None;
        }
        let ways = words::ways(seen, policy);
        let summary = format!("{wanted} is not permitted; nothing was changed");
        Some(Report::with_blockers(outcome, summary, reasons, &ways).on(&seen.observation))
    }

    /// The name or the id, typed once more.
    fn confirm(&self, order: &Order, seen: &Seen) -> anyhow::Result<()> {
        let list = seen.observation.etcd.membership.known().map_or(&[][..], Membership::members);
        let mut names: Vec<String> = match order.wanted.member() {
            Some(id) => {
                let entry = list.iter().find(|member| member.id == id && member.has_started());
                entry.map(|member| member.name.clone()).into_iter().chain([id.to_string()]).collect()
            }
            None => vec![order.node.0.clone()],
        };
        // A member that is gone, and goes on to be replaced: its node is what is left of its name.
        if !matches!(order.wanted, Wanted::MoveLeader(_)) {
            names.push(order.node.0.clone());
        }
        names.dedup();
        let (first, all) = (names.first().cloned().unwrap_or_default(), names.join(" or "));
        let said = match &self.how.yes {
            Some(said) => said.clone(),
            None if std::io::stdin().is_terminal() => ask(&format!("type `{first}` to go on: "))?,
            None => return Err(UsageError(format!("this is no terminal: confirm with --yes={first}")).into()),
        };
        if names.contains(&said) {
            return Ok(());
        }
        Err(UsageError(format!("`{said}` is not what this is about, which is {all}: nothing was changed")).into())
    }

    /// On a control plane node, with the API away.
    async fn here(&self) -> anyhow::Result<Result<Report, ExitStatus>> {
        let (how, clock) = (self.how, self.clock);
        let because = self.because()?;
        let place = InPlace::in_folder(self.global, &how.files.kubernetes_dir).await?;
        let config = place.configuration(self.global).await?;
        let seen = seen::look(&place.sources(), &config, Mine::Nothing, clock).await;
        if seen.observation.nodes.known().is_some() {
            let text = "the API answers: without --here and --without-api a Job does this under the locks";
            return Err(UsageError(text.to_owned()).into());
        }
        let begun = host::begun(&how.files.state_dir)?;
        let order = match self.prepare(&seen, &config, begun.as_ref())? {
            Ok(order) => order,
            Err(report) => return Ok(Ok(report)),
        };
        let Some(lock) = HostLock::take(&how.files.state_dir)? else {
            let summary = "another change of members, or a backup, runs on this host; nothing was changed";
            return Ok(Ok(Report::new(Outcome::Held, summary, &[])));
        };
        if let Some(command) = half_done(&lock).filter(|_| lock.begun.as_ref() != Some(&order)) {
            let summary = format!("another change of members is half done on this host: `{command}` goes on with it");
            return Ok(Ok(Report::new(Outcome::Held, summary, &[])));
        }
        lock.record(&order, because, &how.lift, clock)?;
        Ok(Ok(self.work(place.sources(), &config, &order).run(Locks::Host(lock)).await))
    }

    /// In the pod of a Job.
    async fn in_job(&self) -> anyhow::Result<Report> {
        let because = self.because()?;
        let pod = OwnPod::from_environment()?;
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let sources = in_pod(&access, &self.how.files);
        let seen = seen::look(&sources, &config, Mine::Nothing, self.clock).await;
        if let Some(report) = nobody_known(&seen) {
            return Ok(report);
        }
        let order = match plan::exactly(self.typed, Begun::of(&seen.in_flight).as_ref(), &seen.observation) {
            Ok(order) => order,
            Err(why) => return Err(UsageError(why).into()),
        };
        pod.not_on(&order.node)?;
        for code in &self.how.lift {
            output::progress(&format!("{code} is lifted: {because}"));
        }
        let locks = match self.locks(&access, &config, &pod, &order).await? {
            Ok(locks) => locks,
            Err(report) => return Ok(report),
        };
        Ok(self.work(sources, &config, &order).run(locks).await)
    }

    async fn locks(
        &self,
        access: &Access,
        config: &Config,
        pod: &OwnPod,
        order: &Order,
    ) -> anyhow::Result<Result<Locks, Report>> {
        let leases = Leases::new(access.clone(), Vec::new(), lock::timings(config), self.clock);
        let (operation, actor) = (order.operation(), format!("etcd members {}", order.wanted.verb()));
        let who =
            match Claimant::in_pod(&leases, (leases.namespace(), &pod.name), (&operation, &order.node), &actor).await {
                Ok(who) => who,
                Err(why) => return Ok(Err(Report::new(Outcome::Unknown, format!("{why}; nothing was changed"), &[]))),
            };
        let unit = |_| async { Fact::Unknown("a change of members looks at no host".to_owned()) };
        Ok(match lock::hold(&leases, lock::CONTROL_PLANE, &who, config, PATIENCE.min(self.how.wait), unit).await {
            lock::Outcome::Got(hold) => Ok(Locks::Leases(hold)),
            lock::Outcome::Held(reasons) => {
                let summary = format!("{}: the lock is not to be had; nothing was changed", order.wanted.disruption());
                Err(Report::new(Outcome::of_reasons(&reasons), summary, &reasons))
            }
        })
    }

    fn work<'a>(&self, sources: Sources<'a>, config: &'a Config, order: &'a Order) -> Work<'a> {
        let (policy, clock) = (self.policy(config), self.clock);
        Work { sources, config, policy, clock, order, wait: self.how.wait, began: clock.boottime() }
    }

    /// On a workstation.
    async fn by_job(&self) -> anyhow::Result<Result<Report, ExitStatus>> {
        self.because()?;
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let seen = match status::ask(&access, &config, self.clock).await? {
            Ok(status) => status.seen,
            Err(unseen) => return unseen.answer(self.global).map(Err),
        };
        let order = match self.prepare(&seen, &config, Begun::of(&seen.in_flight).as_ref())? {
            Ok(order) => order,
            Err(report) => return Ok(Ok(report)),
        };
        let mut args = order.args();
        args.extend(["--in-job".to_owned(), format!("--wait={}s", self.how.wait.as_secs())]);
        args.extend(self.how.lift.iter().map(|code| format!("--lift={code}")));
        args.extend(self.how.because.iter().map(|because| format!("--because={because}")));
        let name = job::name(&order.operation(), None, Some(&order.node));
        let make = |place: &NodeName| Request {
            template: TEMPLATE,
            name: name.clone(),
            args: args.clone(),
            operation: "members".to_owned(),
            target: Some(order.node.clone()),
            placement: Placement::On(place.clone()),
        };
        super::job::run(&access, &config, &order.node, make).await.map(Ok)
    }
}

/// The answer where the members are not known.
pub(super) fn nobody_known(seen: &Seen) -> Option<Report> {
    let why = seen.observation.etcd.membership.as_result().err()?;
    let reason = Reason::new(Code::MembershipUnknown, why);
    Some(Report::new(Outcome::Unknown, "who the members are is not known; nothing was changed", &[reason]))
}

/// The command that goes on with a change of members that was begun under the lock of this host and not ended.
pub(super) fn half_done(lock: &HostLock) -> Option<String> {
    lock.begun.as_ref().map(act::here)
}

/// What is under way as it will be when the Lease is held for this.
fn lock_for(in_flight: &quorum_safety::InFlight, order: &Order) -> quorum_safety::InFlight {
    let mut in_flight = in_flight.clone();
    if in_flight.control_plane == Fact::Known(quorum_safety::Lock::Free) {
        let identity = "preview".to_owned();
        let holder = quorum_safety::Holder {
            identity: identity.clone(),
            operation: order.operation(),
            target: order.node.clone(),
        };
        in_flight.control_plane = Fact::Known(quorum_safety::Lock::Held(holder));
        in_flight.mine = Mine::Taken(identity);
    }
    in_flight
}

/// Asks on the terminal.
pub(super) fn ask(question: &str) -> anyhow::Result<String> {
    let mut terminal = std::io::stderr().lock();
    write!(terminal, "{question}")?;
    terminal.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
