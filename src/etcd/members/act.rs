//! Carries a change of members out: look, read what comes next, ask the rule, announce it, ask etcd, look again. Under the Lease of the
//! control plane and kured's lock; with the API away, and said to be, under the lock of this host.

use super::host::HostLock;
use super::list::called;
use super::plan::{Change, Next, Order, Patience, Waiting, Wanted, has_begun, host_of, leader, next};
use super::request::{self, NotMade};
use super::words;
use crate::clock::Clock;
use crate::config::Config;
use crate::lock::Hold;
use crate::observe::Sources;
use crate::output;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use anyhow::Context;
use quorum_safety::lock::Step;
use quorum_safety::{Code, Fact, Membership, Mine, Policy, Quorum, Reason, Verdict, judge};
use std::time::Duration;

/// How long what passes by itself is waited for: an election, etcd's own five seconds after a connection, a late answer.
const PASSING: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Who holds the lock of a host, in the words of the rule.
const HERE: &str = "members/here";

/// Under what a change is made.
#[derive(Debug)]
#[must_use]
pub(super) enum Locks {
    /// The Lease of the control plane, and kured's lock.
    Leases(Box<Hold>),
    /// The lock of this host, while the API is away.
    Host(HostLock),
}

impl Locks {
    /// What the rule is told: what has begun is finished on a control plane that is not whole.
    async fn mine(&self, changed: bool) -> Mine {
        match self {
            Self::Leases(hold) if changed => Mine::Adopted(hold.guard.identity().await),
            Self::Leases(hold) => Mine::Taken(hold.guard.identity().await),
            Self::Host(_) if changed => Mine::Adopted(HERE.to_owned()),
            Self::Host(_) => Mine::Nothing,
        }
    }

    /// Whether the order had begun before.
    fn adopted(&self) -> bool {
        match self {
            Self::Leases(hold) => hold.guard.adopted().is_some(),
            Self::Host(lock) => lock.begun.is_some(),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Leases(hold) => hold.guard.check().map(drop).context("the Lease is lost"),
            Self::Host(_) => Ok(()),
        }
    }

    fn lost_kured(&self, seen: &Seen) -> Option<Reason> {
        match self {
            Self::Leases(hold) => hold.lost_kured(&seen.in_flight),
            Self::Host(_) => None,
        }
    }

    /// Says what will be done, before anything of it is.
    async fn announce(&self, order: &Order, change: &Change) -> anyhow::Result<()> {
        match self {
            Self::Leases(hold) => {
                hold.guard.step(Step::touching(change.step())).await.context("the step could not be announced")
            }
            Self::Host(lock) => lock.begin(order),
        }
    }

    async fn act(
        &self,
        longest: Duration,
        request: impl Future<Output = Result<(), NotMade>>,
    ) -> anyhow::Result<Result<(), NotMade>> {
        match self {
            Self::Leases(hold) => {
                hold.guard.act(longest, request).await.context("the Lease does not last for a request")
            }
            Self::Host(_) => Ok(request.await),
        }
    }

    async fn give_back(self) -> Result<(), String> {
        match self {
            Self::Leases(hold) => hold.release().await.map_err(|error| error.to_string()),
            Self::Host(lock) => lock.end().map_err(|error| format!("{error:#}")),
        }
    }
}

/// A change of members under way.
pub(super) struct Work<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) config: &'a Config,
    pub(super) policy: Policy,
    pub(super) clock: Clock,
    pub(super) order: &'a Order,
    /// How long to wait for what happens elsewhere.
    pub(super) wait: Duration,
    /// When it began, by the clock's time since boot.
    pub(super) began: Duration,
}

/// Why a change is not made now.
enum NotNow {
    /// It is waited for.
    Waits(Waiting),
    /// The rule says so.
    Rule(Vec<Reason>),
    /// etcd says so, or has not said what became of it.
    Etcd(String),
}

/// Where it came to.
enum End {
    /// As wanted.
    Done(Report),
    /// Not further now.
    Stop(Report),
}

