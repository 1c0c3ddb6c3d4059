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
    /// A cordon on a node with a record of ours is ours, whoever has made it.
    RecordOutlivesTheCordon,
    /// The Lease is given back when the step on the host is over.
    GivenBackOnReady,
    /// The target's host is looked at while the order for it is on its way.
    LooksBeforeTheAnswer,
    /// kured's lock is neither taken nor looked at.
    KuredIgnored,
    /// Whoever was released by hand is gone, at once.
    ReleaseCountsAtOnce,
    /// Whoever is killed leaves kured's lock behind, and nobody takes it for stale.
    StaleBlockOfKuredStays,
    /// A defragmentation takes kured's lock before the Lease and all others after it; each waits for its second with the first in its hand.
    LocksInEitherOrder,
    /// Who has looked at a Lease already does not adopt what is half done under it: that is for the next run.
    WhoHasWaitedDoesNotAdopt,
    /// A sentinel knows of no file that it has not made itself.
    FileOfTheDeadIsNotLookedFor,
    /// A sentinel makes its file, and asks for the Lease then.
    FileBeforeTheLease,
    /// A sentinel with the Lease makes its file, and does not announce that before.
    FileNotAnnounced,
    /// The file lies on a disk.
    FileSurvivesTheBoot,
    /// A sentinel removes its file and gives the Lease back, whether or not kured has seen it.
    KuredThatHasLookedIsForgotten,
    /// A sentinel asks the rule before it makes its file, and not again.
    VerdictNotWatched,
    /// A sentinel gives the Lease back when its node is Ready.
    GateGivenBackOnReady,
    /// A sentinel that a hand has told to stop asks for the Lease under the same name.
    ReleasedIsForEver,
    /// A sentinel waits for kured as long as it takes.
    SentinelWaitsForEver,
    /// A learner counts as a voter.
    LearnerCountedAsVoter,
    /// A learner is promoted although a majority may need it from then on.
    LearnerMayBeNeeded,
    /// Nobody minds a learner, or a member that has never started.
    JoinHoldsNobody,
    /// A learner, or a member that has never started, holds its own removal as well.
    JoinHoldsRemovals,
    /// Only the first step of a replacement is judged.
    StepsOfAPlanNotJudged,
    /// A restore brings our Leases, cordons and kured's block back.
    RestoreKeepsTheLeases,
    /// A restore lets no Lease run out before there is an API again.
    RestoreDoesNotWait,
    /// A restore does not look for steps on the hosts.
    RestoreLeavesTheUnits,
    /// A restore leaves sentinels' files, and the pods of kured.
    RestoreLeavesTheGate,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 39] = [
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
        Self::RecordOutlivesTheCordon,
        Self::GivenBackOnReady,
        Self::LooksBeforeTheAnswer,
        Self::KuredIgnored,
        Self::ReleaseCountsAtOnce,
        Self::StaleBlockOfKuredStays,
        Self::LocksInEitherOrder,
        Self::WhoHasWaitedDoesNotAdopt,
        Self::FileOfTheDeadIsNotLookedFor,
        Self::FileBeforeTheLease,
        Self::FileNotAnnounced,
        Self::FileSurvivesTheBoot,
        Self::KuredThatHasLookedIsForgotten,
        Self::VerdictNotWatched,
        Self::GateGivenBackOnReady,
        Self::ReleasedIsForEver,
        Self::SentinelWaitsForEver,
        Self::LearnerCountedAsVoter,
        Self::LearnerMayBeNeeded,
        Self::JoinHoldsNobody,
        Self::JoinHoldsRemovals,
        Self::StepsOfAPlanNotJudged,
        Self::RestoreKeepsTheLeases,
        Self::RestoreDoesNotWait,
        Self::RestoreLeavesTheUnits,
        Self::RestoreLeavesTheGate,
    ];
}
