//! What may happen next, and what comes of it.

use crate::defect::Defect;
use crate::eyes::{seconds, timings};
use crate::world::{
    Cordon, Decided, Holder, Kind, KuredLock, LEASE, Life, MARGIN, Phase, Pod, REQUEST, Scenario, State, Step, Unit,
};
use quorum_safety::lock::{Held, KuredStep};

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
    /// It looks at everything and asks the rule.
    Judge(usize),
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
    /// The step on the node stops its member.
    UnitStopsMember(usize),
    /// The step on the node is over.
    UnitEnds(usize),
    /// The member of the node has caught up.
    CatchesUp(usize),
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
    /// And uncordons it.
    Uncordon(usize),
    /// A hand looks at the Lease.
    HandLooks,
    /// And records a release.
    HandReleases,
    /// kured takes its lock for the node.
    KuredTakes(usize),
    /// It reboots it.
    KuredReboots(usize),
    /// The node is back, and kured is done.
    KuredReturns(usize),
}

impl Scenario {
    /// Everything that may be tried; what has no effect leads nowhere.
    pub(crate) fn moves(&self, state: &State) -> Vec<Move> {
        let mut moves = vec![Move::Tick];
        for actor in 0..self.actors.len() {
            moves.extend(Self::of_actor(actor));
            moves.extend([Move::WriteUnanswered(actor), Move::TickMissedBy(actor)]);
            moves.extend([Move::Kill(actor), Move::ReportEnd(actor), Move::Pause(actor), Move::Resume(actor)]);
            moves.extend([Move::DeletePod(actor), Move::GiveUpPod(actor)]);
        }
        for node in 0..state.nodes.len() {
            moves.extend([Move::UnitStopsMember(node), Move::UnitEnds(node), Move::CatchesUp(node)]);
            moves.extend([Move::PowerCut(node), Move::PowerOn(node), Move::CutOff(node), Move::Reconnect(node)]);
            moves.extend([Move::Cordon(node), Move::Uncordon(node)]);
            moves.extend([Move::KuredTakes(node), Move::KuredReboots(node), Move::KuredReturns(node)]);
        }
        moves.extend([Move::HandLooks, Move::HandReleases]);
        moves
    }

    /// What an actor does by itself, in the order in which it would.
    pub(crate) fn of_actor(actor: usize) -> [Move; 10] {
        [
            Move::Stop(actor),
            Move::Write(actor),
            Move::TakeKured(actor),
            Move::Judge(actor),
            Move::Announce(actor),
            Move::Send(actor),
            Move::Lands(actor),
            Move::GiveBack(actor),
            Move::Renew(actor),
            Move::Read(actor),
        ]
    }

    /// What comes of a move; none when it cannot happen.
    pub(crate) fn after(&self, state: &State, taken: Move) -> Option<State> {
        let mut next = state.clone();
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
            Move::Judge(actor) => self.judge(&mut next, actor)?,
            Move::Announce(actor) => self.announce(&mut next, actor)?,
            Move::Send(actor) => self.send(&mut next, actor)?,
            Move::Lands(actor) => self.lands(&mut next, actor)?,
            Move::GiveBack(actor) => self.give_back(&mut next, actor)?,
            Move::Stop(actor) => self.stop(&mut next, actor)?,
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
            Move::HandLooks => {
                let looks = next.left.releases > 0 && next.lease.is_some() && next.hand.is_none() && next.api();
                looks.then(|| next.hand = Some(0))?;
            }
            Move::HandReleases => {
                next.hand.filter(|_| next.api())?;
                let stopped = self.by_hand(&next)?;
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
            | Move::KuredTakes(_)
            | Move::KuredReboots(_)
            | Move::KuredReturns(_) => self.befalls(&mut next, taken)?,
        }
        Some(next)
    }

    fn runs(&self, state: &State, actor: usize) -> bool {
        let life = &state.lives[actor];
        life.process && !life.paused && state.nodes[self.actors[actor].runner].powered
    }

    fn connected(&self, state: &State, actor: usize) -> bool {
        self.runs(state, actor) && state.nodes[self.actors[actor].runner].is_reached() && state.api()
    }

