//! The lock protocol, as values and functions. No clock and no I/O: every time comes from outside.
//!
//! A Lease cannot fence: evictions, cordons and kubeadm do not look at it. Three rules make it a lock all the same:
//!
//! 1. *A holder stops by itself.* Its deadline is counted on its own CLOCK_BOOTTIME from before the request that took or renewed
//!    the Lease was sent; each disruptive request ends before it ([`Held::may_act`]).
//! 2. *Expiry alone never hands a Lease over.* A successor needs a [`Proof`] that the holder is gone ([`prove_gone`]).
//! 3. *What is half done stays the business of the lock.* It is adopted (same operation, same target) before anything else is
//!    started under the same Lease ([`decide`]). A hand gives it up only once its holder is known to have stopped ([`by_hand`]).
//!
//! What is assumed: clocks of two machines advance at the same rate within [`Timings::margin`]; the API server's writes with a
//! resourceVersion precondition are linearizable; a request that has been sent has its effect before its deadline or never. A
//! hypervisor that freezes a machine together with its boot clock breaks the first.

mod decide;
mod facts;
mod held;
mod kured;
mod record;
mod release;

pub use decide::{Claim, Decision, Wait, decide, life};
pub use facts::{HolderFacts, Life, NodeState, PodState, Proof, Sighting, prove_gone};
pub use held::{Held, RequestDeadline, Timings, TooLate};
pub use kured::{KuredBlock, KuredLock, KuredStep, kured_step};
pub use record::{LeaseView, PodRef, Record, Release, Stage, Step};
pub use release::by_hand;
