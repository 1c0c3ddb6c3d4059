//! What may happen next, and what comes of it.

use crate::defect::Defect;
use crate::eyes::{seconds, timings};
use crate::world::{
    Kind, KuredLock, KuredPod, LEASE, Life, MARGIN, Phase, Pod, REQUEST, Role, Scenario, State, Step, Unit,
};
use quorum_safety::lock::Held;

/// One thing that happens. Numbers are of actors, or of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// Time passes.
    Tick,
    /// Time passes, and this actor's clock does not notice.
    TickMissedBy(usize),
    /// The actor looks at the Lease and its holder, and decides.
    Read(usize),
    /// It does what it has decided.
    Write(usize),
    /// The same, and no answer comes.
    WriteUnanswered(usize),
    /// It renews the Lease.
    Renew(usize),
    /// It asks for kured's lock.
    TakeKured(usize),
    /// It looks at machines and members; the rest it sees later.
    LooksAtMembers(usize),
    /// It looks at the objects of the API and the hosts; the rest it sees later.
    LooksAtObjects(usize),
    /// It looks at the Lease, its holder's pod and the target's host; that pod's node it sees later.
    LooksAtHolder(usize),
    /// It looks at everything and asks the rule.
    Judge(usize),
    /// The same, for taking away again what it has added.
    JudgeUndoing(usize),
    /// It announces in the Lease what it does next.
    Announce(usize),
    /// It sends the request that takes the target down.
    Send(usize),
    /// That request has its effect.
    Lands(usize),
    /// It gives everything back: done, or undone.
    GiveBack(usize),
    /// It finds itself late or without the Lease, and ends.
    Stop(usize),
    /// The sentinel looks at everything, and knows what to do next.
    Looks(usize),
    /// The same, and kured had its time.
    LosesPatience(usize),
    /// It does that.
    Does(usize),
    /// Its process is started again, or its next pod.
    Restart(usize),
    /// The step on the node stops its member.
    UnitStopsMember(usize),
    /// The step on the node is over.
    UnitEnds(usize),
    /// The member of the node has caught up.
    CatchesUp(usize),
    /// The member that was added to the node starts for the first time.
    MemberStarts(usize),
    /// The process is killed.
    Kill(usize),
    /// The kubelet has seen a process end, and says so.
    ReportEnd(usize),
    /// The process stops for a while.
    Pause(usize),
    /// It goes on.
    Resume(usize),
    /// Its pod is deleted by force; the process lives.
    DeletePod(usize),
    /// The node controller gives the pod up: its node is not reached.
    GiveUpPod(usize),
    /// The node loses power.
    PowerCut(usize),
    /// It comes back.
    PowerOn(usize),
    /// Nobody reaches the node.
    CutOff(usize),
    /// It is reached again.
    Reconnect(usize),
    /// An administrator cordons the node.
    Cordon(usize),
    /// And uncordons it, or one that is ours.
    Uncordon(usize),
    /// And drains it: pods of ours on it are evicted.
    Drain(usize),
    /// A hand looks at the Lease.
    HandLooks,
    /// And records a release.
    HandReleases,
    /// kured on the node sees its file.
    KuredLooks(usize),
    /// It asks for its lock.
    KuredTakes(usize),
    /// It cordons the node, and begins to drain it.
    KuredCordons(usize),
    /// It gives the drain up.
    KuredAborts(usize),
    /// It reboots the node.
    KuredReboots(usize),
    /// The node is back.
    KuredReturns(usize),
    /// The pod of kured begins, uncordons and releases.
    KuredStarts(usize),
    /// A snapshot is taken.
    Snapshot,
    /// etcd's data is lost.
    DataLost,
    /// It is restored from the snapshot.
    Restore,
    /// An administrator has looked, and lifts the kill switch.
    LiftKillSwitch,
}

/// A move of one actor.
pub(crate) type OfActor = fn(usize) -> Move;

const ACTS: [OfActor; 9] = [
    Move::Stop,
    Move::Write,
    Move::TakeKured,
    Move::Judge,
    Move::Announce,
    Move::Send,
    Move::Lands,
    Move::GiveBack,
    // Of a change of members only.
    Move::JudgeUndoing,
];
const WAITS: &[OfActor] = &[Move::Renew, Move::Read];

