//! Carries a cure of NOSPACE out on one host: look, read what comes next, ask the rule, mark what begins, do it, and look again. What is
//! done, and by whom, is told by the members; the mark only says that this host's may still be at it.

use super::super::act::{LISTEN, PASSING, PAUSE, TIMES};
use super::super::plan::{self as defrag, Database};
use super::super::request::{Heard, defragment};
use super::super::room;
use super::COMMAND;
use super::plan::{self, Next, Own, Room};
use super::request;
use super::step::{Begun, Step};
use crate::clock::Clock;
use crate::config::Config;
use crate::etcd::host::record;
use crate::etcd::members::list::{called, mebibytes};
use crate::etcd::members::plan::Change;
use crate::etcd::members::request as change;
use crate::lock;
use crate::observe::Sources;
use crate::observe::etcd::address;
use crate::output;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::upgrade::passing::passes;
use quorum_safety::{AlarmKind, Code, Disruption, Member, MemberId, Mine, Permit, Policy, Reason, Verdict, judge};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long what is in use may stay as it is before nothing more is hoped of a compaction.
const SHRINKS: Duration = Duration::from_secs(15);

/// A cure on this host.
pub(super) struct Work<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) config: &'a Config,
    pub(super) policy: Policy,
    pub(super) clock: Clock,
    /// The member of this host.
    pub(super) own: MemberId,
    /// What a database may have.
    pub(super) room: Room,
    /// Where that member keeps its data.
    pub(super) data: PathBuf,
    /// Where the lock of this host, its overrides and the mark are.
    pub(super) state: &'a Path,
    pub(super) because: &'a str,
    /// Where our Leases are.
    pub(super) namespace: &'a str,
    /// How long to wait for what passes by itself.
    pub(super) wait: Duration,
    /// When it began, by the clock's time since boot.
    pub(super) began: Duration,
}

/// What this run has come to.
struct State {
    /// Something was changed, by it or by the one before it.
    touched: bool,
    /// The member of this host may be at it.
    open: bool,
    recorded: bool,
    compacted: bool,
    /// How often the member was asked, and how often leadership went away.
    asked: usize,
    moved: usize,
    /// The database before.
    before: Option<Database>,
    /// The least that was in use, and since when.
    in_use: Option<(u64, Duration)>,
}

/// Why not now.
enum NotNow {
    /// The rule says so.
    Rule(Vec<Reason>),
    /// What may pass, in words.
    Passing(String),
    /// What does not, in words.
    Stays(String),
    /// What is in use leaves no room; it may shrink while etcd compacts.
    Filled(Reason),
}

/// What one try came to.
enum Tried {
    /// Look again.
    Again,
    /// Not now.
    NotNow(NotNow),
    /// It ends here.
    Stop(Report),
}

/// What the rule permits of the member of this host.
enum Way {
    Defragment(Permit),
    HandOver(MemberId, Permit),
}

