//! Whether everything that is half done can be ended: from a moment on nothing befalls anybody any more, and the next run of each
//! operation is started.

use crate::moves::{Move, tick};
use crate::world::{Actor, Budget, Cordon, KuredLock, Phase, Scenario, State, Unit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Turns that this may take; in each everybody gets as far as it gets, and then time passes.
const TURNS: usize = 60;

/// Moments from which it was tried already.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Mutex<HashMap<State, bool>>>);

impl Scenario {
    /// Tries it.
    pub(crate) fn ends(&self, state: &State) -> bool {
        let mut calm = state.clone();
        self.calms_down(&mut calm);
        let known = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner).get(&calm).copied();
        known.unwrap_or_else(|| {
            let ends = self.runs_to_the_end(calm.clone());
            self.ends.0.lock().unwrap_or_else(PoisonError::into_inner).insert(calm, ends);
            ends
        })
    }

    /// Machines run, nobody is cut off or stopped, administrators and kured are done.
    fn calms_down(&self, state: &mut State) {
        for life in &mut state.lives {
            life.under_way = 0;
        }
        for node in 0..state.nodes.len() {
            for back in [Move::PowerOn(node), Move::Reconnect(node), Move::KuredReturns(node)] {
                if let Some(next) = self.after(state, back) {
                    *state = next;
                }
            }
            let node = &mut state.nodes[node];
            node.behind = false;
            if node.cordon == Cordon::Foreign {
                node.cordon = Cordon::None;
            }
        }
        if matches!(state.kured, KuredLock::Node(_)) {
            state.kured = KuredLock::Free;
        }
        for actor in 0..state.lives.len() {
            *state = self.after(state, Move::ReportEnd(actor)).unwrap_or_else(|| state.clone());
        }
        state.hand = None;
        // What differs in these has the same future.
        state.left = Budget::default();
        (state.wrong, state.done, state.adopted) = (crate::world::Wrong::default(), false, false);
        for life in &mut state.lives {
            life.paused = false;
            life.drifted = false;
        }
    }

    fn runs_to_the_end(&self, mut state: State) -> bool {
        let mut scenario = self.clone();
        let mut operations: Vec<Actor> = Vec::new();
        for actor in &self.actors {
            if !operations.iter().any(|other| (other.kind, other.target) == (actor.kind, actor.target)) {
                operations.push(*actor);
            }
        }
        let fresh = State::new(&Scenario { actors: operations.clone(), ..self.clone() });
        for actor in operations {
            // Never on its target.
            scenario.actors.push(Actor { runner: (actor.target + 1) % self.voters, ..actor });
        }
        state.lives.extend(fresh.lives);
        for _ in 0..TURNS {
            for actor in 0..scenario.actors.len() {
                // Each as far as it gets before time passes; renewing and looking again are waiting.
                let [acts @ .., renews, reads] = Scenario::of_actor(actor);
                while let Some(next) = acts.into_iter().find_map(|one| scenario.advances(&state, one)) {
                    state = next;
                }
                for waits in [renews, reads] {
                    state = scenario.advances(&state, waits).unwrap_or(state);
                }
            }
            for node in 0..self.voters {
                for over in [Move::UnitStopsMember(node), Move::UnitEnds(node), Move::CatchesUp(node)] {
                    if let Some(next) = scenario.after(&state, over) {
                        state = next;
                    }
                }
            }
            if is_clean(&state) {
                return true;
            }
            tick(&mut state, None);
            for actor in 0..scenario.actors.len() {
                state = scenario.advances(&state, Move::ReportEnd(actor)).unwrap_or(state);
            }
        }
        false
    }

    /// A move that changes something.
    fn advances(&self, state: &State, one: Move) -> Option<State> {
        self.after(state, one).filter(|next| next != state)
    }
}

fn is_clean(state: &State) -> bool {
    let free = state.lease.is_none() && !matches!(state.kured, KuredLock::Ours(_));
    let untouched =
        state.nodes.iter().all(|node| node.cordon != Cordon::Ours && node.unit == Unit::None && node.is_well());
    free && untouched && state.lives.iter().all(|life| life.phase == Phase::Over || !life.process)
}