impl Scenario {
    /// Everything that may be tried; what has no effect leads nowhere. What has no budget is left out here already: trying costs time.
    pub(crate) fn moves(&self, state: &State, moves: &mut Vec<Move>) {
        let left = &state.left;
        moves.push(Move::Tick);
        let mut may = |budget: u8, these: &[Move]| {
            if budget > 0 {
                moves.extend(these);
            }
        };
        for actor in 0..self.actors.len() {
            for one in self.of_actor(actor).into_iter().flatten() {
                may(1, &[one(actor)]);
            }
            may(1, &[Move::ReportEnd(actor), Move::Resume(actor)]);
            let torn = [Move::LooksAtMembers(actor), Move::LooksAtObjects(actor), Move::LooksAtHolder(actor)];
            may(u8::from(self.torn), &torn);
            may(left.lost_answers, &[Move::WriteUnanswered(actor)]);
            may(left.drifts, &[Move::TickMissedBy(actor)]);
            may(left.kills + u8::from(state.lives[actor].pod == Pod::Evicted), &[Move::Kill(actor)]);
            may(left.pauses, &[Move::Pause(actor)]);
            may(left.deletions, &[Move::DeletePod(actor), Move::GiveUpPod(actor)]);
        }
        for (at, node) in state.nodes.iter().enumerate() {
            may(1, &[Move::UnitStopsMember(at), Move::UnitEnds(at), Move::CatchesUp(at), Move::MemberStarts(at)]);
            may(1, &[Move::PowerOn(at), Move::Reconnect(at), Move::Uncordon(at)]);
            may(left.power_cuts, &[Move::PowerCut(at)]);
            may(left.partitions, &[Move::CutOff(at)]);
            may(left.cordons, &[Move::Cordon(at)]);
            may(left.drains, &[Move::Drain(at)]);
            let kured = u8::from(self.budget.kured > 0 || node.file || node.kured != KuredPod::Idle);
            may(kured, &[Move::KuredLooks(at), Move::KuredTakes(at), Move::KuredCordons(at), Move::KuredAborts(at)]);
            may(1, &[Move::KuredReboots(at), Move::KuredReturns(at), Move::KuredStarts(at)]);
        }
        may(left.releases, &[Move::HandLooks, Move::HandReleases]);
        may(self.budget.restores, &[Move::Snapshot, Move::DataLost, Move::Restore, Move::LiftKillSwitch]);
    }

    /// What an actor does by itself, in the order in which it would, and how it waits.
    pub(crate) fn of_actor(&self, actor: usize) -> [&'static [OfActor]; 2] {
        match self.actors[actor].kind {
            Kind::Sentinel => [
                &[Move::Restart, Move::Stop, Move::Write, Move::Looks, Move::Does, Move::Lands],
                &[Move::LosesPatience, Move::Renew, Move::Read],
            ],
            Kind::Upgrade | Kind::Reboot | Kind::Defragment => [&ACTS[..ACTS.len() - 1], WAITS],
            Kind::Members(_) => [&ACTS, WAITS],
        }
    }