impl Work<'_> {
    /// Carries it out, and gives the locks back unless something is half done.
    pub(super) async fn run(self, locks: Locks) -> Report {
        let mut changed = locks.adopted();
        if changed {
            self.say("going on with what was begun before");
        }
        let end = match self.steps(&locks, &mut changed).await {
            Ok(end) => end,
            Err(error) => End::Stop(Report::new(Outcome::Unknown, format!("{error:#}"), &[])),
        };
        match end {
            End::Done(report) => given_back(locks, report).await,
            End::Stop(report) if !changed => given_back(locks, report.and("; nothing was changed")).await,
            End::Stop(report) => {
                let command = match &locks {
                    Locks::Leases(_) => self.order.command(),
                    Locks::Host(_) => here(self.order),
                };
                let how = format!("; it is half done and stays locked; to go on: `{command}`");
                Report { outcome: Outcome::Midway, ..report }.and(&how)
            }
        }
    }

    /// A line of progress, with the time since it began.
    fn say(&self, text: &str) {
        let seconds = self.clock.boottime().saturating_sub(self.began).as_secs();
        output::progress(&format!("{:>2}:{:02} {text}", seconds / 60, seconds % 60));
    }

    async fn steps(&self, locks: &Locks, changed: &mut bool) -> anyhow::Result<End> {
        let mut waits = Waits::from(self.clock.boottime());
        // What a record announces may not have been done: it is told by the list.
        let mut untold = *changed;
        loop {
            locks.check()?;
            let seen = seen::look(&self.sources, self.config, locks.mine(*changed).await, self.clock).await;
            if let (Locks::Leases(_), Ok(access)) = (locks, &self.sources.access) {
                seen.show(access).await;
            }
            if let (true, Fact::Known(membership)) = (untold, &seen.observation.etcd.membership) {
                untold = false;
                *changed = has_begun(&self.order.wanted, membership);
                if !*changed {
                    continue;
                }
            }
            let not_now = match &seen.observation.etcd.membership {
                Fact::Unknown(why) => NotNow::Rule(vec![Reason::new(Code::MembershipUnknown, why.clone())]),
                Fact::Known(membership) => {
                    match next(&self.order.wanted, membership, &seen.observation.etcd, &self.policy) {
                        Next::Done => return Ok(End::Done(self.done(membership, &seen))),
                        Next::Wait(waiting) => NotNow::Waits(waiting),
                        Next::Change(change) => match self.change(locks, &seen, membership, &change, changed).await? {
                            Ok(()) => {
                                waits = Waits::from(self.clock.boottime());
                                continue;
                            }
                            Err(why) => why,
                        },
                    }
                }
            };
            if let Some(stop) = self.another_look(&mut waits, &not_now, &seen).await {
                return Ok(End::Stop(stop));
            }
        }
    }

    /// Judges and makes one change; or why not now.
    async fn change(
        &self,
        locks: &Locks,
        seen: &Seen,
        membership: &Membership,
        change: &Change,
        changed: &mut bool,
    ) -> anyhow::Result<Result<(), NotNow>> {
        let rule = |reasons| Ok(Err(NotNow::Rule(reasons)));
        if let Some(reason) = locks.lost_kured(seen) {
            return rule(vec![reason]);
        }
        let wanted = change.disruption(&self.order.wanted);
        let permit = match judge(&seen.observation, &seen.in_flight, &wanted, &self.policy) {
            Verdict::Permitted(permit) => permit,
            verdict => return rule(verdict.reasons().to_vec()),
        };
        let Some(leader) = leader(&seen.observation.etcd).and_then(|id| membership.get(id)) else {
            return rule(vec![Reason::new(Code::LeadersDisagree, "nobody is the leader of all who answer")]);
        };
        locks.announce(self.order, change).await?;
        self.say(&format!("permitted: {wanted}, {} more may fail then", permit.margin()));
        let begun = permit.begin();
        tracing::info!(disruption = %begun.disruption(), "Changing members");
        // etcd's own deadline is 7 s (`server/config/config.go`, ReqTimeout), a connection and an election beside it.
        let deadline = self.config.times.answer.get() * 3;
        let before = *changed;
        *changed = true;
        match locks.act(deadline * 2, request::make(&self.sources.etcd, leader, change, deadline)).await? {
            Ok(()) => {
                self.say(&format!("{}: done", begun.disruption()));
                Ok(Ok(()))
            }
            // It has not changed anything: what was begun before stays begun.
            Err(NotMade::Refused(why)) => {
                *changed = before;
                Ok(Err(NotNow::Etcd(why)))
            }
            Err(unknown @ NotMade::Unknown(_)) => Ok(Err(NotNow::Etcd(unknown.to_string()))),
        }
    }

    /// Waits a moment when another look is worth it, and says why; else how it stops.
    async fn another_look(&self, waits: &mut Waits, not_now: &NotNow, seen: &Seen) -> Option<Report> {
        let membership = seen.observation.etcd.membership.known();
        let (patience, words) = match not_now {
            // kubeadm promotes by itself: what a promotion takes has to be there before it is started.
            NotNow::Waits(Waiting::Start(id)) if !self.may_start(seen) => {
                let text = format!(
                    "member {id} must not be started on {} yet: its promotion would need itself",
                    self.order.node
                );
                (Some(self.wait), text)
            }
            NotNow::Waits(Waiting::Start(id)) => {
                let at = membership.and_then(|list| host_of(list, *id)).unwrap_or_default();
                (Some(self.wait), format!("waiting for member {id} to start on {} ({at})", self.order.node))
            }
            NotNow::Waits(Waiting::TakesPart(id, lacks)) => {
                (Some(self.wait), format!("waiting for member {id} to take part: {lacks}"))
            }
            NotNow::Rule(reasons) => {
                let lines: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                (self.patience(reasons), format!("not now: {}", lines.join("; ")))
            }
            NotNow::Etcd(why) => (Some(PASSING.min(self.wait)), format!("etcd: {why}")),
        };
        if patience.is_none_or(|patience| self.clock.boottime().saturating_sub(waits.since) >= patience) {
            let name = self.name();
            let report = match not_now {
                NotNow::Waits(_) => {
                    Report::new(Outcome::Held, format!("{name}: it was not to be had in time: {words}"), &[])
                }
                NotNow::Rule(reasons) => {
                    let ways = words::ways(seen, &self.policy);
                    Report::with_blockers(
                        Outcome::of_reasons(reasons),
                        format!("{name} is not permitted"),
                        reasons,
                        &ways,
                    )
                }
                NotNow::Etcd(why) => Report::with_blockers(
                    Outcome::Held,
                    format!("{name}: etcd does not do it"),
                    &[],
                    std::slice::from_ref(why),
                ),
            };
            return Some(report.on(&seen.observation));
        }
        // Once each, and what changes is often only a figure.
        let kind: String = words.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if waits.said != kind {
            self.say(&words);
            if let (NotNow::Waits(Waiting::Start(new)), Wanted::Replace { peer_url, .. }) =
                (not_now, &self.order.wanted)
            {
                let lines = words::on_the_node(&self.order.node, peer_url, *new);
                lines.iter().for_each(|line| output::progress(line));
            }
            waits.said = kind;
        }
        tokio::time::sleep(PAUSE).await;
        None
    }

    /// Whether enough voters are healthy for the promotion that kubeadm makes by itself as soon as the new member has started.
    fn may_start(&self, seen: &Seen) -> bool {
        let healthy = quorum_safety::healthy_voters(&seen.observation, &seen.in_flight, &self.policy);
        let voters = seen.observation.etcd.membership.known().map(|list| list.voters().count());
        voters.is_some_and(|voters| healthy >= Quorum::of_voters(voters.saturating_add(1)).size())
    }

    /// How long these reasons are waited for; none when they do not pass.
    fn patience(&self, reasons: &[Reason]) -> Option<Duration> {
        match Patience::with(reasons, &self.order.wanted) {
            Patience::Learner => Some(self.wait),
            Patience::Moment => Some(PASSING.min(self.wait)),
            Patience::None => None,
        }
    }

    fn name(&self) -> String {
        self.order.wanted.disruption().to_string()
    }

    /// What has come of it.
    fn done(&self, membership: &Membership, seen: &Seen) -> Report {
        let voters = membership.voters().count();
        let healthy = quorum_safety::healthy_voters(&seen.observation, &seen.in_flight, &self.policy);
        let spare = match Quorum::of(membership).tolerance(healthy) {
            Some(spare) => format!("{spare} may fail"),
            None => "that is too few".to_owned(),
        };
        let done = match &self.order.wanted {
            Wanted::Add { peer_url } => {
                let added = membership.members().iter().find(|member| member.peer_urls.contains(peer_url));
                let lines = added.map(|added| words::on_the_node(&self.order.node, peer_url, added.id));
                lines.iter().flatten().for_each(|line| output::progress(line));
                format!(
                    "{} is added for node {}; promote it when it has started",
                    added.map_or_else(String::new, called),
                    self.order.node
                )
            }
            Wanted::Promote(id) => format!("member {id} votes and takes part"),
            Wanted::Remove(id) => format!("member {id} is not in the member list"),
            Wanted::Replace { old, .. } => format!("member {old} is replaced on node {}", self.order.node),
            Wanted::MoveLeader(id) => format!("member {id} leads"),
        };
        Report::new(Outcome::Ok, format!("{done}; {voters} voters, {healthy} are healthy: {spare}"), &[])
            .on(&seen.observation)
    }
}

/// The command that goes on with it on this host.
pub(super) fn here(order: &Order) -> String {
    format!("{} --here --without-api --because …", order.command())
}

async fn given_back(locks: Locks, report: Report) -> Report {
    match locks.give_back().await {
        Ok(()) => report,
        Err(why) => report.and(&format!("; the lock could not be given back: {why}")),
    }
}

/// Since when is waited, and what was said last.
struct Waits {
    since: Duration,
    said: String,
}

impl Waits {
    const fn from(since: Duration) -> Self {
        Self { since, said: String::new() }
    }
}
