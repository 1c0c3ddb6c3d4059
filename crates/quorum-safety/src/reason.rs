//! The catalogue of reasons: stable codes, their class, their sentence. One table is the source of the codes, of the texts, of
//! the documentation page (`docs/reasons.md`) and of the test that they agree.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a reason counts. The worst of a verdict decides: `Refusal` makes it Refused, the others Held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// Not now.
    Hold,
    /// Something needed could not be read.
    Unknown,
    /// Not like this.
    Refusal,
}

/// One reason of a verdict: a code of the catalogue, and what it is about here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reason {
    /// Which reason.
    pub code: Code,
    /// Its class.
    pub class: Class,
    /// What it is about here, in words: names, figures, the error that was met.
    pub detail: String,
}

impl Reason {
    /// A reason with the class that the catalogue gives it.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, class: code.class(), detail: detail.into() }
    }
}

// Worst class first, then by code: the order in which they are told.
impl Ord for Reason {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.class.cmp(&self.class).then(self.code.cmp(&other.code)).then_with(|| self.detail.cmp(&other.detail))
    }
}
impl PartialOrd for Reason {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

macro_rules! catalogue {
    ($($variant:ident $text:literal $class:ident $liftable:literal $sentence:literal)*) => {
        /// The stable code of a reason. Codes are never reused or renumbered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code {
            $(#[doc = $sentence] #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// The whole catalogue, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code as it is printed, such as `Q030-quorum-would-be-lost`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// How it counts.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }

            /// What it means, as one sentence.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence),* }
            }

            /// Whether a recorded override may lift this check.
            pub const fn liftable(self) -> bool {
                match self { $(Self::$variant => $liftable),* }
            }
        }
    };
}