    /// Whether it holds the Lease, as far as it can know: it is not late, and nobody told it to stop.
    fn holds(&self, state: &State, actor: usize) -> bool {
        let named = state.lease.filter(|holder| holder.actor == actor);
        state.lives[actor].left.is_some_and(|left| left > 0) && named.is_some_and(|holder| holder.released.is_none())
    }

    fn read(&self, next: &mut State, actor: usize) -> Option<()> {
        if !self.connected(next, actor) || !matches!(next.lives[actor].phase, Phase::Idle | Phase::Decided(_)) {
            return None;
        }
        next.lives[actor].sighted.get_or_insert(0);
        let permitted = !self.is(Defect::JudgedBeforeTheLease) || self.permits(next, actor, true);
        let decided = self.decided(next, actor).filter(|_| permitted);
        next.lives[actor].phase = decided.map_or(Phase::Idle, Phase::Decided);
        next.lives[actor].fresh = decided.is_some();
        Some(())
    }

    fn write(&self, next: &mut State, actor: usize) -> Option<()> {
        let Phase::Decided(decided) = next.lives[actor].phase else { return None };
        if !self.connected(next, actor) {
            return None;
        }
        if !next.lives[actor].fresh && !self.is(Defect::NoPrecondition) {
            next.lives[actor].phase = Phase::Idle;
            return Some(());
        }
        let step = match decided {
            Decided::Take => Step::Acquired,
            Decided::Adopt(step) => step,
            Decided::Mine => next.lease.map_or(Step::Acquired, |holder| holder.step),
        };
        let boot = next.nodes[self.actors[actor].runner].boot;
        next.lease = Some(Holder { actor, boot, step, released: None });
        next.lease_written();
        let life = &mut next.lives[actor];
        // Its own clock was read before it sent this.
        let late = if self.is(Defect::DeadlineFromTheAnswer) { MARGIN + REQUEST } else { 0 };
        life.left = Some(LEASE + late);
        life.drifted = false;
        life.adopted = step != Step::Acquired;
        life.phase = Phase::Holding;
        next.adopted |= matches!(decided, Decided::Adopt(_));
        Some(())
    }

    fn renew(&self, next: &mut State, actor: usize) -> Option<()> {
        let due = next.lives[actor].left.is_some_and(|left| left < LEASE);
        if !due || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        next.lease_written();
        let life = &mut next.lives[actor];
        (life.left, life.drifted) = (Some(LEASE), false);
        Some(())
    }

    fn take_kured(&self, next: &mut State, actor: usize) -> Option<()> {
        if next.lives[actor].phase != Phase::Holding || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        if self.is(Defect::KuredIgnored) {
            next.lives[actor].phase = Phase::Locked;
            return Some(());
        }
        match self.kured_step(next, actor) {
            KuredStep::Nothing | KuredStep::Mine => next.lives[actor].phase = Phase::Locked,
            KuredStep::Take => {
                next.kured = KuredLock::Ours(actor);
                next.lives[actor].phase = Phase::Locked;
            }
            // Nobody waits for kured with the Lease; but what is half done keeps it.
            KuredStep::GiveLeaseBack(_) if next.lives[actor].adopted => return None,
            KuredStep::GiveLeaseBack(_) => {
                next.lease = None;
                next.lease_written();
                let life = &mut next.lives[actor];
                (life.phase, life.left) = (Phase::Idle, None);
            }
        }
        Some(())
    }