    /// What comes of a move; none when it cannot happen.
    pub(crate) fn after(&self, state: &State, taken: Move) -> Option<State> {
        let mut next = *state;
        match taken {
            Move::Tick => tick(&mut next, None),
            Move::TickMissedBy(actor) => {
                let holds = next.lives[actor].left.is_some_and(|left| left > 0);
                if !holds || next.lives[actor].drifted {
                    return None;
                }
                spend(&mut next.left.drifts)?;
                next.lives[actor].drifted = true;
                tick(&mut next, Some(actor));
            }
            Move::Read(actor) => self.read(&mut next, actor)?,
            Move::Write(actor) => self.write(&mut next, actor)?,
            Move::WriteUnanswered(actor) => {
                spend(&mut next.left.lost_answers)?;
                self.write(&mut next, actor)?;
                let life = &mut next.lives[actor];
                (life.phase, life.left) = (Phase::Idle, None);
            }
            Move::Renew(actor) => self.renew(&mut next, actor)?,
            Move::TakeKured(actor) => self.take_kured(&mut next, actor)?,
            Move::LooksAtMembers(actor) => self.looks_at_members(&mut next, actor)?,
            Move::LooksAtObjects(actor) => self.looks_at_objects(&mut next, actor)?,
            Move::LooksAtHolder(actor) => self.looks_at_holder(&mut next, actor)?,
            Move::Judge(actor) => self.judge(&mut next, actor)?,
            Move::JudgeUndoing(actor) => self.judge_change(&mut next, actor, true)?,
            Move::Announce(actor) => self.announce(&mut next, actor)?,
            Move::Send(actor) => self.send(&mut next, actor)?,
            Move::Lands(actor) => self.lands(&mut next, actor)?,
            Move::GiveBack(actor) => self.give_back(&mut next, actor)?,
            Move::Stop(actor) => self.stop(&mut next, actor)?,
            Move::Looks(actor) => self.looks(&mut next, actor, false)?,
            Move::LosesPatience(actor) => self.looks(&mut next, actor, true)?,
            Move::Does(actor) => self.does(&mut next, actor)?,
            Move::Restart(actor) => self.restart(&mut next, actor)?,
            Move::UnitStopsMember(node) => {
                next.nodes.get_mut(node).filter(|node| node.unit == Unit::Quiet)?.unit = Unit::Down;
                next.wrong.two_down |= takes_a_second(&next, node);
            }
            Move::UnitEnds(node) => {
                let node = next.nodes.get_mut(node).filter(|node| node.unit == Unit::Down)?;
                (node.unit, node.behind) = (Unit::None, true);
            }
            Move::CatchesUp(node) => {
                next.nodes.get_mut(node).filter(|node| node.behind && node.is_reached())?.behind = false;
            }
            Move::MemberStarts(node) => Self::member_starts(&mut next, node)?,
            Move::HandLooks => {
                let looks = next.left.releases > 0 && next.lease.is_some() && next.hand.is_none() && next.api();
                looks.then(|| next.hand = Some(0))?;
            }
            Move::HandReleases => {
                next.hand.filter(|_| next.api())?;
                let stopped = self.by_hand(&next, false)?.1;
                spend(&mut next.left.releases)?;
                next.lease.as_mut()?.released = Some(stopped);
                next.lease_written();
            }
            Move::Kill(_)
            | Move::ReportEnd(_)
            | Move::Pause(_)
            | Move::Resume(_)
            | Move::DeletePod(_)
            | Move::GiveUpPod(_)
            | Move::PowerCut(_)
            | Move::PowerOn(_)
            | Move::CutOff(_)
            | Move::Reconnect(_)
            | Move::Cordon(_)
            | Move::Uncordon(_)
            | Move::Drain(_) => self.befalls(&mut next, taken)?,
            Move::KuredLooks(at) => self.kured_looks(&mut next, at)?,
            Move::KuredTakes(at) => self.kured_takes(&mut next, at)?,
            Move::KuredCordons(at) => self.kured_cordons(&mut next, at)?,
            Move::KuredAborts(at) => self.kured_aborts(&mut next, at)?,
            Move::KuredReboots(at) => self.kured_reboots(&mut next, at)?,
            Move::KuredReturns(at) => self.kured_returns(&mut next, at)?,
            Move::KuredStarts(at) => self.kured_starts(&mut next, at)?,
            Move::Snapshot => Self::takes_snapshot(&mut next)?,
            Move::DataLost => Self::loses_data(&mut next)?,
            Move::Restore => self.restores(&mut next)?,
            Move::LiftKillSwitch => next.kill_switch.then(|| next.kill_switch = false)?,
        }
        Some(next)
    }

    pub(crate) fn runs(&self, state: &State, actor: usize) -> bool {
        let life = &state.lives[actor];
        life.process && !life.paused && state.nodes[self.actors[actor].runner].powered
    }

    pub(crate) fn connected(&self, state: &State, actor: usize) -> bool {
        self.runs(state, actor) && state.nodes[self.actors[actor].runner].is_reached() && state.api()
    }

    /// Whether it holds the Lease, as far as it can know: it is not late, and nobody told it to stop.
    pub(crate) fn holds(&self, state: &State, actor: usize) -> bool {
        let named = state.lease.filter(|holder| holder.actor == actor);
        state.lives[actor].left.is_some_and(|left| left > 0) && named.is_some_and(|holder| holder.released.is_none())
    }

