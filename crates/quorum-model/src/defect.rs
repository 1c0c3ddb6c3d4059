//! Deliberate defects: each breaks one thing that the rule or the protocol rests on, and a search has to find what comes of it.

/// One thing that is left out or done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defect {
    /// A Lease whose holder was silent for long enough is anybody's.
    ExpiryHandsOver,
    /// Another operation takes a Lease over although something is half done under it.
    HalfDoneIsTakenOver,
    /// Nobody looks at the target's host: whether a step is at work there.
    HostNotLookedAt,
    /// A pod that is not there has ended, at once.
    MissingPodHasEnded,
    /// A pod that the node controller gave up while its node was not reached has ended.
    UnreachableHasEnded,
    /// Observers do not wait for the margin of the clocks.
    NoMargin,
    /// The deadline is counted from the answer to a write and not from before it was sent.
    DeadlineFromTheAnswer,
    /// Requests are sent without asking the deadline.
    DeadlineNotAsked,
    /// Leases are written without the resourceVersion that was judged.
    NoPrecondition,
    /// The verdict is from before the Lease was taken.
    JudgedBeforeTheLease,
    /// The rule is asked as if the target stayed up.
    TargetCountedAsUp,
    /// New targets are judged as adopted ones: a majority is enough.
    WholenessNotAsked,
    /// What an administrator has cordoned counts as well.
    ForeignCordonIgnored,
    /// The Lease is given back when the step on the host is over.
    GivenBackOnReady,
    /// kured's lock is neither taken nor looked at.
    KuredIgnored,
    /// Whoever was released by hand is gone, at once.
    ReleaseCountsAtOnce,
    /// Whoever is killed leaves kured's lock behind, and nobody takes it for stale.
    StaleBlockOfKuredStays,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ExpiryHandsOver,
        Self::HalfDoneIsTakenOver,
        Self::HostNotLookedAt,
        Self::MissingPodHasEnded,
        Self::UnreachableHasEnded,
        Self::NoMargin,
        Self::DeadlineFromTheAnswer,
        Self::DeadlineNotAsked,
        Self::NoPrecondition,
        Self::JudgedBeforeTheLease,
        Self::TargetCountedAsUp,
        Self::WholenessNotAsked,
        Self::ForeignCordonIgnored,
        Self::GivenBackOnReady,
        Self::KuredIgnored,
        Self::ReleaseCountsAtOnce,
        Self::StaleBlockOfKuredStays,
    ];
}
