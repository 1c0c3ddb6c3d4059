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

/// Whether a reason was ever given by real components. Every one is given by a constructed case (`tests/codes.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// This test gets it from a real etcd, apiserver or machine.
    Real(&'static str),
    /// No test does; what it would take, or why none can yet.
    Constructed(&'static str),
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
    ($($variant:ident $text:literal $class:ident $liftable:literal $sentence:literal $advice:literal $seen:ident $where:literal)*) => {
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

            /// What to do about it, in one or two sentences.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),* }
            }

            /// Whether a recorded override may lift this check.
            pub const fn liftable(self) -> bool {
                match self { $(Self::$variant => $liftable),* }
            }

            /// Whether it was given by real components as well.
            pub const fn seen(self) -> Seen {
                match self { $(Self::$variant => Seen::$seen($where)),* }
            }
        }
    };
}

catalogue! {
    MembershipUnknown       "Q001-membership-unknown"        Unknown false "The etcd member list could not be read linearizably, so there is no proof of a quorum."
        "See which etcd members are up. While a majority does not answer nothing may be taken down: bring members back, or plan a restore."
        Real "without_quorum_the_membership_is_unknown_and_everything_is_said"
    MembershipDisagrees     "Q002-membership-disagrees"      Hold    false "An etcd member has another member list than the others."
        "Wait: a member that was cut off catches up by itself. If it stays, the member has lost touch with the cluster and must be replaced."
        Constructed "wants a member that is cut off while the list changes"
    ClusterIdDiffers        "Q003-cluster-id-differs"        Refusal false "An etcd member belongs to another cluster."
        "That member was restored or bootstrapped alone. Take it off its peers' network, then replace it: its data is not this cluster's."
        Constructed "wants a member that was bootstrapped alone and answers at a listed address"
    MemberUnanswered        "Q004-member-unanswered"         Unknown false "An etcd member did not answer, so it counts as down."
        "Look at the etcd pod, the node and the network between them. If the member is gone for good: `quorate etcd members replace`."
        Real "h05_members_of_etcd_3_6_are_asked_one_by_one"
    MemberIdUnexpected      "Q005-member-id-unexpected"      Refusal false "Another member than expected answered at a member's address."
        "Compare the peer and client URLs of the member list with the addresses of the nodes; an address was given to another member, or a data directory was wiped and kept its id."
        Constructed "wants an address that was given to another member"
    NoLeader                "Q006-no-leader"                 Hold    false "An etcd member knows no leader."
        "Wait a few seconds for an election. A member that stays without a leader is cut off from its peers: check port 2380."
        Real "without_quorum_the_survivor_knows_no_leader_and_reads_nothing"
    LeadersDisagree         "Q007-leaders-disagree"          Hold    false "etcd members name different leaders."
        "Wait for the election to settle; ask again."
        Constructed "wants an election that some members have heard of and others have not"
    LeaderNotAVoter         "Q008-leader-not-a-voter"        Hold    false "The leader that etcd members name is not a voter of the member list."
        "Wait: the membership is changing under the answer. Ask again."
        Constructed "wants a membership that changes between two answers"
    TermUnsettled           "Q009-term-unsettled"            Hold    false "The raft term differs between members or changed between two samples: an election is near."
        "Wait for the election to settle. If terms keep rising, look for slow disks and lost packets between the members."
        Real "leadership_that_moves_between_the_samples_is_an_election"
    MemberLagging           "Q010-member-lagging"            Hold    true  "An etcd member is too far behind the highest committed index."
        "Wait until it has caught up. If it does not, look at its disk and network."
        Constructed "wants a member that lags by a thousand entries and still answers"
    MemberApplyLagging      "Q011-member-apply-lagging"      Hold    true  "An etcd member applies its log too slowly."
        "Wait until it has applied its log. If it does not, look at its disk, or for a defragmentation that still runs."
        Constructed "wants a member that applies too slowly and still answers"
    LearnerLagging          "Q012-learner-lagging"           Hold    false "The learner has not caught up."
        "Wait until the learner has caught up, then ask again."
        Real "a_learner_that_lags_waits_and_is_named"
    MemberStalled           "Q013-member-stalled"            Hold    false "An etcd member's index stands still while the leader's advances."
        "The member may be frozen (a defragmentation behind a stalled snapshot does that) or cut off. Find out which before anything else goes down."
        Constructed "wants a member that answers and stands still; one that is frozen whole does not answer"
    ReadUnanswered          "Q014-read-unanswered"           Unknown false "A linearizable read through an etcd member was not answered."
        "The member answers but cannot reach a majority. Check its peers and port 2380."
        Real "without_quorum_the_survivor_knows_no_leader_and_reads_nothing"
    AlarmActive             "Q015-alarm-active"              Hold    true  "etcd has raised an alarm."
        "NOSPACE: `quorate etcd defrag --cure-nospace --here` on the control plane nodes: it compacts, defragments, and disarms the alarm. CORRUPT: remove and replace the corrupt member. Both before anything else."
        Real "an_alarm_and_a_join_that_never_started_hold_everything"
    AlarmsUnknown           "Q016-alarms-unknown"            Unknown false "etcd's alarms could not be read."
        "Ask again; if one member keeps refusing, treat it as not healthy."
        Constructed "wants a member that answers Status and fails AlarmList"
    MemberNotStarted        "Q017-member-not-started"        Hold    false "A member of the list has never started: a join is under way."
        "Let the join finish, or remove the member that never started (`quorate etcd members remove` with its id)."
        Real "an_alarm_and_a_join_that_never_started_hold_everything"
    LearnerPresent          "Q018-learner-present"           Hold    false "A learner is in the member list: a join is under way."
        "Let the join finish (it promotes the learner), or remove the learner."
        Real "h05_members_of_etcd_3_6_are_asked_one_by_one"
    MemberNodeUnknown       "Q019-member-node-unknown"       Unknown false "It is not known on which node an etcd member runs."
        "Compare the peer URL of the member with the InternalIP of the nodes. A member whose node was deleted must be removed from etcd too."
        Real "where_members_run_is_compared_with_the_nodes"
    TwoMembersOnANode       "Q020-two-members-on-a-node"     Refusal false "Two etcd members run on the same node, so taking it down takes two."
        "Move one of the two members to a node of its own: remove it, then join another node."
        Real "where_members_run_is_compared_with_the_nodes"
    RoleDisagrees           "Q021-role-disagrees"            Hold    false "A member says it is a learner while the list calls it a voter, or the reverse."
        "Wait: a promotion is on its way to that member. If it stays, restart the member."
        Constructed "wants a promotion that a member has not heard of yet"
    NodeWithoutMember       "Q022-node-without-member"       Refusal true  "A control plane node has no etcd member in the list."
        "Join etcd on that node (`quorate etcd members add`), or take the node out of the control plane."
        Real "where_members_run_is_compared_with_the_nodes"
    TargetLeads             "Q023-target-leads"              Hold    false "The target is the etcd leader."
        "Move leadership to another healthy voter first: `quorate etcd members move-leader`."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    ReadSlow                "Q024-read-slow"                 Hold    true  "Linearizable reads through an etcd member take too long."
        "Look for what starves its disk, its processor or its network (`etcd_disk_wal_fsync_duration_seconds`, slow applies in its log), and ask again when that is over. The bound is `rule.slowRead`."
        Real "r19_a_member_that_is_slow_holds_an_upgrade_until_it_is_quick_again"
    DatabaseNearlyFull      "Q025-database-nearly-full"      Hold    true  "The database of an etcd member fills too much of its quota; at the quota nobody can write any more."
        "Where little of it is in use, defragment the members one after the other. Else find out what fills it, or raise `--quota-backend-bytes`. Where etcd does not tell its quota (before 3.6.6), say what it is in `rule.assumedQuota`."
        Real "r19_a_database_that_is_nearly_full_holds_an_upgrade"
    QuorumWouldBeLost       "Q030-quorum-would-be-lost"      Refusal false "Without the target, fewer healthy voters would remain than quorum needs."
        "Repair the voters that it names; then ask again."
        Real "h05_three_seconds_after_a_power_cut_the_gate_refuses_although_every_node_is_ready"
    SingleVoter             "Q031-single-voter"              Refusal false "There is only one voter: any disruption of it is an outage."
        "Add two control plane nodes. Until then any step on this node is an outage that has to be planned as one."
        Real "one_control_plane_node_is_refused"
    ToleranceWouldFall      "Q032-tolerance-would-fall"      Refusal true  "The cluster would tolerate fewer failures than before."
        "A member that is sick is replaced once it is down (`quorate etcd members replace`). Lift the check if the cluster is to be smaller."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    RemovalOfUpMember       "Q033-removal-of-up-member"      Refusal false "A member that is up would be removed while another one is not."
        "Remove or replace the member that is down first: `quorate etcd members replace`."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    LearnerNotAlive         "Q034-learner-not-alive"         Refusal false "The learner does not answer; etcd would promote it all the same and lose quorum for good."
        "Start the learner, or remove it and join again."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    NotALearner             "Q035-not-a-learner"             Refusal false "The member to promote is not a learner."
        "Look at the member list: it may have been promoted already."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    TargetNotAMember        "Q036-target-not-a-member"       Refusal false "The member to act on is not in the member list."
        "Look at the member list: it may have been removed already, or the id is wrong."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    TransfereeUnfit         "Q037-transferee-unfit"          Hold    false "The member that should become leader is not a healthy voter."
        "Choose a voter that is healthy and is not about to go down itself."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    RestoreOverQuorum       "Q038-restore-over-quorum"       Refusal true  "The cluster has quorum: a restore would throw its data away."
        "Do not restore: repair the members that are down. Lift the check only if this data is to be thrown away, or if it is certain that no majority lives elsewhere."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    LearnerWouldBeNeeded    "Q039-learner-would-be-needed"   Refusal true  "The promoted learner would itself be needed for a majority, from its first moment."
        "Repair the voter that is down first. Lift the check if the learner is known to be sound and growing (one to two voters) or replacing this way is meant."
        Real "what_is_asked_of_a_member_depends_on_who_it_is"
    NoOtherApiserver        "Q040-no-other-apiserver"        Refusal false "No other apiserver is known to be ready."
        "Bring back another apiserver first: without the target nobody would serve the API."
        Real "an_apiserver_that_is_told_to_stop_is_not_ready_and_one_that_is_gone_does_not_answer"
    ApiserverUnanswered     "Q041-apiserver-unanswered"      Unknown false "An apiserver did not answer on its own address."
        "Look at that node's kube-apiserver and at the network to it."
        Real "an_apiserver_that_is_told_to_stop_is_not_ready_and_one_that_is_gone_does_not_answer"
    ApiserverNotReady       "Q042-apiserver-not-ready"       Hold    true  "An apiserver says that it is not ready."
        "Ask its `/readyz?verbose` which check fails."
        Real "an_apiserver_that_is_told_to_stop_is_not_ready_and_one_that_is_gone_does_not_answer"
    NodesUnknown            "Q050-nodes-unknown"             Unknown false "The nodes could not be read from the API."
        "Find out why the API does not list nodes: no apiserver, or no permission."
        Real "what_an_account_may_not_read_is_unknown_and_holds"
    TargetNotANode          "Q051-target-not-a-node"         Refusal false "No node has the target's name."
        "Check the spelling; `kubectl get nodes` lists the names."
        Constructed "the command line refuses a name that is not there before it asks"
    NodeNotReady            "Q052-node-not-ready"            Hold    true  "A control plane node is not Ready."
        "Repair the node, or wait until it has come up."
        Constructed "wants a kubelet that says by itself that it is not ready; one that is dead says nothing, which is Q053"
    NodeReadyUnknown        "Q053-node-ready-unknown"        Unknown false "It is not known whether a control plane node is Ready."
        "Its kubelet has stopped reporting: find out whether the node lives."
        Real "h05_three_seconds_after_a_power_cut_the_gate_refuses_although_every_node_is_ready"
    ForeignCordon           "Q054-foreign-cordon"            Hold    true  "A control plane node is cordoned by somebody else: a disruption is in flight."
        "Ask who cordoned it. Uncordon it when their work is done."
        Real "h03_an_administrators_cordon_on_another_control_plane_node_is_refused"
    OtherDisrupted          "Q055-other-disrupted"           Hold    false "Another node is cordoned by an operation of ours."
        "Let that operation finish; if it was given up, run it again: it is taken up where it stopped."
        Real "r14_a_step_killed_while_kubeadm_works_is_finished_by_the_next_run"
    StaticPodNotReady       "Q056-static-pod-not-ready"      Hold    true  "A static pod of a control plane node is not running and ready."
        "Look at the pod's container log on that node."
        Constructed "no test asks while a static pod restarts"
    StaticPodsUnknown       "Q057-static-pods-unknown"       Unknown false "The static pods of a control plane node could not be read."
        "Find out why the mirror pods cannot be listed; an apiserver or a permission is missing."
        Real "what_an_account_may_not_read_is_unknown_and_holds"
    CertificateExpiring     "Q058-certificate-expiring"      Hold    true  "A certificate of the control plane is about to expire."
        "Renew it: `kubeadm certs renew all` on that node, then restart its static pods."
        Real "where_members_run_is_compared_with_the_nodes"
    CertificateUnknown      "Q059-certificate-unknown"       Unknown true  "The expiry of a certificate could not be read."
        "Find out why the certificate could not be read; usually its server did not answer."
        Constructed "wants a server that answers and shows no readable certificate"
    NodeUnderPressure       "Q060-node-under-pressure"       Hold    true  "A control plane node is short of disk, memory or process ids."
        "Free what it lacks: its kubelet evicts pods and may take no new ones, such as those of an upgrade. Lift the check if the disruption is the cure."
        Constructed "the machines of the tests evict nothing, so that a full disk of their host does not fail a test"
    LeaseHeld               "Q070-lease-held"                Hold    false "Another operation holds the disruption Lease."
        "Wait for the operation that it names (`quorate lease show`)."
        Real "r34_a_killed_holder_is_adopted_once_its_pod_is_seen_to_have_ended_and_not_before"
    LeaseUnknown            "Q071-lease-unknown"             Unknown false "The disruption Lease could not be read."
        "Find out why the Lease could not be read: no apiserver, or no permission."
        Real "r03_the_shipped_roles_suffice_for_the_locks_and_observing_cannot_take_one"
    LeaseNotMine            "Q072-lease-not-mine"            Refusal false "The asker says that it holds the Lease, and the Lease says otherwise."
        "Stop: the Lease was lost. Start again from the beginning."
        Constructed "wants a Lease that is taken from an asker between its renewals"
    KuredLockHeld           "Q073-kured-lock-held"           Hold    false "kured's lock is held: a reboot is in flight."
        "Wait until kured's reboot is over."
        Real "kureds_lock_held_by_a_node_gives_the_lease_back"
    KuredUnknown            "Q074-kured-unknown"             Unknown false "kured's lock could not be read."
        "Find out why kured's DaemonSet could not be read; a permission is missing, or set `kured: none`."
        Real "kureds_lock_held_by_a_node_gives_the_lease_back"
    KillSwitchEngaged       "Q075-kill-switch-engaged"       Hold    false "The kill switch is engaged."
        "Delete the ConfigMap `quorate-kill-switch` when its author agrees."
        Real "r31_the_kill_switch_is_engaged_by_kubectl_and_what_cannot_be_read_is_unknown"
    KillSwitchUnknown       "Q076-kill-switch-unknown"       Unknown false "The kill switch could not be read, so it counts as engaged."
        "Find out why the ConfigMap could not be read: no apiserver, or no permission."
        Real "r31_the_kill_switch_is_engaged_by_kubectl_and_what_cannot_be_read_is_unknown"
    SnapshotInProgress      "Q077-snapshot-in-progress"      Hold    false "A snapshot is being taken; a stalled one freezes a member that is defragmented or reconfigured."
        "Wait until the snapshot is finished, or stop it if it hangs."
        Constructed "no command takes a snapshot yet"
    SnapshotLeaseUnknown    "Q078-snapshot-lease-unknown"    Unknown false "The snapshot Lease could not be read."
        "Find out why the Lease could not be read: no apiserver, or no permission."
        Real "what_an_account_may_not_read_is_unknown_and_holds"
    ClusterUnknown          "Q079-cluster-unknown"           Unknown false "It is not known which cluster this is."
        "Find out why the namespace kube-system could not be read."
        Real "what_an_account_may_not_read_is_unknown_and_holds"
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