    fn judge(&self, next: &mut State, actor: usize) -> Option<()> {
        if matches!(self.actors[actor].kind, Kind::Members(_)) {
            return self.judge_change(next, actor, false);
        }
        let Life { phase, adopted, .. } = next.lives[actor];
        let looks = matches!(phase, Phase::Locked | Phase::Drained) && self.may_see(next, actor);
        if !looks || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        let target = self.actors[actor].target;
        // A step that runs on the host is followed.
        let at_work = self.sees_at_work(next, actor) && !self.is(Defect::HostNotLookedAt);
        if adopted && at_work && next.nodes[target].is_reached() {
            let life = &mut next.lives[actor];
            (life.phase, life.glimpse) = (Phase::Sent, None);
            return Some(());
        }
        let (down, odd) = self.sees_beside(next, actor);
        if !self.is(Defect::JudgedBeforeTheLease) && !self.permits(next, actor, adopted) {
            return None;
        }
        let life = &mut next.lives[actor];
        (life.saw_down, life.saw_odd, life.glimpse) = (down, odd, None);
        life.phase = if phase == Phase::Locked && !adopted { Phase::MayDrain } else { Phase::MayStep };
        Some(())
    }

    fn announce(&self, next: &mut State, actor: usize) -> Option<()> {
        let (step, phase) = match next.lives[actor].phase {
            Phase::MayDrain if self.actors[actor].kind == Kind::Defragment => (Step::Drain, Phase::Drained),
            Phase::MayDrain => (Step::Drain, Phase::Cordoning),
            Phase::MayStep => (Step::AtWork, Phase::Announced),
            _ => return None,
        };
        if !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        next.lease.as_mut()?.step = step;
        next.begun |= self.bit(actor);
        next.lease_written();
        next.lives[actor].phase = phase;
        Some(())
    }

    fn send(&self, next: &mut State, actor: usize) -> Option<()> {
        let life = &next.lives[actor];
        let sends = matches!(life.phase, Phase::Announced | Phase::Cordoning) && life.under_way == 0;
        if !sends || !self.connected(next, actor) {
            return None;
        }
        if !self.may_act(next, actor) && !self.is(Defect::DeadlineNotAsked) {
            return None;
        }
        let life = &mut next.lives[actor];
        life.under_way = REQUEST;
        life.cordons = life.phase == Phase::Cordoning;
        if life.phase == Phase::Announced {
            life.phase = Phase::Sent;
        }
        Some(())
    }

    /// Whether the holder itself finds that a request would end before it is late, by its own clock.
    pub(crate) fn may_act(&self, state: &State, actor: usize) -> bool {
        let Some(left) = state.lives[actor].left else { return false };
        let now = seconds(100);
        let sent = now.saturating_add(seconds(left)).saturating_sub(timings(self).lease);
        Held::since(sent, timings(self)).may_act(now, seconds(REQUEST)).is_ok()
    }

    fn lands(&self, next: &mut State, actor: usize) -> Option<()> {
        let target = self.actors[actor].target;
        if next.lives[actor].under_way == 0 {
            return None;
        }
        next.lives[actor].under_way = 0;
        if self.is_sentinel(actor) {
            self.file_lands(next, actor);
            return Some(());
        }
        // Nothing comes of what was sent to an API that has lost everything.
        if next.lost.is_some() {
            return Some(());
        }
        if next.lives[actor].cordons {
            return self.cordon_lands(next, actor);
        }
        if let Some(change) = next.lives[actor].change {
            return self.change_lands(next, actor, change);
        }
        // A Job is there; nothing comes of it where no kubelet hears of it.
        if !next.nodes[target].is_reached() {
            return Some(());
        }
        if next.nodes[target].unit == Unit::None {
            next.nodes[target].unit = Unit::Quiet;
        }
        let Life { saw_down, saw_odd, adopted, .. } = next.lives[actor];
        next.wrong.below_quorum |= !next.is_quorate_without(target, saw_down);
        next.wrong.not_whole |= saw_odd && !adopted;
        Some(())
    }

    /// The API takes it, whatever the node does.
    fn cordon_lands(&self, next: &mut State, actor: usize) -> Option<()> {
        let target = next.nodes.get_mut(self.actors[actor].target)?;
        target.cordons = self.cordoned(target.cordons);
        next.wrong.uncovered |= !self.is_covered(next, actor);
        if next.lives[actor].phase == Phase::Cordoning {
            next.lives[actor].phase = Phase::Drained;
        }
        Some(())
    }