impl Work<'_> {
    /// Carries it out as far as it can be from this host.
    pub(super) async fn run(self, begun: Option<Begun>, seen: Seen) -> Report {
        let mut state = State {
            touched: begun.is_some(),
            open: begun.as_ref().is_some_and(|begun| begun.step == Step::Defragment),
            recorded: false,
            compacted: false,
            asked: 0,
            moved: 0,
            before: None,
            in_use: None,
        };
        let report = match self.steps(begun.as_ref(), seen, &mut state).await {
            Ok(report) => report,
            Err(error) => Report::new(Outcome::Unknown, format!("{error:#}"), &[]),
        };
        if state.open {
            let how = format!("; it is half done, and goes on with the same command here: `{COMMAND} --because …`");
            return Report { outcome: Outcome::Midway, ..report }.and(&how);
        }
        match Begun::end(self.state) {
            Ok(()) => report,
            Err(why) => report.and(&format!("; the mark could not be taken away: {why:#}")),
        }
    }

    async fn steps(&self, begun: Option<&Begun>, seen: Seen, state: &mut State) -> anyhow::Result<Report> {
        let mut first = Some(seen);
        if let Some(begun) = begun {
            self.say("going on with what was begun before");
            if let Some(away) = self.serves(begun.database, state).await {
                return Ok(away);
            }
            first = None;
        }
        let mut since = self.clock.boottime();
        let mut said = String::new();
        loop {
            let seen = match first.take() {
                Some(seen) => seen,
                None => self.look().await,
            };
            let not_now = match plan::next(&seen.observation.etcd, self.own, self.room) {
                Next::Nothing if !state.touched => {
                    let text = "no member has the alarm NOSPACE; nothing was changed";
                    return Ok(Report::new(Outcome::Ok, text, &[]).on(&seen.observation));
                }
                Next::Nothing => return Ok(self.settled().await),
                Next::First(other) => return Ok(self.elsewhere(&seen, other, state)),
                Next::Not(reasons) => NotNow::Rule(reasons),
                Next::Disarm(whom) => match self.disarm(&seen, &whom, state).await? {
                    None => return Ok(self.settled().await),
                    Some(not_now) => not_now,
                },
                Next::Own(own) => match self.attempt(&seen, own, state).await? {
                    Tried::Again => {
                        since = self.clock.boottime();
                        continue;
                    }
                    Tried::Stop(report) => return Ok(report),
                    Tried::NotNow(not_now) => not_now,
                },
            };
            if let Some(stop) = self.another_look(&not_now, since, &mut said, &seen, state).await {
                return Ok(stop);
            }
        }
    }

    async fn look(&self) -> Seen {
        // Whoever goes on has the member back, or waits for it: the control plane is asked for as a whole.
        seen::look(&self.sources, self.config, Mine::Nothing, self.clock).await
    }

    /// Judges, and takes the next step with the member of this host.
    async fn attempt(&self, seen: &Seen, own: Own, state: &mut State) -> anyhow::Result<Tried> {
        let list = seen.observation.etcd.membership.known();
        let Some(member) = list.and_then(|list| list.get(self.own)) else {
            let reason = Reason::new(Code::TargetNotAMember, self.own.to_string());
            return Ok(Tried::NotNow(NotNow::Rule(vec![reason])));
        };
        let name = called(member);
        let way = match self.way(seen, own) {
            Ok(way) => way,
            Err(reasons) => return Ok(Tried::NotNow(NotNow::Rule(reasons))),
        };
        if let Err(why) = room::check(&self.data, own.database) {
            return Ok(Tried::NotNow(NotNow::Stays(format!("the room for the copy: {why}"))));
        }
        let connecting = self.config.times.answer.get();
        if !state.compacted {
            self.announce(Step::Compact, own.database, state)?;
            state.touched = true;
            match request::compact(&self.sources.etcd, member, connecting, LISTEN).await {
                Heard::Done => {}
                Heard::Silent(why) => self.say(&format!("{name}: {why}; that is no end: looking at what is in use")),
                Heard::NotAsked(why) | Heard::Other(why) => {
                    return Ok(Tried::NotNow(NotNow::Passing(format!("{name} does not compact: {why}"))));
                }
            }
            state.compacted = true;
            return Ok(Tried::Again);
        }
        if let Some(why) = self.room.filled(&seen.observation.etcd, self.own) {
            let (least, since) = state.in_use.unwrap_or((u64::MAX, Duration::ZERO));
            let shrinks = own.database.in_use < least;
            let since = if shrinks { self.clock.boottime() } else { since };
            state.in_use = Some((least.min(own.database.in_use), since));
            // Pages that etcd has freed count as in use until the next write, which may never come (`server/storage/backend/backend.go`, begin;
            // bbolt's pending pages). Whether anything is to be had is then told by a copy alone.
            let may_shrink = self.clock.boottime().saturating_sub(since) < self.patience();
            if may_shrink || state.asked > 0 {
                let reason = Reason::new(Code::DatabaseNearlyFull, format!("{name}: {why}"));
                return Ok(Tried::NotNow(NotNow::Filled(reason)));
            }
            self.say(&format!("{name}: {why}; a copy shows whether that is so"));
        }
        match way {
            Way::HandOver(..) if state.moved == TIMES => {
                let text = format!("{name} leads again, {TIMES} times");
                Ok(Tried::NotNow(NotNow::Stays(text)))
            }
            Way::HandOver(to, permit) => {
                self.announce(Step::HandOver, own.database, state)?;
                let begun = permit.begin();
                self.say(&format!("{name} leads: leadership goes to member {to}"));
                tracing::info!(disruption = %begun.disruption(), "Moving leadership");
                state.moved += 1;
                match change::make(&self.sources.etcd, member, &Change::MoveLeader(to), connecting * 3).await {
                    Ok(()) => Ok(Tried::Again),
                    Err(why) => Ok(Tried::NotNow(NotNow::Passing(format!("leadership: {why}")))),
                }
            }
            Way::Defragment(_) if state.asked == TIMES => {
                let text = format!("{name}: its database is as it was, {TIMES} times");
                Ok(Tried::Stop(Report::new(Outcome::Failed, text, &[]).on(&seen.observation)))
            }
            Way::Defragment(permit) => self.defragment(member, permit, own.database, state).await,
        }
    }

    /// Asks the member of this host, and waits until it serves again.
    async fn defragment(
        &self,
        member: &Member,
        permit: Permit,
        database: Database,
        state: &mut State,
    ) -> anyhow::Result<Tried> {
        let name = called(member);
        self.announce(Step::Defragment, database, state)?;
        let (size, in_use) = (mebibytes(database.size), mebibytes(database.in_use));
        self.say(&format!("permitted: {name}, {in_use} of {size} in use, {} more may fail then", permit.margin()));
        let begun = permit.begin();
        tracing::info!(disruption = %begun.disruption(), "Defragmenting");
        state.open = true;
        let heard = defragment(&self.sources.etcd, member, &begun, self.config.times.answer.get(), LISTEN).await;
        match heard {
            Heard::Done => {}
            Heard::NotAsked(why) => {
                state.open = false;
                return Ok(Tried::NotNow(NotNow::Passing(format!("{name} was not asked: {why}"))));
            }
            Heard::Other(why) | Heard::Silent(why) => {
                self.say(&format!("{name}: {why}; that is no end: waiting for the member itself"));
            }
        }
        if let Some(away) = self.serves(database, state).await {
            return Ok(Tried::Stop(away));
        }
        state.before = state.before.or(Some(database));
        state.asked += 1;
        Ok(Tried::Again)
    }

    /// What the rule permits of the member of this host, which hands over first if it leads.
    fn way(&self, seen: &Seen, own: Own) -> Result<Way, Vec<Reason>> {
        let Seen { observation, in_flight } = seen;
        let verdict = judge(observation, in_flight, &Disruption::Defragment(self.own), &self.policy);
        let reasons = match verdict {
            Verdict::Permitted(permit) => return Ok(Way::Defragment(permit)),
            verdict => verdict.reasons().to_vec(),
        };
        if !own.leads || reasons.iter().any(|reason| reason.code != Code::TargetLeads) {
            return Err(reasons);
        }
        let mut policy = self.policy.clone();
        policy.lifted.extend(defrag::policy_of_hand_over(self.config).lifted);
        let mut refused = Vec::new();
        for to in defrag::successors(observation, self.own, &self.config.defrag) {
            match judge(observation, in_flight, &Disruption::MoveLeader(to), &policy) {
                Verdict::Permitted(permit) => return Ok(Way::HandOver(to, permit)),
                verdict => refused.extend(verdict.reasons().iter().cloned()),
            }
        }
        refused.sort();
        refused.dedup();
        Err(if refused.is_empty() { reasons } else { refused })
    }

    /// Records the override, once, and marks the step: both are on the disk before anything is done.
    fn announce(&self, step: Step, database: Database, state: &mut State) -> anyhow::Result<()> {
        if !state.recorded {
            record(self.state, COMMAND, self.because, &self.policy.lifted, self.clock)?;
            state.recorded = true;
        }
        Begun { step, member: self.own, database }.write(self.state)?;
        let number = Step::ALL.iter().take_while(|other| **other <= step).count();
        self.say(&format!("{number}/{} {}", Step::ALL.len(), step.title()));
        Ok(())
    }

    /// Disarms the alarm of these members, since every one has room; or why not now.
    async fn disarm(&self, seen: &Seen, whom: &[MemberId], state: &mut State) -> anyhow::Result<Option<NotNow>> {
        if let Some(lacks) = self.lack(seen) {
            return Ok(Some(NotNow::Passing(lacks)));
        }
        let etcd = &seen.observation.etcd;
        let (Some(list), Some(database)) = (etcd.membership.known(), defrag::database(etcd, self.own).known().copied())
        else {
            return Ok(Some(NotNow::Passing("the member of this host does not answer".to_owned())));
        };
        let Some(member) = list.get(self.own) else {
            return Ok(Some(NotNow::Stays(format!("member {} is no member any more", self.own))));
        };
        self.announce(Step::Disarm, database, state)?;
        state.touched = true;
        for of in whom {
            match request::disarm(&self.sources.etcd, member, *of, self.config.times.answer.get() * 3).await {
                Heard::Done => self.say(&format!("NOSPACE of member {of} is disarmed")),
                Heard::NotAsked(why) | Heard::Other(why) | Heard::Silent(why) => {
                    return Ok(Some(NotNow::Passing(format!("NOSPACE of member {of} is not disarmed: {why}"))));
                }
            }
        }
        Ok(None)
    }

    /// Looks whether it is over: for as long as recovery has to be stable no alarm comes again, and then every member takes a write.
    async fn settled(&self) -> Report {
        let since = self.clock.boottime();
        let stable = self.config.times.stable.get();
        let mut said = String::new();
        loop {
            tokio::time::sleep(PAUSE).await;
            let seen = self.look().await;
            let etcd = &seen.observation.etcd;
            let waited = self.clock.boottime().saturating_sub(since);
            let told = plan::alarms(etcd);
            if told.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace) {
                let text = format!(
                    "NOSPACE is there again, {} s after it was disarmed: something fills the database; find out what writes, or raise \
                     `--quota-backend-bytes`, before the same command",
                    waited.as_secs()
                );
                return Report::new(Outcome::Midway, text, &[]).on(&seen.observation);
            }
            if let Next::Not(reasons) = plan::next(etcd, self.own, self.room)
                && reasons.iter().any(|reason| reason.code == Code::AlarmActive)
            {
                let text = "NOSPACE is disarmed, and another alarm is active";
                return Report::new(Outcome::Midway, text, &reasons).on(&seen.observation);
            }
            let lacks = self.lack(&seen);
            match (lacks, etcd.membership.known()) {
                (None, Some(list)) if waited >= stable => {
                    for member in list.voters() {
                        match request::write(&self.sources.etcd, member, self.config.times.answer.get()).await {
                            Heard::Done => {}
                            Heard::NotAsked(why) | Heard::Other(why) | Heard::Silent(why) => {
                                let text = format!("NOSPACE is disarmed, and {} takes no write: {why}", called(member));
                                return Report::new(Outcome::Midway, text, &[]).on(&seen.observation);
                            }
                        }
                    }
                    let seconds = stable.as_secs();
                    let text = format!(
                        "NOSPACE is over: no member has had it for {seconds} s, each reads through a majority and takes writes"
                    );
                    return Report::new(Outcome::Ok, text, &[]).on(&seen.observation);
                }
                (Some(lacks), _) if waited >= stable.saturating_add(PASSING) => {
                    let text = format!("NOSPACE is disarmed, but {lacks}");
                    return Report::new(Outcome::Midway, text, &[]).on(&seen.observation);
                }
                (Some(lacks), _) => self.say_once(&format!("waiting: {lacks}"), &mut said),
                (None, _) => self.say_once("looking whether it comes again", &mut said),
            }
        }
    }

    /// What any voter lacks to be one that serves, in words.
    fn lack(&self, seen: &Seen) -> Option<String> {
        let list = match &seen.observation.etcd.membership {
            quorum_safety::Fact::Known(list) => list,
            quorum_safety::Fact::Unknown(why) => return Some(format!("who the members are is not known: {why}")),
        };
        list.voters().find_map(|voter| {
            defrag::lacks(seen, voter.id, &self.policy).map(|lacks| format!("{}: {lacks}", called(voter)))
        })
    }

    /// Another member comes first: what is to be typed, and where.
    fn elsewhere(&self, seen: &Seen, other: MemberId, state: &State) -> Report {
        let etcd = &seen.observation.etcd;
        let member = etcd.membership.known().and_then(|list| list.get(other));
        let name = member.map_or_else(|| format!("member {other}"), called);
        let at = member.and_then(address).map_or_else(String::new, |address| format!(" ({address})"));
        let next = format!("next, on the node of {name}{at}, as root: `{COMMAND} --because …`");
        let now = defrag::database(etcd, self.own);
        let (outcome, text) = match (state.before, now.known()) {
            (Some(before), Some(now)) => {
                let text = format!(
                    "the member of this host: {} before, {} now; the alarm stays until every member has room",
                    mebibytes(before.size),
                    mebibytes(now.size)
                );
                (Outcome::Midway, text)
            }
            _ if state.touched => (Outcome::Midway, format!("{name} comes first")),
            _ => (Outcome::Held, format!("{name} comes first; nothing was changed")),
        };
        Report::with_blockers(outcome, text, &[], &[next]).on(&seen.observation)
    }

    /// Waits until the member of this host serves again, by what it says itself; else how it ends.
    async fn serves(&self, database: Database, state: &mut State) -> Option<Report> {
        let since = self.clock.boottime();
        let deadline = defrag::deadline(database.size, &self.config.defrag);
        let mut said = String::new();
        loop {
            let seen = self.look().await;
            let Some(lacks) = defrag::lacks(&seen, self.own, &self.policy) else {
                state.open = false;
                return None;
            };
            if self.clock.boottime().saturating_sub(since) >= deadline {
                let seconds = deadline.as_secs();
                let text = format!("the member of this host does not serve again in {seconds} s: {lacks}");
                return Some(Report::new(Outcome::Midway, text, &[]).on(&seen.observation));
            }
            self.say_once(&format!("waiting for the member of this host to serve again: {lacks}"), &mut said);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits a moment when another look is worth it, and says why; else how it ends.
    async fn another_look(
        &self,
        not_now: &NotNow,
        since: Duration,
        said: &mut String,
        seen: &Seen,
        state: &State,
    ) -> Option<Report> {
        let now = self.clock.boottime();
        let (patient, text) = match not_now {
            NotNow::Rule(reasons) => {
                let lines: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                // An alarm of another kind does not pass.
                let alarm = reasons.iter().any(|reason| reason.code == Code::AlarmActive);
                (passes(reasons) && !alarm, lines.join("; "))
            }
            NotNow::Passing(why) => (true, why.clone()),
            NotNow::Stays(why) => (false, why.clone()),
            NotNow::Filled(reason) => {
                let (_, last) = state.in_use.unwrap_or((0, since));
                (now.saturating_sub(last) < self.patience(), reason.to_string())
            }
        };
        let waits = matches!(not_now, NotNow::Filled(_)) || now.saturating_sub(since) < PASSING.min(self.wait);
        if patient && waits {
            self.say_once(&format!("not now: {text}"), said);
            tokio::time::sleep(PAUSE).await;
            return None;
        }
        let done = if state.touched { "" } else { "; nothing was changed" };
        let (mut outcome, reasons, blockers, summary) = match not_now {
            NotNow::Rule(reasons) => {
                let summary = format!("NOSPACE is not cured now{done}");
                (Outcome::of_reasons(reasons), reasons.clone(), self.ways(reasons), summary)
            }
            NotNow::Passing(_) | NotNow::Stays(_) => {
                (Outcome::Held, Vec::new(), vec![text], format!("NOSPACE is not cured now{done}"))
            }
            NotNow::Filled(reason) => {
                let summary = "a defragmentation gives no room: what is in use fills the database. Delete what fills it (a deletion \
                     needs no room), or raise `--quota-backend-bytes` of every member; nothing but older revisions went";
                (Outcome::Held, vec![reason.clone()], Vec::new(), summary.to_owned())
            }
        };
        if state.before.is_some() && !matches!(not_now, NotNow::Filled(_)) {
            outcome = Outcome::Midway;
        }
        Some(Report::with_blockers(outcome, summary, &reasons, &blockers).on(&seen.observation))
    }

    /// How long what is in use is looked at, before a copy is made of it, or given up.
    fn patience(&self) -> Duration {
        SHRINKS.min(self.wait)
    }

    /// What may be done where a holder cannot give its Lease back.
    fn ways(&self, reasons: &[Reason]) -> Vec<String> {
        let held = reasons.iter().any(|reason| reason.code == Code::LeaseHeld);
        let (namespace, lease) = (self.namespace, lock::CONTROL_PLANE);
        let way = format!(
            "no Lease can be given back either; once it is certain that its holder does nothing any more: `kubectl delete lease -n \
             {namespace} {lease}`, since a deletion needs no room"
        );
        held.then_some(way).into_iter().collect()
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
