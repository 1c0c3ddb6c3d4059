//! Reboot sentinels and kured's pods as they act on the machines: what [`quorum_safety::sentinel`] decides, done step by step.

use crate::defect::Defect;
use crate::moves::{spend, takes_a_second};
use crate::world::{Kind, KuredLock, KuredPod, Life, Phase, Pod, REQUEST, Role, Scenario, State, Step};
use quorum_safety::sentinel::{self, Act, Lease, Lock, Seen, next};

impl Scenario {
    pub(crate) fn is_sentinel(&self, actor: usize) -> bool {
        self.actors[actor].kind == Kind::Sentinel
    }

    /// Whether the Lease names a sentinel of this node.
    fn names_sentinel_of(&self, state: &State, node: usize) -> Option<Step> {
        let holder = state.lease.filter(|holder| self.actors[holder.actor].operation() == (Kind::Sentinel, node))?;
        Some(holder.step)
    }

    /// Whether a sentinel asks for the Lease at all: its own node's business, and no file lies about.
    pub(crate) fn sentinel_asks(&self, state: &State, actor: usize) -> bool {
        let at = self.actors[actor].target;
        let node = state.nodes[at];
        let named = self.names_sentinel_of(state, at).is_some();
        let wants = node.pending && !state.lives[actor].rests;
        (wants || named) && (!node.file || self.is(Defect::FileOfTheDeadIsNotLookedFor))
    }

    /// What a sentinel holds the Lease as, once it has written it.
    pub(crate) fn sentinel_holds(&self, state: &mut State, actor: usize, was: Option<(Step, u8)>) {
        let boot = state.nodes[self.actors[actor].runner].boot;
        let step = match was {
            // Between these two boots kured, or a power cut, has done what the file was there for.
            Some((Step::Open, of)) if of != boot => Step::Recover,
            Some((step, _)) => step,
            None => Step::Acquired,
        };
        if let Some(holder) = &mut state.lease {
            holder.step = step;
        }
        let life = &mut state.lives[actor];
        life.gives_up = life.rests;
        // An earlier process may have made a file. After a boot none of kured's pods is of before.
        life.owes_end = step == Step::Open;
    }

    fn seen(&self, state: &State, actor: usize, waited: bool) -> Seen {
        let at = self.actors[actor].target;
        let (node, life) = (state.nodes[at], &state.lives[actor]);
        let held = self.holds(state, actor) && life.left.is_some();
        let lease = match self.names_sentinel_of(state, at) {
            _ if !self.connected(state, actor) => Lease::Unknown,
            Some(step) if held => Lease::Held(announced(step)),
            Some(_) => Lease::Ours,
            None => Lease::NotOurs,
        };
        let kured = match self.sees_kured(state, actor) {
            KuredLock::Free => Lock::Free,
            KuredLock::Node(of) if of == at && node.kured == KuredPod::Starts => Lock::Returning,
            KuredLock::Node(of) if of == at => Lock::Here,
            KuredLock::Node(_) | KuredLock::Ours(_) => Lock::Elsewhere,
        };
        let blind = self.is(Defect::FileOfTheDeadIsNotLookedFor) && (life.adopted || !held);
        let forgets = self.is(Defect::KuredThatHasLookedIsForgotten);
        let ignores = self.is(Defect::VerdictNotWatched) && node.file;
        Seen {
            pending: node.pending,
            file: node.file && !blind,
            lease,
            kured,
            permitted: ignores || (held && lease != Lease::Unknown && self.permits(state, actor, false)),
            waited,
            owes_end: life.owes_end && !forgets,
            gives_up: life.gives_up,
            recovered: node.is_well() || (self.is(Defect::GateGivenBackOnReady) && node.is_reached()),
        }
    }

    /// A sentinel looks at everything, and knows what to do next.
    pub(crate) fn looks(&self, state: &mut State, actor: usize, waited: bool) -> Option<()> {
        let (phase, under_way) = (state.lives[actor].phase, state.lives[actor].under_way);
        let looks = matches!(phase, Phase::Idle | Phase::Decided(_) | Phase::Holding);
        // What it does itself is over before it looks again.
        if !self.is_sentinel(actor) || !looks || under_way > 0 || !self.runs(state, actor) {
            return None;
        }
        // Only with the Lease it looks at more than its own host.
        if matches!(phase, Phase::Holding) && self.connected(state, actor) && !self.may_see(state, actor) {
            return None;
        }
        let seen = self.seen(state, actor, waited);
        let mut act = next(&seen);
        // Its patience ends only if there is something to wait for.
        if waited && (self.is(Defect::SentinelWaitsForEver) || next(&Seen { waited: false, ..seen }) == act) {
            return None;
        }
        let wants = seen.pending && !seen.file && matches!(phase, Phase::Idle);
        if self.is(Defect::FileBeforeTheLease) && wants && act == Act::Wait {
            act = Act::Open;
        }
        if self.is(Defect::FileNotAnnounced) && act == Act::Announce {
            act = Act::Open;
        }
        let (down, odd) = self.sees_beside(state, actor);
        let life = &mut state.lives[actor];
        life.glimpse = None;
        if act == Act::Wait {
            // That it has seen this, and left the file where it is.
            let knows = matches!(seen.lease, Lease::Held(sentinel::Step::Open)) && seen.file && life.saw_down != down;
            knows.then(|| life.saw_down = down)?;
            return Some(());
        }
        life.gives_up |= waited || act == Act::Close;
        (life.saw_down, life.saw_odd) = (down, odd);
        life.phase = Phase::Does(act);
        Some(())
    }