catalogue! {
    MembershipUnknown       "Q001-membership-unknown"        Unknown false "The etcd member list could not be read linearizably, so there is no proof of a quorum."
    MembershipDisagrees     "Q002-membership-disagrees"      Hold    false "An etcd member has another member list than the others."
    ClusterIdDiffers        "Q003-cluster-id-differs"        Refusal false "An etcd member belongs to another cluster."
    MemberUnanswered        "Q004-member-unanswered"         Unknown false "An etcd member did not answer, so it counts as down."
    MemberIdUnexpected      "Q005-member-id-unexpected"      Refusal false "Another member than expected answered at a member's address."
    NoLeader                "Q006-no-leader"                 Hold    false "An etcd member knows no leader."
    LeadersDisagree         "Q007-leaders-disagree"          Hold    false "etcd members name different leaders."
    LeaderNotAVoter         "Q008-leader-not-a-voter"        Hold    false "The leader that etcd members name is not a voter of the member list."
    TermUnsettled           "Q009-term-unsettled"            Hold    false "The raft term differs between members or changed between two samples: an election is near."
    MemberLagging           "Q010-member-lagging"            Hold    true  "An etcd member is too far behind the highest committed index."
    MemberApplyLagging      "Q011-member-apply-lagging"      Hold    true  "An etcd member applies its log too slowly."
    LearnerLagging          "Q012-learner-lagging"           Hold    false "The learner has not caught up."
    MemberStalled           "Q013-member-stalled"            Hold    false "An etcd member's index stands still while the leader's advances."
    ReadUnanswered          "Q014-read-unanswered"           Unknown false "A linearizable read through an etcd member was not answered."
    AlarmActive             "Q015-alarm-active"              Hold    true  "etcd has raised an alarm."
    AlarmsUnknown           "Q016-alarms-unknown"            Unknown false "etcd's alarms could not be read."
    MemberNotStarted        "Q017-member-not-started"        Hold    false "A member of the list has never started: a join is under way."
    LearnerPresent          "Q018-learner-present"           Hold    false "A learner is in the member list: a join is under way."
    MemberNodeUnknown       "Q019-member-node-unknown"       Unknown false "It is not known on which node an etcd member runs."
    TwoMembersOnANode       "Q020-two-members-on-a-node"     Refusal false "Two etcd members run on the same node, so taking it down takes two."
    RoleDisagrees           "Q021-role-disagrees"            Hold    false "A member says it is a learner while the list calls it a voter, or the reverse."
    NodeWithoutMember       "Q022-node-without-member"       Refusal true  "A control plane node has no etcd member in the list."
    QuorumWouldBeLost       "Q030-quorum-would-be-lost"      Refusal false "Without the target, fewer healthy voters would remain than quorum needs."
    SingleVoter             "Q031-single-voter"              Refusal false "There is only one voter: any disruption of it is an outage."
    ToleranceWouldFall      "Q032-tolerance-would-fall"      Refusal true  "The cluster would tolerate fewer failures than before."
    RemovalOfUpMember       "Q033-removal-of-up-member"      Refusal false "A member that is up would be removed while another one is not."
    LearnerNotAlive         "Q034-learner-not-alive"         Refusal false "The learner does not answer; etcd would promote it all the same and lose quorum for good."
    NotALearner             "Q035-not-a-learner"             Refusal false "The member to promote is not a learner."
    TargetNotAMember        "Q036-target-not-a-member"       Refusal false "The member to act on is not in the member list."
    TransfereeUnfit         "Q037-transferee-unfit"          Hold    false "The member that should become leader is not a healthy voter."
    RestoreOverQuorum       "Q038-restore-over-quorum"       Refusal true  "The cluster has quorum: a restore would throw its data away."
    NoOtherApiserver        "Q040-no-other-apiserver"        Refusal false "No other apiserver is known to be ready."
    ApiserverUnanswered     "Q041-apiserver-unanswered"      Unknown false "An apiserver did not answer on its own address."
    ApiserverNotReady       "Q042-apiserver-not-ready"       Hold    true  "An apiserver says that it is not ready."
    NodesUnknown            "Q050-nodes-unknown"             Unknown false "The nodes could not be read from the API."
    TargetNotANode          "Q051-target-not-a-node"         Refusal false "No node has the target's name."
    NodeNotReady            "Q052-node-not-ready"            Hold    true  "A control plane node is not Ready."
    NodeReadyUnknown        "Q053-node-ready-unknown"        Unknown false "It is not known whether a control plane node is Ready."
    ForeignCordon           "Q054-foreign-cordon"            Hold    true  "A control plane node is cordoned by somebody else: a disruption is in flight."
    OtherDisrupted          "Q055-other-disrupted"           Hold    false "Another node is cordoned by an operation of ours."
    StaticPodNotReady       "Q056-static-pod-not-ready"      Hold    true  "A static pod of a control plane node is not running and ready."
    StaticPodsUnknown       "Q057-static-pods-unknown"       Unknown false "The static pods of a control plane node could not be read."
    CertificateExpiring     "Q058-certificate-expiring"      Hold    true  "A certificate of the control plane is about to expire."
    CertificateUnknown      "Q059-certificate-unknown"       Unknown true  "The expiry of a certificate could not be read."
    LeaseHeld               "Q070-lease-held"                Hold    false "Another operation holds the disruption Lease."
    LeaseUnknown            "Q071-lease-unknown"             Unknown false "The disruption Lease could not be read."
    LeaseNotMine            "Q072-lease-not-mine"            Refusal false "The asker says that it holds the Lease, and the Lease says otherwise."
    KuredLockHeld           "Q073-kured-lock-held"           Hold    false "kured's lock is held: a reboot is in flight."
    KuredUnknown            "Q074-kured-unknown"             Unknown false "kured's lock could not be read."
    KillSwitchEngaged       "Q075-kill-switch-engaged"       Hold    false "The kill switch is engaged."
    KillSwitchUnknown       "Q076-kill-switch-unknown"       Unknown false "The kill switch could not be read, so it counts as engaged."
    SnapshotInProgress      "Q077-snapshot-in-progress"      Hold    false "A snapshot is being taken; a stalled one freezes a member that is defragmented or reconfigured."
    SnapshotLeaseUnknown    "Q078-snapshot-lease-unknown"    Unknown false "The snapshot Lease could not be read."
    ClusterUnknown          "Q079-cluster-unknown"           Unknown false "It is not known which cluster this is."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
