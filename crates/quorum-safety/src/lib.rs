//! Decides whether a disruption leaves an etcd control plane quorate. No I/O, no clock, no async, no logging: facts go in,
//! a verdict with all its reasons comes out, and both can be stored and judged again.
//!
//! Three voters, all well: one node may go. Then another member stops to answer, though its node still looks Ready:
//!
//! ```
//! use quorum_safety::fixture::{healthy, reboot};
//! use quorum_safety::{Code, Verdict, judge};
//!
//! let cluster = healthy(3);
//! let Verdict::Permitted(permit) = judge(&cluster.seen, &cluster.in_flight, &reboot(1), &cluster.policy) else {
//!     panic!("a whole control plane lets one node go");
//! };
//! assert_eq!(permit.margin(), 0);
//!
//! let worse = cluster.member_dead(2);
//! let disrupting = permit.begin();
//! let reasons = disrupting.still_holds(&worse.seen, &worse.in_flight, &worse.policy).unwrap_err();
//! let codes: Vec<Code> = reasons.as_slice().iter().map(|reason| reason.code).collect();
//! assert_eq!(codes, [Code::QuorumWouldBeLost, Code::MemberUnanswered]);
//! ```

pub mod disruption;
#[cfg(feature = "fixture")]
pub mod fixture;
pub mod in_flight;
pub mod judge;
pub mod lock;
pub mod membership;
pub mod observation;
pub mod policy;
pub mod quorum;
pub mod reason;
pub mod record;
pub mod recovery;
pub mod sentinel;
pub mod verdict;

pub use disruption::Disruption;
pub use in_flight::{Holder, InFlight, KillSwitch, Kured, Lock, Mine};
pub use judge::{healthy_voters, judge, voters};
pub use membership::{ClusterId, Member, MemberId, Membership, MembershipError, NodeName, Role};
pub use observation::{
    Alarm, AlarmKind, ApiserverView, BudgetPods, BudgetView, Budgets, Component, Cordon, EtcdView, Fact, MemberView,
    NodeView, Observation, Quota, StaticPodView, StatusSample, UnixSeconds, Writer,
};
pub use policy::Policy;
pub use quorum::Quorum;
pub use reason::{Class, Code, Reason, Seen};
pub use record::{API_VERSION, Answer, Record, StoredVerdict};
pub use recovery::{Clause, ClauseKind, Expectation, LeaderLeases, LoadBalancer, Recovery, Stability};
pub use verdict::{Disrupting, Permit, Reasons, Verdict};
