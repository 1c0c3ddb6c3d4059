//! Everything that may happen to the rule and the lock protocol in a small cluster, searched through exhaustively.
//!
//! The decisions are the real ones: `judge`, `decide`, `by_hand`, `kured_step`, `Held` and `Sighting` of `quorum-safety`. Around them is a
//! world of nodes, actors, one Lease and kured's lock, in which any actor may be killed, paused for any length of time between a look and
//! an act, cut off, or lose an answer; machines lose power and come back; an administrator cordons; a hand releases the Lease; kured
//! reboots. How much of that at most is a budget of each search; the order is any.
//!
//! What is assumed, and so not shown: the API's writes are linearizable; a request has its effect before its deadline or never; boot
//! clocks drift by at most the margin within one Lease; what a process has sent before it ended, or its machine went down, has had its
//! effect before the kubelet reports the end, or the machine is back. (Without the last the search finds the request of a killed process
//! that comes after a successor has done everything.) Time goes in ticks: a Lease lasts three, the margin is one.

#![expect(
    clippy::indexing_slicing,
    reason = "numbers of actors and nodes are the scenario's own; a wrong model must panic"
)]

mod defect;
mod ends;
mod eyes;
mod moves;
mod world;

pub use defect::Defect;
pub use ends::Ends;
pub use moves::Move;
pub use world::{Actor, Budget, Kind, Scenario, State};

use stateright::{Model, Property};

impl Model for Scenario {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        moves.extend(self.moves(state));
    }

    fn next_state(&self, state: &State, taken: Move) -> Option<State> {
        let next = self.after(state, taken)?;
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always(ONE_AT_A_TIME, |_, state| !state.wrong.two_down),
            Property::<Self>::always(NEVER_BELOW_QUORUM, |_, state| !state.wrong.below_quorum),
            Property::<Self>::always(NEW_TARGETS_ON_A_WHOLE_CLUSTER, |_, state| !state.wrong.not_whole),
            Property::<Self>::always(GIVEN_BACK_WELL, |_, state| !state.wrong.given_back_unwell),
            Property::<Self>::always(CORDONS_ARE_COVERED, |_, state| !state.wrong.uncovered_cordon),
            Property::<Self>::always(CAN_BE_ENDED, |scenario, state| !scenario.searches_ends || scenario.ends(state)),
            Property::<Self>::sometimes("an operation is done", |_, state| state.done),
            Property::<Self>::sometimes("an operation is adopted", |scenario, state| {
                state.adopted || !scenario.has_successor()
            }),
        ]
    }
}

/// Of all voters that we or kured take down, never two at the same time.
pub const ONE_AT_A_TIME: &str = "one at a time";
/// Whoever takes a node down left a majority, by all that had gone down before it looked.
pub const NEVER_BELOW_QUORUM: &str = "never below quorum by our doing";
/// What is not adopted begins only where every other voter is well and nobody else is at work.
pub const NEW_TARGETS_ON_A_WHOLE_CLUSTER: &str = "new targets on a whole control plane";
/// The Lease is given back only when the target is well.
pub const GIVEN_BACK_WELL: &str = "given back well";
/// No cordon of ours is made while nobody holds the Lease for it.
pub const CORDONS_ARE_COVERED: &str = "cordons are covered by the Lease";
/// From every state: once machines run, nobody is cut off and hands are off, the next runs end everything that was begun.
pub const CAN_BE_ENDED: &str = "whatever is half done can be adopted and ended";
