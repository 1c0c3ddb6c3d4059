//! Everything that may happen to the rule and the lock protocol in a small cluster, searched through exhaustively.
//!
//! The decisions are the real ones: `judge`, `decide`, `by_hand`, `kured_step`, `Held`, `Sighting`, `sentinel::next` and `asks_as` of
//! `quorum-safety`. Around them is a world of nodes, members, actors, one Lease, kured's lock and its pods, in which any actor may be
//! killed, paused for any length of time between a look and an act, cut off, or lose an answer; machines lose power and come back; an
//! administrator cordons, drains and uncordons any node, those that we work on as well; a hand releases the Lease; kured reboots; etcd is
//! restored from a snapshot while everything outside of it goes on. How much of that at most is a budget of each search; the order is any.
//! A look is stale from the moment it was taken: only a write of the Lease has what was read as its precondition. In some searches a look
//! is torn, too: one part of it is of before (`src/torn.rs`). A message may come as late as its deadline allows.
//!
//! What is assumed, and so not shown: the API's writes are linearizable; a request has its effect before its deadline or never, and so has
//! a file that a sentinel creates; boot clocks drift by at most the margin within one Lease; what a process has sent before it ended, or
//! its machine went down, has had its effect before the kubelet reports the end, or the machine is back. (Without the last the search finds
//! the request of a killed process that comes after a successor has done everything.) A reboot that kured asks for takes the machine down
//! before that pod of kured is seen to have ended. A restore reaches every machine that has power, and nobody but the restore reaches the
//! restored API before it is harmless. etcd takes every change of members: its own checks are not modelled. Time goes in ticks: a Lease
//! lasts three, the margin is one.

#![expect(
    clippy::indexing_slicing,
    reason = "numbers of actors and nodes are the scenario's own; a wrong model must panic"
)]

mod befalls;
mod cordons;
mod defect;
mod ends;
mod eyes;
mod few;
mod gate;
mod locks;
mod members;
mod moves;
mod restore;
mod rule;
mod torn;
mod world;

pub use defect::Defect;
pub use ends::Ends;
pub use moves::Move;
pub use world::{Actor, Budget, Kind, Plan, Role, Scenario, State};

use stateright::{Model, Property};

impl Model for Scenario {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        self.moves(state, moves);
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
            Property::<Self>::always(CHANGES_ARE_COVERED, |_, state| !state.wrong.uncovered),
            Property::<Self>::always(KURED_IS_COVERED, |_, state| !state.wrong.uncovered_reboot),
            Property::<Self>::always(ADOPTED_IS_HALF_DONE, |_, state| !state.wrong.ghost),
            Property::<Self>::always(THEIR_CORDONS_STAY, |_, state| !state.wrong.lifted),
            Property::<Self>::always(CAN_BE_ENDED, |scenario, state| !scenario.searches_ends || scenario.ends(state)),
            Property::<Self>::always(THE_LIVING_END, |scenario, state| {
                !scenario.searches_ends || scenario.the_living_end(state)
            }),
            Property::<Self>::always(REPAIR_STAYS_POSSIBLE, |scenario, state| {
                !scenario.searches_ends || scenario.can_be_repaired(state)
            }),
            Property::<Self>::sometimes("an operation is done", |_, state| state.done),
            Property::<Self>::sometimes("an operation is adopted", |scenario, state| {
                state.adopted || !scenario.has_successor()
            }),
        ]
    }
}

/// Of all voters that we or kured take down, never two at the same time.
pub const ONE_AT_A_TIME: &str = "one at a time";
/// Whoever takes a node down, or changes who votes, left a majority, by all that had gone down before it looked. Of who is promoted
/// nothing is expected. A sentinel that has seen that no majority would be left does not let kured go on.
pub const NEVER_BELOW_QUORUM: &str = "never below quorum by our doing";
/// What is not adopted begins only where every other voter is well, nobody joins, and nobody else is at work.
pub const NEW_TARGETS_ON_A_WHOLE_CLUSTER: &str = "new targets on a whole control plane";
/// The Lease is given back only when the target is well, no step of ours at work on it, and its member a voter or gone. Of a look that is
/// torn: well in either of its parts, since what befalls the target between them is nobody's to know.
pub const GIVEN_BACK_WELL: &str = "given back well";
/// No cordon of ours is made, and no member changed, while nobody holds the Lease for it.
pub const CHANGES_ARE_COVERED: &str = "cordons and changes of members are covered by the Lease";
/// Where a sentinel keeps the gate, kured reboots a node only while the Lease says that its gate is open.
pub const KURED_IS_COVERED: &str = "kured reboots under the Lease";
/// Nobody adopts, or takes for its own, what was never begun or is over.
pub const ADOPTED_IS_HALF_DONE: &str = "only what is half done is adopted";
/// What an administrator has cordoned, and not uncordoned, we do not make schedulable.
pub const THEIR_CORDONS_STAY: &str = "a cordon of somebody else stays";
/// From every state: once machines run, nobody is cut off and hands are off, those who live and the next runs end everything that was
/// begun. kured ends what it has its lock for, and begins nothing. The next run of a sentinel whose pod was deleted is its DaemonSet's next pod.
pub const CAN_BE_ENDED: &str = "whatever is half done can be adopted and ended";
/// From every state in which somebody lives, and was not told to stop, for everything that is under way: those end it as they are, and nobody
/// is newly started but a sentinel in its pod. So no two of them wait for each other, and none for a next run. Told to stop is also who does
/// not know that the Lease names it, its answer lost: a step ends there, and `lease release` says that the next run goes on. A sentinel
/// that was told comes back as another holder, and ends it all the same.
pub const THE_LIVING_END: &str = "those who live end what is under way, with no next run";
/// From every state with machines that are lost, as long as there is a majority: their members can be removed, and so can whoever was
/// joining; a hand gives up what was half done before, by the real rules for that.
pub const REPAIR_STAYS_POSSIBLE: &str = "repair stays possible";