    /// It does that. Everything may have changed since it looked.
    pub(crate) fn does(&self, state: &mut State, actor: usize) -> Option<()> {
        let Phase::Does(act) = state.lives[actor].phase else { return None };
        if !self.runs(state, actor) {
            return None;
        }
        let at = self.actors[actor].target;
        let back = if state.lives[actor].left.is_some() { Phase::Holding } else { Phase::Idle };
        match act {
            Act::Wait => {}
            Act::Close => {
                state.lives[actor].owes_end |= state.nodes[at].file;
                state.nodes[at].file = false;
            }
            Act::Announce => {
                // The resourceVersion of its look is the precondition.
                if !self.connected(state, actor) || !self.holds(state, actor) {
                    state.lives[actor].phase = back;
                    return Some(());
                }
                state.lease.as_mut()?.step = Step::Open;
                state.begun |= self.bit(actor);
                state.lease_written();
            }
            Act::Open => {
                let in_time = self.may_act(state, actor) || self.is(Defect::FileBeforeTheLease);
                if in_time {
                    state.lives[actor].under_way = REQUEST;
                    state.lives[actor].cordons = false;
                }
            }
            Act::EndKured => {
                // It waits until that has happened.
                if !self.connected(state, actor) {
                    return None;
                }
                state.lives[actor].owes_end = false;
                Self::kured_begins(state, at);
            }
            Act::GiveBack => {
                state.lives[actor].phase = back;
                if next(&self.seen(state, actor, false)) != Act::GiveBack {
                    return Some(());
                }
                return self.sentinel_gives_back(state, actor);
            }
        }
        state.lives[actor].phase = back;
        Some(())
    }

    fn sentinel_gives_back(&self, state: &mut State, actor: usize) -> Option<()> {
        let done = state.lease?.step == Step::Recover;
        state.wrong.given_back_unwell |= done && !state.nodes[self.actors[actor].target].is_well();
        state.lease = None;
        state.begun &= !self.bit(actor);
        state.lease_written();
        state.done |= done;
        let life = &mut state.lives[actor];
        *life = Life { pod: life.pod, told: life.told, rests: true, ..Life::new() };
        Some(())
    }

    /// The file is there.
    pub(crate) fn file_lands(&self, state: &mut State, actor: usize) {
        let at = self.actors[actor].target;
        // What is begun once more under a Lease that says so was judged when it was begun.
        state.nodes[at].file = true;
        let Life { saw_down, saw_odd, .. } = state.lives[actor];
        state.lives[actor].owes_end = true;
        state.wrong.below_quorum |= !state.is_quorate_without(at, saw_down);
        state.wrong.not_whole |= saw_odd;
    }

    /// The process of a sentinel is started again, or that of the next pod.
    pub(crate) fn restart(&self, state: &mut State, actor: usize) -> Option<()> {
        let wants = self.actors[actor];
        let life = &state.lives[actor];
        let over = self.is_sentinel(actor) && !life.process && life.under_way == 0;
        let node = state.nodes[wants.runner];
        if !over || !node.powered || node.rebooting {
            return None;
        }
        let earlier = || self.actors.iter().zip(state.lives.iter()).take(actor);
        let is_next = earlier().all(|(other, life)| other.operation() != wants.operation() || life.pod == Pod::Missing);
        match life.pod {
            Pod::Running | Pod::GivenUp => {}
            // Nobody evicts a sentinel.
            Pod::Evicted => return None,
            Pod::NotYet if is_next => {}
            Pod::Ended | Pod::Missing | Pod::NotYet => return None,
        }
        state.lives[actor] = Life::new();
        Some(())
    }

    /// A pod of kured begins on this node: its processes of before have ended.
    pub(crate) fn kured_begins(state: &mut State, node: usize) {
        let names_it = state.kured == KuredLock::Node(node);
        state.nodes[node].kured = if names_it { KuredPod::Starts } else { KuredPod::Idle };
    }

