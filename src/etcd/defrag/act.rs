//! Carries the defragmentation of one member out, under the Lease of the control plane and kured's lock: look, ask the rule, hand leadership
//! over, take this node's apiserver out of rotation, look again, announce it, ask the member, and wait until the member itself answers again.

use super::aside::{self, Aside, Stepped};
use super::plan::{self, Database};
use super::request::{Heard, defragment};
use super::room;
use crate::cli::node::HandOver;
use crate::clock::Clock;
use crate::config::Config;
use crate::etcd::members::leadership::first_permitted;
use crate::etcd::members::list::{called, mebibytes};
use crate::etcd::members::plan::{Change, leader};
use crate::etcd::members::request as change;
use crate::lock::Hold;
use crate::observe::Sources;
use crate::output;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::upgrade::passing::passes;
use anyhow::Context;
use quorum_safety::lock::Step;
use quorum_safety::{Code, Disruption, Fact, Member, MemberId, Mine, NodeName, Reason, Verdict, judge};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long what passes by itself is waited for.
pub(super) const PASSING: Duration = Duration::from_secs(90);
/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How often a member is asked whose database is as it was afterwards: it was killed in the middle.
pub(super) const TIMES: usize = 3;
/// How long an answer is listened for. It ends before the deadline of the Lease does, as of every disruptive request; etcd does not.
pub(super) const LISTEN: Duration = Duration::from_secs(20);

/// The defragmentation of one member.
pub(super) struct Work<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) config: &'a Config,
    pub(super) clock: Clock,
    pub(super) member: MemberId,
    /// This host's node, which is its.
    pub(super) node: &'a NodeName,
    /// Whether this node's apiserver is taken out of rotation meanwhile, and the Service that is handed over with it.
    pub(super) hand_over: Option<Option<SocketAddr>>,
    /// Its data directory, on this host.
    pub(super) data: &'a Path,
    /// How long to wait for what passes by itself.
    pub(super) wait: Duration,
    /// When it began, by the clock's time since boot.
    pub(super) began: Duration,
}

/// What is under way, and has to be ended.
struct State {
    /// The member may be at it.
    open: bool,
    rotation: Rotation,
}

/// Whether clients come to this node's apiserver.
enum Rotation {
    /// They do.
    In,
    /// New connections go to peers.
    Out(Aside),
    /// They do, and nothing can be done about it.
    Stays,
}

/// Why not now.
enum NotNow {
    /// The rule says so.
    Rule(Vec<Reason>),
    /// Something else, in words; none of it passes by itself.
    Other(String),
}

/// What one try came to.
enum Tried {
    /// The member serves again; what was heard of the request.
    Served(Heard),
    /// Not now: nothing was asked of it.
    NotNow(NotNow),
    /// Leadership has moved: look again.
    HandedOver,
    /// Clients have been sent elsewhere, which took its time: look again.
    SteppedAside,
    /// It does not serve in time; how it ends.
    Away(Report),
}