    fn judge(&self, next: &mut State, actor: usize) -> Option<()> {
        let Life { phase, adopted, .. } = next.lives[actor];
        if !matches!(phase, Phase::Locked | Phase::Drained) || !self.connected(next, actor) || !self.holds(next, actor)
        {
            return None;
        }
        let target = self.actors[actor].target;
        // A step that runs on the host is followed.
        let at_work = next.nodes[target].unit != Unit::None && !self.is(Defect::HostNotLookedAt);
        if adopted && at_work && next.nodes[target].is_reached() {
            next.lives[actor].phase = Phase::Sent;
            return Some(());
        }
        let others = || next.nodes.iter().enumerate().filter(|(at, _)| *at != target);
        let down = others().filter(|(_, node)| !node.is_well()).fold(0, |mask, (at, _)| mask | 1 << at);
        let odd = down != 0 || others().any(|(_, node)| node.cordon != Cordon::None);
        if !self.is(Defect::JudgedBeforeTheLease) && !self.permits(next, actor, adopted) {
            return None;
        }
        let life = &mut next.lives[actor];
        (life.saw_down, life.saw_odd) = (down, odd);
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
        // As the holder itself knows it: whether it is late, by its own clock.
        let now = seconds(100);
        let deadline = now.checked_add(seconds(life.left?))?;
        let mut held = Held::since(deadline.checked_sub(timings(self).lease)?, timings(self));
        if held.may_act(now, seconds(REQUEST)).is_err() && !self.is(Defect::DeadlineNotAsked) {
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

    fn lands(&self, next: &mut State, actor: usize) -> Option<()> {
        let target = self.actors[actor].target;
        if next.lives[actor].under_way == 0 {
            return None;
        }
        next.lives[actor].under_way = 0;
        if next.lives[actor].cordons {
            return self.cordon_lands(next, actor);
        }
        // A Job is there; nothing comes of it where no kubelet hears of it.
        if !next.nodes[target].is_reached() {
            return Some(());
        }
        if next.nodes[target].unit == Unit::None {
            next.nodes[target].unit = Unit::Quiet;
        }
        let Life { saw_down, saw_odd, adopted, .. } = next.lives[actor];
        let remain = next.nodes.len() - 1 - saw_down.count_ones() as usize;
        next.wrong.below_quorum |= remain < next.nodes.len() / 2 + 1;
        next.wrong.not_whole |= saw_odd && !adopted;
        Some(())
    }

    /// The API takes it, whatever the node does.
    fn cordon_lands(&self, next: &mut State, actor: usize) -> Option<()> {
        let target = next.nodes.get_mut(self.actors[actor].target)?;
        if target.cordon == Cordon::None {
            target.cordon = Cordon::Ours;
        }
        let own = self.actors[actor].operation();
        next.wrong.uncovered_cordon |= next.lease.is_none_or(|holder| self.actors[holder.actor].operation() != own);
        if next.lives[actor].phase == Phase::Cordoning {
            next.lives[actor].phase = Phase::Drained;
        }
        Some(())
    }

    fn give_back(&self, next: &mut State, actor: usize) -> Option<()> {
        if !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        let wants = self.actors[actor];
        let target = next.nodes[wants.target];
        let step = next.lease?.step;
        let refused = || !self.permits(next, actor, next.lives[actor].adopted);
        let done = match next.lives[actor].phase {
            // Recovered, and nothing of it can come any more.
            Phase::Sent => {
                let at_work = target.unit != Unit::None && !self.is(Defect::HostNotLookedAt);
                let over = !at_work && next.lives[actor].under_way == 0;
                let well = target.is_well() || (self.is(Defect::GivenBackOnReady) && target.is_reached());
                (over && well).then_some(true)?
            }
            // Not permitted, and nothing is down: undone.
            Phase::Locked if step != Step::AtWork && refused() => false,
            Phase::Drained | Phase::Cordoning if next.lives[actor].under_way == 0 && refused() => false,
            _ => return None,
        };
        next.wrong.given_back_unwell |= done && !target.is_well();
        if target.cordon == Cordon::Ours {
            next.nodes.get_mut(wants.target)?.cordon = Cordon::None;
        }
        if matches!(next.kured, KuredLock::Ours(_)) {
            next.kured = KuredLock::Free;
        }
        next.lease = None;
        next.lease_written();
        next.done |= done;
        Self::end(next, actor);
        Some(())
    }

    fn stop(&self, next: &mut State, actor: usize) -> Option<()> {
        let life = &next.lives[actor];
        let late = life.left == Some(0);
        let lost = life.left.is_some() && self.connected(next, actor) && !self.holds(next, actor);
        (self.runs(next, actor) && (late || lost)).then(|| Self::end(next, actor))
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
    }

    fn befalls(&self, next: &mut State, taken: Move) -> Option<()> {
        match taken {
            Move::Kill(actor) if next.lives[actor].process => {
                spend(&mut next.left.kills)?;
                Self::end(next, actor);
            }
            Move::ReportEnd(actor) => {
                let heard = next.nodes[self.actors[actor].runner].is_reached();
                let life = next.lives.get_mut(actor).filter(|life| heard && !life.process && life.under_way == 0)?;
                matches!(life.pod, Pod::Running | Pod::GivenUp).then(|| life.pod = Pod::Ended)?;
            }
            Move::Pause(actor) if next.lives[actor].process && !next.lives[actor].paused => {
                spend(&mut next.left.pauses)?;
                next.lives[actor].paused = true;
            }
            Move::Resume(actor) if next.lives[actor].paused => next.lives[actor].paused = false,
            Move::DeletePod(actor) if next.lives[actor].process && next.lives[actor].pod == Pod::Running => {
                spend(&mut next.left.deletions)?;
                next.lives[actor].pod = Pod::Missing;
            }
            Move::GiveUpPod(actor)
                if next.lives[actor].pod == Pod::Running && !next.nodes[self.actors[actor].runner].is_reached() =>
            {
                spend(&mut next.left.deletions)?;
                next.lives[actor].pod = Pod::GivenUp;
            }
            Move::PowerCut(node) if next.nodes[node].powered && !next.nodes[node].rebooting => {
                spend(&mut next.left.power_cuts)?;
                self.goes_down(next, node);
                next.nodes[node].powered = false;
            }
            Move::PowerOn(node) if !next.nodes[node].powered && self.is_quiet(next, node) => {
                next.nodes[node].powered = true;
                Self::comes_up(next, node);
            }
            Move::CutOff(node) if next.nodes[node].is_reached() => {
                spend(&mut next.left.partitions)?;
                next.nodes[node].cut = true;
            }
            Move::Reconnect(node) if next.nodes[node].cut => {
                next.nodes[node].cut = false;
            }
            Move::Cordon(node) if next.nodes[node].cordon == Cordon::None => {
                spend(&mut next.left.cordons)?;
                next.nodes[node].cordon = Cordon::Foreign;
            }
            Move::Uncordon(node)
                if next.nodes[node].cordon == Cordon::Foreign && next.kured != KuredLock::Node(node) =>
            {
                next.nodes[node].cordon = Cordon::None;
            }
            Move::KuredTakes(node) if next.kured == KuredLock::Free && next.nodes[node].is_reached() && next.api() => {
                spend(&mut next.left.kured)?;
                next.kured = KuredLock::Node(node);
            }
            Move::KuredReboots(node) if next.kured == KuredLock::Node(node) && next.nodes[node].is_reached() => {
                next.wrong.two_down |= takes_a_second(next, node);
                self.goes_down(next, node);
                next.nodes[node].rebooting = true;
            }
            Move::KuredReturns(node) if next.nodes[node].rebooting && self.is_quiet(next, node) => {
                next.nodes[node].rebooting = false;
                Self::comes_up(next, node);
                next.kured = KuredLock::Free;
            }
            _ => return None,
        }
        Some(())
    }

    /// Everything that runs on a machine ends with it.
    fn goes_down(&self, next: &mut State, node: usize) {
        next.nodes[node].unit = Unit::None;
        for (actor, wants) in self.actors.iter().enumerate() {
            if wants.runner == node && next.lives[actor].process {
                Self::end(next, actor);
            }
        }
    }

    fn comes_up(next: &mut State, node: usize) {
        next.nodes[node].boot = next.nodes[node].boot.saturating_add(1);
        next.nodes[node].behind = true;
    }

    /// Whether everything that was sent from a machine has had its effect, or never will.
    fn is_quiet(&self, state: &State, node: usize) -> bool {
        self.actors.iter().zip(&state.lives).all(|(wants, life)| wants.runner != node || life.under_way == 0)
    }
}

/// One of what may happen only so often.
fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

fn takes_a_second(state: &State, node: usize) -> bool {
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
}