    /// kured looks at its file, once.
    pub(crate) fn kured_looks(&self, state: &mut State, at: usize) -> Option<()> {
        let node = &mut state.nodes[at];
        let sees = node.file && node.powered && !node.rebooting && node.kured == KuredPod::Idle;
        sees.then(|| node.kured = KuredPod::Looked)
    }

    /// It asks for its lock. One that has not looked is one for which nobody keeps a gate: with a gate its file is its only reason.
    pub(crate) fn kured_takes(&self, state: &mut State, at: usize) -> Option<()> {
        let node = state.nodes[at];
        if !node.is_reached() || node.rebooting || !state.api() {
            return None;
        }
        match node.kured {
            KuredPod::Looked => {}
            KuredPod::Idle if state.kured == KuredLock::Free && !self.has_gate(at) => spend(&mut state.left.kured)?,
            KuredPod::Idle | KuredPod::Locked | KuredPod::Drains | KuredPod::Starts => return None,
        }
        if state.kured == KuredLock::Free {
            state.kured = KuredLock::Node(at);
            state.nodes[at].kured = KuredPod::Locked;
        } else {
            // It begins anew, with another look.
            state.nodes[at].kured = KuredPod::Idle;
        }
        Some(())
    }

    /// It cordons, and begins to drain.
    pub(crate) fn kured_cordons(&self, state: &mut State, at: usize) -> Option<()> {
        let gated = self.has_gate(at);
        let api = state.api();
        let node =
            state.nodes.get_mut(at).filter(|node| gated && node.kured == KuredPod::Locked && node.is_reached())?;
        api.then(|| node.kured = KuredPod::Drains)?;
        node.cordons.by_others();
        Some(())
    }

    /// The drain does not end: it releases, and uncordons.
    pub(crate) fn kured_aborts(&self, state: &mut State, at: usize) -> Option<()> {
        if state.nodes[at].kured != KuredPod::Drains || !state.nodes[at].is_reached() || !state.api() {
            return None;
        }
        Self::kured_uncordons(state, at);
        state.nodes[at].kured = KuredPod::Idle;
        Some(())
    }

    /// A new pod finds its own lock: uncordons and releases, whatever etcd does.
    pub(crate) fn kured_starts(&self, state: &mut State, at: usize) -> Option<()> {
        let node = state.nodes[at];
        if node.kured != KuredPod::Starts || !node.is_reached() || node.rebooting || !state.api() {
            return None;
        }
        Self::kured_uncordons(state, at);
        state.nodes[at].kured = KuredPod::Idle;
        Some(())
    }

    fn kured_uncordons(state: &mut State, at: usize) {
        if state.nodes[at].cordons.theirs {
            state.nodes[at].cordons.lifted();
        }
        if state.kured == KuredLock::Node(at) {
            state.kured = KuredLock::Free;
        }
    }

    /// It reboots its node.
    pub(crate) fn kured_reboots(&self, state: &mut State, at: usize) -> Option<()> {
        let node = state.nodes[at];
        let goes = match node.kured {
            KuredPod::Locked => !self.has_gate(at),
            KuredPod::Drains => true,
            KuredPod::Idle | KuredPod::Looked | KuredPod::Starts => false,
        };
        if !goes || !node.is_reached() || node.rebooting {
            return None;
        }
        state.wrong.two_down |= takes_a_second(state, at);
        if self.has_gate(at) {
            let open = self.names_sentinel_of(state, at) == Some(Step::Open);
            state.wrong.uncovered_reboot |= !open;
            // Its sentinel may be dead, or on the way to stop this: it has removed the file. That it knew, and let it be, may not.
            let stays = open && node.file;
            let knew = state.lease.map(|holder| &state.lives[holder.actor]).filter(|life| stays && !life.gives_up);
            state.wrong.below_quorum |= knew.is_some_and(|life| !state.is_quorate_without(at, life.saw_down));
        }
        self.goes_down(state, at);
        state.nodes[at].rebooting = true;
        Some(())
    }

    /// Whether a sentinel decides whether kured reboots this node.
    fn has_gate(&self, at: usize) -> bool {
        self.actors.iter().any(|actor| actor.operation() == (Kind::Sentinel, at))
    }
}

/// A step of the world as the sentinel's own.
fn announced(step: Step) -> sentinel::Step {
    match step {
        Step::Open => sentinel::Step::Open,
        Step::Recover => sentinel::Step::Recover,
        Step::Acquired | Step::Drain | Step::AtWork => sentinel::Step::Acquired,
    }
}

impl State {
    /// Whether the voters that somebody saw well are a majority without this node.
    pub(crate) fn is_quorate_without(&self, at: usize, saw_down: u8) -> bool {
        let others = self.voters() - usize::from(self.nodes[at].role == Role::Voter);
        let remain = others.saturating_sub(saw_down.count_ones() as usize);
        remain > self.voters() / 2
    }
}