    /// Whether the Lease is held for what this actor does, by whomever.
    pub(crate) fn is_covered(&self, state: &State, actor: usize) -> bool {
        let own = self.actors[actor].operation();
        state.lease.is_some_and(|holder| self.actors[holder.actor].operation() == own)
    }

    fn give_back(&self, next: &mut State, actor: usize) -> Option<()> {
        if !self.connected(next, actor) || !self.holds(next, actor) || !self.may_see(next, actor) {
            return None;
        }
        let wants = self.actors[actor];
        let target = next.nodes[wants.target];
        let seen_well = self.sees(next, actor)[wants.target].well;
        let step = next.lease?.step;
        let refused = || !self.permits(next, actor, next.lives[actor].adopted);
        let done = match next.lives[actor].phase {
            phase if matches!(wants.kind, Kind::Members(_)) => self.change_is_over(next, actor, phase)?,
            // Recovered, and nothing of it can come any more.
            Phase::Sent => {
                let at_work = self.sees_at_work(next, actor) && !self.is(Defect::HostNotLookedAt);
                let over = !at_work && next.lives[actor].under_way == 0;
                let well = seen_well || (self.is(Defect::GivenBackOnReady) && target.is_reached());
                (over && well).then_some(true)?
            }
            // Not permitted, and nothing is down: undone.
            Phase::Locked if step != Step::AtWork && refused() => false,
            Phase::Drained | Phase::Cordoning if next.lives[actor].under_way == 0 && refused() => false,
            _ => return None,
        };
        let gone = target.role == Role::None;
        // What it has not seen it could not know, but for its own step.
        let unwell = target.unit != Unit::None || !(seen_well || target.is_well()) || target.is_joining();
        next.wrong.given_back_unwell |= done && !gone && unwell;
        let (uncordoned, lifted) = self.uncordoned(target.cordons);
        next.nodes.get_mut(wants.target)?.cordons = uncordoned;
        next.wrong.lifted |= lifted;
        if matches!(next.kured, KuredLock::Ours(_)) {
            next.kured = KuredLock::Free;
        }
        next.lease = None;
        next.begun &= !self.bit(actor);
        next.lease_written();
        next.done |= done;
        Self::end(next, actor);
        Some(())
    }

    fn stop(&self, next: &mut State, actor: usize) -> Option<()> {
        let life = &next.lives[actor];
        let late = life.left == Some(0);
        let lost = life.left.is_some() && self.connected(next, actor) && !self.holds(next, actor);
        (self.runs(next, actor) && (late || lost)).then_some(())?;
        if self.is_sentinel(actor) {
            // It goes on as one that does not hold the Lease.
            let life = &mut next.lives[actor];
            (life.phase, life.left, life.drifted) = (Phase::Idle, None, false);
        } else {
            Self::end(next, actor);
        }
        Some(())
    }

    /// The process ends. What it has sent may still have its effect.
    pub(crate) fn end(next: &mut State, actor: usize) {
        let life = &mut next.lives[actor];
        life.process = false;
        life.paused = false;
        life.phase = Phase::Over;
        life.left = None;
        life.drifted = false;
        life.fresh = false;
        life.sighted = None;
        life.glimpse = None;
        life.told = None;
    }
}

/// One of what may happen only so often.
pub(crate) fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

pub(crate) fn takes_a_second(state: &State, node: usize) -> bool {
    state.nodes.iter().enumerate().any(|(at, other)| at != node && (other.unit == Unit::Down || other.rebooting))
}

pub(crate) fn tick(next: &mut State, misses: Option<usize>) {
    let longest = LEASE + MARGIN;
    let older = |age: u8| age.saturating_add(1).min(longest);
    for (actor, life) in next.lives.iter_mut().enumerate() {
        if misses != Some(actor) {
            life.left = life.left.map(|left| left.saturating_sub(1));
            life.under_way = life.under_way.saturating_sub(1);
            life.sighted = life.sighted.map(older);
        }
    }
    next.hand = next.hand.map(older);
    next.lost = next.lost.map(older);
}
