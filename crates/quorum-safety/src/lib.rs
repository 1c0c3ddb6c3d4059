//! Decides whether a disruption leaves an etcd control plane quorate. No I/O, no clock, no async, no logging: facts go in,
//! a verdict with all its reasons comes out, and both can be stored and judged again.

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
pub mod verdict;

pub use disruption::Disruption;
pub use in_flight::{Holder, InFlight, KillSwitch, Kured, Lock, Mine};
pub use judge::judge;
pub use membership::{ClusterId, Member, MemberId, Membership, MembershipError, NodeName, Role};
pub use observation::{
    Alarm, AlarmKind, ApiserverView, Component, Cordon, EtcdView, Fact, MemberView, NodeView, Observation,
    StaticPodView, StatusSample, UnixSeconds,
};
pub use policy::Policy;
pub use quorum::Quorum;
pub use reason::{Class, Code, Reason};
pub use record::{API_VERSION, Answer, Record, StoredVerdict};
pub use recovery::{Clause, ClauseKind, Expectation, LeaderLeases, LoadBalancer, Recovery, Stability};
pub use verdict::{Disrupting, Permit, Reasons, Verdict};
