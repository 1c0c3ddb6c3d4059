//! Whether everything that is half done can be ended: from a moment on nothing befalls anybody any more, and the next run of each
//! operation is started.

use crate::moves::{Move, tick};
use crate::world::{Actor, Budget, Cordon, KuredLock, Life, Phase, Scenario, State, Unit, Wrong};
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
                self.goes(state, back);
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
            self.goes(state, Move::ReportEnd(actor));
        }
        state.hand = None;
        // What differs in these has the same future.
        state.left = Budget::default();
        (state.wrong, state.done, state.adopted) = (Wrong::default(), false, false);
        for life in &mut state.lives {
            life.paused = false;
            life.drifted = false;
        }
    }

    fn runs_to_the_end(&self, mut state: State) -> bool {
        let mut scenario = self.clone();
        for actor in self.operations() {
            // Never on its target.
            scenario.actors.push(Actor { runner: (actor.target + 1) % self.voters, ..actor });
        }
        state.lives.resize(scenario.actors.len(), Life::new());
        for _ in 0..TURNS {
            for actor in 0..scenario.actors.len() {
                // Each as far as it gets before time passes; renewing and looking again are waiting.
                let [acts @ .., renews, reads] = Scenario::of_actor(actor);
                while acts.into_iter().any(|one| scenario.goes(&mut state, one)) {}
                for waits in [renews, reads] {
                    scenario.goes(&mut state, waits);
                }
            }
            for node in 0..self.voters {
                for over in [Move::UnitStopsMember(node), Move::UnitEnds(node), Move::CatchesUp(node)] {
                    scenario.goes(&mut state, over);
                }
            }
            if is_clean(&state) {
                return true;
            }
            tick(&mut state, None);
            for actor in 0..scenario.actors.len() {
                scenario.goes(&mut state, Move::ReportEnd(actor));
            }
        }
        false
    }

    /// Makes a move; false when it cannot be made or changes nothing.
    fn goes(&self, state: &mut State, one: Move) -> bool {
        let next = self.after(state, one).filter(|next| next != state);
        next.map(|next| *state = next).is_some()
    }
}

fn is_clean(state: &State) -> bool {
    let free = state.lease.is_none() && !matches!(state.kured, KuredLock::Ours(_));
    let untouched =
        state.nodes.iter().all(|node| node.cordon != Cordon::Ours && node.unit == Unit::None && node.is_well());
    free && untouched && state.lives.iter().all(|life| life.phase == Phase::Over || !life.process)
}