impl Work<'_> {
    /// Carries it out, and gives the locks back unless the member may still be at it.
    pub(super) async fn run(self, hold: Hold) -> Report {
        let rotation = if self.hand_over.is_some() { Rotation::In } else { Rotation::Stays };
        let mut state = State { open: hold.guard.adopted().is_some(), rotation };
        let report = match self.steps(&hold, &mut state).await {
            Ok(report) => report,
            Err(error) => Report::new(Outcome::Unknown, format!("{error:#}"), &[]),
        };
        if let Rotation::Out(aside) = state.rotation {
            match aside.back().await {
                Ok(()) => self.say("new connections come to this node's apiserver again"),
                // The rule times out by itself.
                Err(why) => self.say(&format!("the hand-over of new connections: {why}")),
            }
        }
        if state.open {
            let how = "; it stays locked, so that nobody else is taken down meanwhile; to go on: `quorate etcd defrag`";
            return Report { outcome: Outcome::Midway, ..report }.and(how);
        }
        match hold.release().await {
            Ok(()) => report,
            Err(why) => report.and(&format!("; the lock could not be given back: {why}")),
        }
    }

    async fn steps(&self, hold: &Hold, state: &mut State) -> anyhow::Result<Report> {
        if state.open {
            self.say("going on with what was begun before");
            if let Some(away) = self.serves(hold, None).await? {
                return Ok(away);
            }
            state.open = false;
        }
        let (mut before, mut heard, mut asked, mut moved) = (None, Heard::Done, 0, 0);
        let mut since = self.clock.boottime();
        let mut said = String::new();
        loop {
            let seen = self.look(hold).await?;
            let Some(member) = seen.observation.etcd.membership.known().and_then(|list| list.get(self.member)) else {
                let why = match &seen.observation.etcd.membership {
                    Fact::Unknown(why) => Reason::new(Code::MembershipUnknown, why.clone()),
                    Fact::Known(_) => Reason::new(Code::TargetNotAMember, self.member.to_string()),
                };
                match self.another_look(&NotNow::Rule(vec![why]), since, &mut said, &seen).await {
                    None => continue,
                    Some(stop) => return Ok(stop),
                }
            };
            let name = called(member);
            let database = plan::database(&seen.observation.etcd, self.member);
            if let Fact::Known(database) = &database {
                let (pays, why) = database.pays(&self.config.defrag);
                let shrunk = before.is_some_and(|before: Database| database.size < before.size);
                if !pays || shrunk {
                    return Ok(done(&name, before, *database, &why).on(&seen.observation));
                }
                if asked == TIMES {
                    let text = format!("{name}: its database is as it was, {} times: {heard:?}", TIMES);
                    return Ok(Report::new(Outcome::Failed, text, &[]).on(&seen.observation));
                }
            }
            // It may come back: an election is nobody's.
            if moved == TIMES && leader(&seen.observation.etcd) == Some(self.member) {
                let text = format!("{name} leads again, {TIMES} times; its database is as it was");
                return Ok(Report::new(Outcome::Held, text, &[]).on(&seen.observation));
            }
            let not_now = match self.attempt(hold, &seen, member, database.clone(), state).await? {
                Tried::SteppedAside => continue,
                Tried::HandedOver => {
                    moved += 1;
                    continue;
                }
                Tried::Away(report) => return Ok(report),
                Tried::Served(answer) => {
                    if let Heard::Other(why) | Heard::Silent(why) = &answer {
                        self.say(&format!("{name}: it serves again; of the request was heard: {why}"));
                    }
                    (before, heard, asked) = (before.or(database.known().copied()), answer, asked + 1);
                    since = self.clock.boottime();
                    continue;
                }
                Tried::NotNow(not_now) => not_now,
            };
            if let Some(stop) = self.another_look(&not_now, since, &mut said, &seen).await {
                return Ok(stop);
            }
        }
    }

    async fn look(&self, hold: &Hold) -> anyhow::Result<Seen> {
        hold.guard.check().context("the Lease is lost")?;
        // Never as what is half done may be finished on a control plane that is not whole: whoever looks has the member back, or waits for it.
        let mine = Mine::Taken(hold.guard.identity().await);
        let seen = seen::look(&self.sources, self.config, mine, self.clock).await;
        if let Ok(access) = &self.sources.access {
            seen.show(access).await;
        }
        Ok(seen)
    }

    /// Judges and asks once.
    async fn attempt(
        &self,
        hold: &Hold,
        seen: &Seen,
        member: &Member,
        database: Fact<Database>,
        state: &mut State,
    ) -> anyhow::Result<Tried> {
        let not_now = |reasons| Ok(Tried::NotNow(NotNow::Rule(reasons)));
        if let Some(reason) = hold.lost_kured(&seen.in_flight) {
            return not_now(vec![reason]);
        }
        if leader(&seen.observation.etcd) == Some(member.id) {
            return match self.hand_over(hold, seen, member).await? {
                Ok(()) => Ok(Tried::HandedOver),
                Err(reasons) => not_now(reasons),
            };
        }
        let wanted = Disruption::Defragment(member.id);
        let permit = match judge(&seen.observation, &seen.in_flight, &wanted, &self.config.policy()) {
            Verdict::Permitted(permit) => permit,
            verdict => return not_now(verdict.reasons().to_vec()),
        };
        let database = match database {
            Fact::Known(database) => database,
            Fact::Unknown(why) => return Ok(Tried::NotNow(NotNow::Other(why))),
        };
        if let Err(why) = room::check(self.data, database) {
            return Ok(Tried::NotNow(NotNow::Other(format!("the room for it: {why}"))));
        }
        if let (Rotation::In, Some(service_address)) = (&state.rotation, self.hand_over) {
            let order = HandOver { peers: self.peers(seen), service_address };
            state.rotation = match aside::step(&order).await {
                Stepped::Aside(aside) => {
                    self.say(&format!("new connections to {}'s apiserver go to {:?}", self.node, order.peers));
                    Rotation::Out(aside)
                }
                Stepped::Without(why) => {
                    self.say(&format!("clients of {}'s apiserver wait meanwhile, not handed over: {why}", self.node));
                    Rotation::Stays
                }
                Stepped::Not(why) => {
                    return Ok(Tried::NotNow(NotNow::Other(format!("the hand-over of clients: {why}"))));
                }
            };
            return Ok(Tried::SteppedAside);
        }
        hold.guard.step(Step::touching("defragment")).await.context("the step could not be announced")?;
        let name = called(member);
        let (size, in_use) = (mebibytes(database.size), mebibytes(database.in_use));
        self.say(&format!(
            "permitted: {wanted} ({name}, {in_use} of {size} in use), {} more may fail then",
            permit.margin()
        ));
        let begun = permit.begin();
        tracing::info!(disruption = %begun.disruption(), "Defragmenting");
        let connecting = self.config.times.answer.get();
        let listen = LISTEN.min(self.config.times.lease.get() / 3);
        let request = defragment(&self.sources.etcd, member, &begun, connecting, listen);
        state.open = true;
        let heard = match hold.guard.act(connecting * 2 + listen, request).await {
            Ok(heard) => heard,
            Err(error) => Heard::Other(error.to_string()),
        };
        if let Heard::NotAsked(why) = heard {
            state.open = false;
            return Ok(Tried::NotNow(NotNow::Other(format!("{name}: it was not asked: {why}"))));
        }
        if let Heard::Other(why) | Heard::Silent(why) = &heard {
            self.say(&format!("{name}: {why}; that is no end: waiting for the member itself"));
        }
        if let Some(away) = self.serves(hold, Some(database)).await? {
            return Ok(Tried::Away(away));
        }
        state.open = false;
        Ok(Tried::Served(heard))
    }

    /// The addresses of the apiservers that are ready, but this node's.
    fn peers(&self, seen: &Seen) -> Vec<std::net::IpAddr> {
        let nodes = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
        let servers = seen.observation.apiservers.iter();
        servers
            .filter(|server| server.node != *self.node && server.ready == Fact::Known(true))
            .filter_map(|server| nodes.iter().find(|node| node.name == server.node)?.address.known()?.parse().ok())
            .collect()
    }

    /// Waits until the member serves again, by what it says itself; else how it ends. Nothing but that, and nobody's deadline, says that
    /// etcd is done.
    async fn serves(&self, hold: &Hold, database: Option<Database>) -> anyhow::Result<Option<Report>> {
        let since = self.clock.boottime();
        let mut said = String::new();
        loop {
            let seen = self.look(hold).await?;
            let Some(lacks) = plan::lacks(&seen, self.member, &self.config.policy()) else { return Ok(None) };
            let size = database.map_or_else(|| plan::largest(&seen.observation.etcd), |database| database.size);
            let deadline = plan::deadline(size, &self.config.defrag);
            if self.clock.boottime().saturating_sub(since) >= deadline {
                let seconds = deadline.as_secs();
                let text = format!("member {} does not serve again in {seconds} s: {lacks}", self.member);
                return Ok(Some(Report::new(Outcome::Midway, text, &[]).on(&seen.observation)));
            }
            self.say_once(&format!("waiting for member {} to serve again: {lacks}", self.member), &mut said);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Moves leadership to another voter: a disruption of its own. Leaves nothing half done.
    async fn hand_over(&self, hold: &Hold, seen: &Seen, from: &Member) -> anyhow::Result<Result<(), Vec<Reason>>> {
        let policy = plan::policy_of_hand_over(self.config);
        let leads = |why: String| Reason::new(Code::TargetLeads, format!("{}: {why}", called(from)));
        let successors = plan::successors(&seen.observation, from.id, &self.config.defrag);
        let (to, permit) = match first_permitted(seen, successors, &policy) {
            Ok(first) => first,
            Err(refused) if refused.is_empty() => return Ok(Err(vec![leads("nobody else may lead".to_owned())])),
            Err(refused) => return Ok(Err(refused)),
        };
        hold.guard.step(Step::looking("move-leader")).await.context("the step could not be announced")?;
        let begun = permit.begin();
        self.say(&format!("{} leads: leadership goes to member {to}", called(from)));
        tracing::info!(disruption = %begun.disruption(), "Moving leadership");
        let deadline = self.config.times.answer.get() * 3;
        let wanted = Change::MoveLeader(to);
        let request = change::make(&self.sources.etcd, from, &wanted, deadline);
        let moved = hold.guard.act(deadline * 2, request).await.context("the Lease does not last for a request")?;
        Ok(moved.map_err(|why| vec![leads(why.to_string())]))
    }

    /// Waits a moment when another look is worth it, and says why; else how it ends.
    async fn another_look(&self, not_now: &NotNow, since: Duration, said: &mut String, seen: &Seen) -> Option<Report> {
        let waited = self.clock.boottime().saturating_sub(since);
        let (outcome, reasons, blockers) = match not_now {
            NotNow::Rule(reasons) if passes(reasons) && waited < PASSING.min(self.wait) => {
                let lines: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.say_once(&format!("not now: {}", lines.join("; ")), said);
                tokio::time::sleep(PAUSE).await;
                return None;
            }
            NotNow::Rule(reasons) => (Outcome::of_reasons(reasons), reasons.clone(), Vec::new()),
            NotNow::Other(why) => (Outcome::Held, Vec::new(), vec![why.clone()]),
        };
        let summary = format!("member {} is not defragmented now; its database is as it was", self.member);
        Some(Report::with_blockers(outcome, summary, &reasons, &blockers).on(&seen.observation))
    }

    /// A line of progress, with the time since it began.
    fn say(&self, text: &str) {
        let seconds = self.clock.boottime().saturating_sub(self.began).as_secs();
        output::progress(&format!("{:>2}:{:02} {text}", seconds / 60, seconds % 60));
    }

    /// The same, once each: what changes is often only a figure.
    fn say_once(&self, text: &str, said: &mut String) {
        let kind: String = text.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if *said != kind {
            self.say(text);
            *said = kind;
        }
    }
}

/// What has come of it.
fn done(name: &str, before: Option<Database>, now: Database, why: &str) -> Report {
    let text = match before {
        Some(before) => format!("{name}: {} before, {} now", mebibytes(before.size), mebibytes(now.size)),
        None => format!("{name}: {} of {} in use, {why}", mebibytes(now.in_use), mebibytes(now.size)),
    };
    Report::new(Outcome::Ok, text, &[])
}
