//! What must be possible from every state, tried out: whether everything that is half done can be ended, and whether what is lost can be
//! repaired.

use crate::moves::{Move, tick};
use crate::world::{
    Actor, Budget, Cordons, Kind, KuredLock, KuredPod, LEASE, Life, MARGIN, Phase, Plan, Pod, Role, Scenario, State,
    Unit, Wrong,
};
use ahash::{HashMap, HashSet, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Turns that this may take; in each everybody gets as far as it gets, and then time passes.
const TURNS: usize = 60;
/// Turns in which one of them has a start over the next, where not all may begin at once.
const START: usize = 12;

/// What was found out already: about these moments, by their fingerprints, as stateright knows the states that it has come to.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    tried: HashMap<(Tried, u64), bool>,
    /// Between two turns: once everybody gets turns from here, everything is ended.
    on_the_way: HashSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tried {
    End,
    EndByTheLiving,
    Repair,
}

impl Ends {
    fn known(&self, tried: Tried, state: &State, find_out: impl FnOnce() -> bool) -> bool {
        let key = (tried, fingerprint(state));
        if let Some(known) = self.locked().tried.get(&key) {
            return *known;
        }
        let found = find_out();
        self.locked().tried.insert(key, found);
        found
    }

    fn locked(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fingerprint(state: &State) -> u64 {
    // The same in each run.
    RandomState::with_seeds(1, 2, 3, 4).hash_one(state)
}

impl Scenario {
    /// Nothing befalls anybody any more, whoever lives goes on, and the next run of each operation is started: everything is ended.
    pub(crate) fn ends(&self, state: &State) -> bool {
        let mut calm = *state;
        self.calms_down(&mut calm, true);
        self.ends.known(Tried::End, &calm, || {
            let mut calm = calm;
            let mut scenario = Self { torn: false, ..self.clone() };
            for (run, life) in self.next_runs(&calm) {
                scenario.actors.push(run);
                calm.lives.push(life);
            }
            scenario.runs_to_the_end(&calm)
        })
    }

    /// The next run of each operation, never on its target. A sentinel is started again where it was; its next pod is made once there is none.
    fn next_runs(&self, state: &State) -> Vec<(Actor, Life)> {
        let has_pod = |of: &Actor| {
            let all = self.actors.iter().zip(state.lives.iter());
            all.filter(|(other, _)| other.operation() == of.operation()).any(|(_, life)| life.pod != Pod::Missing)
        };
        let next = |actor: Actor| match actor.kind {
            Kind::Sentinel if has_pod(&actor) => None,
            Kind::Sentinel => Some((actor, Life::not_yet())),
            _ => Some((Actor { runner: (actor.target + 1) % self.nodes(), ..actor }, Life::new())),
        };
        self.operations().into_iter().filter_map(next).collect()
    }

    /// The same with nobody newly started, from where everything that is under way is in the hands of those who live.
    pub(crate) fn the_living_end(&self, state: &State) -> bool {
        let mut calm = *state;
        self.calms_down(&mut calm, true);
        if !self.is_in_living_hands(&calm) {
            return true;
        }
        self.ends.known(Tried::EndByTheLiving, &calm, || {
            let mut calm = calm;
            // None of them has to be late.
            for actor in 0..self.actors.len() {
                self.goes(&mut calm, Move::Renew(actor));
            }
            Self { torn: false, ..self.clone() }.runs_to_the_end(&calm)
        })
    }

    fn is_in_living_hands(&self, state: &State) -> bool {
        // A sentinel that was told to stop comes back as another. Everybody else who was ends, also who does not know that it holds the Lease.
        let told = |actor: usize| state.lease.is_some_and(|holder| holder.actor == actor && holder.released.is_some());
        let goes_on = |actor: usize| {
            let life = &state.lives[actor];
            life.process && (self.is_sentinel(actor) || self.holds(state, actor) || life.left.is_none() && !told(actor))
        };
        let actors = || 0..self.actors.len();
        let is_cared_for = |of: usize| {
            let own = self.actors[of].operation();
            actors().any(|actor| goes_on(actor) && self.actors[actor].operation() == own)
        };
        let kured = |of: usize| state.kured == KuredLock::Ours(of);
        let lease = |of: usize| state.lease.is_some_and(|holder| holder.actor == of);
        let joins = |of: usize| state.nodes[self.actors[of].target].is_joining();
        let under_way = |of: &usize| state.begun & self.bit(*of) != 0 || kured(*of) || lease(*of) || joins(*of);
        actors().filter(under_way).all(is_cared_for)
    }

    /// Machines without power stay so, and all our processes have been killed: as long as there is a majority, the members that are lost are
    /// removed, and so is whoever was on the way in. A hand gives up what was half done, and takes its marks away.
    pub(crate) fn can_be_repaired(&self, state: &State) -> bool {
        if state.nodes.iter().all(|node| node.powered || node.role == Role::None) {
            return true;
        }
        let mut calm = *state;
        self.calms_down(&mut calm, false);
        for (life, actor) in calm.lives.iter_mut().zip(&self.actors) {
            // What has run on a machine without power was seen by nobody to end.
            let reached = calm.nodes[actor.runner].is_reached() && actor.kind != Kind::Sentinel;
            let pod = if reached && life.pod != Pod::Missing { Pod::Ended } else { life.pod };
            *life = Life { process: false, phase: Phase::Over, pod, ..Life::new() };
        }
        self.ends.known(Tried::Repair, &calm, || !calm.api() || self.is_repaired(calm))
    }

    /// Machines run or stay lost, nobody is cut off or stopped, administrators and kured are done.
    fn calms_down(&self, state: &mut State, power_returns: bool) {
        for actor in 0..state.lives.len() {
            state.lives[actor].under_way = 0;
            if state.lives[actor].pod == Pod::Evicted {
                self.goes(state, Move::Kill(actor));
            }
        }
        for node in 0..state.nodes.len() {
            if power_returns {
                self.goes(state, Move::PowerOn(node));
            }
            for back in [Move::Reconnect(node), Move::KuredReturns(node)] {
                self.goes(state, back);
            }
            let node = &mut state.nodes[node];
            node.behind = false;
            if node.cordons.theirs && node.kured == KuredPod::Idle {
                node.cordons.lifted();
            }
            // It may be held up for ever: by an alert, or by its window.
            if node.kured == KuredPod::Looked {
                node.kured = KuredPod::Idle;
            }
        }
        state.lost = state.lost.map(|_| LEASE + MARGIN);
        for over in [Move::Restore, Move::LiftKillSwitch] {
            self.goes(state, over);
        }
        for node in 0..state.nodes.len() {
            for over in [Move::KuredCordons, Move::KuredReboots, Move::KuredReturns, Move::KuredStarts] {
                self.goes(state, over(node));
            }
            state.nodes[node].behind = false;
        }
        for actor in 0..state.lives.len() {
            self.goes(state, Move::ReportEnd(actor));
        }
        // What differs in these has the same future.
        (state.hand, state.snapshot, state.left) = (None, None, Budget::default());
        (state.wrong, state.done, state.adopted) = (Wrong::default(), false, false);
        for life in state.lives.iter_mut() {
            life.paused = false;
            life.drifted = false;
            life.glimpse = None;
            // Of these only what it takes for wrong would depend.
            (life.saw_down, life.saw_odd) = (0, false);
        }
    }

    /// Whether there is an order in which everything is ended: all at once nearly always is one, else whoever begins has a start. What no
    /// order ends is stuck; what only some order does not end becomes stuck on the way, and that state is searched, too.
    fn runs_to_the_end(&self, state: &State) -> bool {
        let with_a_start = |first: usize| {
            let (mut state, actors) = (*state, self.actors.len());
            let order: Vec<usize> = (first..actors).chain(0..first).collect();
            (0..TURNS + START * actors).any(|turn| {
                self.takes_a_turn(&mut state, &order[..(turn / START + 1).min(actors)]);
                self.is_clean(&state)
            })
        };
        self.runs_all_at_once(*state) || (0..self.actors.len()).any(with_a_start)
    }

    /// The same, all at once. Where this comes to what another try has come through, it ends as that did; where it comes to what it has come
    /// through itself, it never will.
    fn runs_all_at_once(&self, mut state: State) -> bool {
        let everybody: Vec<usize> = (0..self.actors.len()).collect();
        let mut way = Vec::new();
        loop {
            let here = fingerprint(&state);
            if way.contains(&here) {
                return false;
            }
            if self.ends.locked().on_the_way.contains(&here) {
                break;
            }
            way.push(here);
            self.takes_a_turn(&mut state, &everybody);
            if self.is_clean(&state) {
                break;
            }
        }
        self.ends.locked().on_the_way.extend(way);
        true
    }

    /// These get as far as they get, all others keep what they have, and then time passes.
    fn takes_a_turn(&self, state: &mut State, these: &[usize]) {
        tick(state, None);
        for actor in 0..self.actors.len() {
            self.goes(state, Move::ReportEnd(actor));
            if !these.contains(&actor) {
                self.goes(state, Move::Renew(actor));
            }
        }
        for actor in these {
            let [acts, waits] = self.of_actor(*actor);
            while acts.iter().any(|one| self.goes(state, one(*actor))) {}
            for one in waits {
                self.goes(state, one(*actor));
            }
        }
        for node in 0..self.nodes() {
            for over in [Move::UnitStopsMember, Move::UnitEnds, Move::MemberStarts, Move::CatchesUp, Move::KuredStarts]
            {
                self.goes(state, over(node));
            }
        }
    }

    fn is_repaired(&self, mut state: State) -> bool {
        if !self.gives_up_by_hand(&mut state) {
            return false;
        }
        let mut scenario = Self { torn: false, ..self.clone() };
        let joining = |at: &usize| state.nodes[*at].is_joining();
        let lost = |at: &usize| state.nodes[*at].role == Role::Voter && !state.nodes[*at].powered;
        let nodes = || 0..self.nodes();
        let targets: Vec<usize> = nodes().filter(joining).chain(nodes().filter(lost)).collect();
        targets.into_iter().all(|target| {
            let Some(runner) = nodes().find(|at| *at != target && state.nodes[*at].powered) else { return false };
            scenario.actors.push(Actor { kind: Kind::Members(Plan::Remove), target, runner });
            state.lives.push(Life::new());
            let everybody: Vec<usize> = (0..scenario.actors.len()).collect();
            (0..TURNS).any(|_| {
                scenario.takes_a_turn(&mut state, &everybody);
                state.nodes[target].role == Role::None && state.lease.is_none()
            })
        })
    }

    /// A hand finishes or undoes what was left, and gives it up, as `by_hand` allows: the holder is told, is known to have stopped, is given up.
    fn gives_up_by_hand(&self, state: &mut State) -> bool {
        for node in state.nodes.iter_mut() {
            (node.unit, node.cordons) = (Unit::None, Cordons::default());
            (node.file, node.kured) = (false, KuredPod::Idle);
        }
        if matches!(state.kured, KuredLock::Node(_)) {
            state.kured = KuredLock::Free;
        }
        for _told_stopped_abandoned in 0..3 {
            if state.lease.is_none() {
                break;
            }
            state.hand = Some(0);
            for _ in 0..LEASE + MARGIN {
                tick(state, None);
            }
            let Some((abandoned, stopped)) = self.by_hand(state, true) else { return false };
            if abandoned {
                state.lease = None;
            } else if let Some(holder) = &mut state.lease {
                holder.released = Some(stopped);
            }
            state.lease_written();
        }
        state.begun = 0;
        state.lease.is_none()
    }

    /// Makes a move; false when it cannot be made or changes nothing.
    fn goes(&self, state: &mut State, one: Move) -> bool {
        let next = self.after(state, one).filter(|next| next != state);
        next.map(|next| *state = next).is_some()
    }

    fn is_clean(&self, state: &State) -> bool {
        let free = state.lease.is_none() && state.kured == KuredLock::Free;
        let untouched = state.nodes.iter().all(|node| {
            let gate = node.file || node.kured != KuredPod::Idle;
            node.cordons.record.is_none() && node.unit == Unit::None && node.is_well() && !node.is_joining() && !gate
        });
        let is_over = |(actor, life): (usize, &Life)| {
            let rests = self.is_sentinel(actor) && life.phase == Phase::Idle && !self.sentinel_asks(state, actor);
            life.phase == Phase::Over || !life.process || rests
        };
        free && untouched && state.lives.iter().enumerate().all(is_over)
    }
}
