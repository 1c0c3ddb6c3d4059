//! What was seen of a cluster, and what could not be seen. Values only: the shell fills them, `judge` reads them, and they
//! are stored beside every verdict so that it can be judged again.

use crate::membership::{ClusterId, Member, MemberId, Membership, NodeName};
use serde::{Deserialize, Serialize};

/// A fact, or the reason why it is not known. Unknown is never read as a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fact<T> {
    /// It was read.
    Known(T),
    /// It could not be read; why, in words.
    Unknown(String),
}

impl<T> Fact<T> {
    /// The value, when known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// The value, or why there is none, for `?`.
    ///
    /// # Errors
    /// The reason, when unknown.
    pub fn as_result(&self) -> Result<&T, &str> {
        match self {
            Self::Known(value) => Ok(value),
            Self::Unknown(why) => Err(why),
        }
    }

    /// The same fact with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Unknown(why) => Fact::Unknown(why),
        }
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Fact<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// Seconds since 1970-01-01 UTC. The crate has no clock: every time comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub i64);

/// Everything that `judge` needs to know of a cluster at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Observation {
    /// When the last sample was taken.
    pub taken_at: UnixSeconds,
    /// UID of the namespace kube-system, which names the cluster.
    pub cluster_uid: Fact<String>,
    /// What etcd's members said, each on its own connection.
    pub etcd: EtcdView,
    /// All nodes of the cluster, from the API.
    pub nodes: Fact<Vec<NodeView>>,
    /// Each apiserver, asked on its own address.
    pub apiservers: Vec<ApiserverView>,
    /// The PodDisruptionBudgets. They are told and decide nothing: a drain rehearses, and asks for itself.
    #[serde(default = "not_asked")]
    pub budgets: Fact<Budgets>,
}

/// What is stored by a version that did not ask for this yet.
fn not_asked<T>() -> Fact<T> {
    Fact::Unknown("not asked for".to_owned())
}

/// The PodDisruptionBudgets of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budgets {
    /// How many there are.
    pub count: usize,
    /// How many of them let no pod of theirs be evicted now.
    pub closed: usize,
    /// The first of those, by namespace and name: what is observed is stored, and must stay small.
    pub named: Vec<BudgetView>,
}

/// A PodDisruptionBudget that lets no pod go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BudgetView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How its pods stand; unknown while its controller has not seen its newest spec.
    pub pods: Fact<BudgetPods>,
}

/// How the pods stand that a budget counts, as its controller last wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BudgetPods {
    /// Healthy now.
    pub healthy: i32,
    /// How many must stay so.
    pub desired: i32,
    /// How many there should be.
    pub expected: i32,
}

/// etcd as its members describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EtcdView {
    /// The member list of a linearizable request: what a majority agrees on.
    pub membership: Fact<Membership>,
    /// One view for each member of the list.
    pub members: Vec<MemberView>,
}

/// One member, asked on its own connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberView {
    /// The id that the member list gives it.
    pub id: MemberId,
    /// The node it runs on: the one whose InternalIP its peer URL names.
    pub node: Fact<NodeName>,
    /// Status, first sample.
    pub first: Fact<StatusSample>,
    /// Status, second sample, at least one second after the first.
    pub second: Fact<StatusSample>,
    /// The member list as this member has it (not linearizable: a cut-off member gives its old list).
    pub member_list: Fact<Vec<Member>>,
    /// Whether a linearizable read through this member was answered, the one beside the first sample.
    pub linearizable_read: Fact<()>,
    /// How long that read took, milliseconds by the clock of who asked.
    #[serde(default = "not_asked")]
    pub first_read: Fact<u64>,
    /// How long another one took, beside the second sample.
    #[serde(default = "not_asked")]
    pub second_read: Fact<u64>,
    /// AlarmList as this member has it.
    pub alarms: Fact<Vec<Alarm>>,
    /// When the certificate it serves on its client port expires.
    pub certificate_expires: Fact<UnixSeconds>,
}

/// One answer to etcd's Status request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatusSample {
    /// Cluster id of the header.
    pub cluster_id: ClusterId,
    /// Member id of the header: who really answered.
    pub member_id: MemberId,
    /// The leader in its view; none when it has none (id 0, or the error "no leader").
    pub leader: Option<MemberId>,
    /// Raft term.
    pub term: u64,
    /// Committed raft index.
    pub raft_index: u64,
    /// Applied raft index.
    pub applied_index: u64,
    /// Whether it says it is a learner.
    pub is_learner: bool,
    /// Server version, as in `3.6.15`.
    pub version: String,
    /// Size of the database file, bytes.
    pub db_size: u64,
    /// Bytes of it in use.
    pub db_size_in_use: u64,
    /// How large it may become. Unknown where etcd does not tell: before 3.6, and up to 3.6.5 without the flag that sets it.
    #[serde(default = "not_asked")]
    pub db_quota: Fact<Quota>,
}

/// etcd's `--quota-backend-bytes`: a database that would outgrow it takes no more writes, in the whole cluster (alarm NOSPACE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Quota {
    /// So many bytes.
    Bytes(u64),
    /// Switched off.
    Disabled,
}

/// An alarm that etcd raised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Alarm {
    /// The member it is about.
    pub member: MemberId,
    /// What it says.
    pub kind: AlarmKind,
}

/// The kinds of alarm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AlarmKind {
    /// The quota of the database is used up: writes fail everywhere.
    NoSpace,
    /// The data of a member differs from the others'.
    Corrupt,
    /// A kind that this version does not know; its number.
    Other(i32),
}

/// One Node object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Whether it carries the control plane label.
    pub control_plane: bool,
    /// Its InternalIP.
    pub address: Fact<String>,
    /// Condition Ready: true, false, or unknown (also when the API says Unknown).
    pub ready: Fact<bool>,
    /// The other conditions that are not False, such as `DiskPressure`. Those of a kubelet that is short of something are judged.
    pub pressures: Vec<String>,
    /// `status.nodeInfo.bootID`.
    pub boot_id: Fact<String>,
    /// `status.nodeInfo.kubeletVersion`, as in `v1.36.1`.
    pub kubelet_version: Fact<String>,
    /// Whether it is unschedulable, and by whom.
    pub cordon: Cordon,
    /// Who has written that a foreign cordon is there, and when; none where the API does not tell. It is told and decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned_by: Option<Writer>,
    /// The static pods as their mirror pods show them; empty for a worker.
    pub static_pods: Fact<Vec<StaticPodView>>,
}

/// Who has written a field of an object, as its managed fields tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Writer {
    /// The manager: a name that a client gives itself, such as `kubectl-cordon`.
    pub manager: String,
    /// When that manager wrote to the object last, in any of its fields.
    pub at: Option<UnixSeconds>,
}

/// Whether a node is cordoned, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cordon {
    /// Schedulable.
    None,
    /// Cordoned by an operation of ours: its name, as in our annotation.
    Ours(String),
    /// Cordoned by somebody else: a disruption in flight (incident H03).
    Foreign,
}

/// The four static pods of a kubeadm control plane node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Component {
    /// etcd.
    #[serde(rename = "etcd")]
    Etcd,
    /// kube-apiserver.
    #[serde(rename = "kube-apiserver")]
    Apiserver,
    /// kube-controller-manager.
    #[serde(rename = "kube-controller-manager")]
    ControllerManager,
    /// kube-scheduler.
    #[serde(rename = "kube-scheduler")]
    Scheduler,
}

impl Component {
    /// All four, in the order in which kubeadm restarts them.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler];

    /// The name of the container and of the manifest without `.yaml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// One mirror pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticPodView {
    /// Which of the four.
    pub component: Component,
    /// Running, and its condition Ready is true.
    pub ready: bool,
    /// The image of its container.
    pub image: String,
    /// Annotation `kubernetes.io/config.hash`: which manifest the kubelet runs.
    pub config_hash: String,
    /// When its container last started, if it runs.
    pub started_at: Option<UnixSeconds>,
}

/// One apiserver, asked on its own address with the certificate checked against that address: a peer that answers in its
/// place does not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiserverView {
    /// The node it runs on.
    pub node: NodeName,
    /// Answer of `/readyz`: true for 200; false for another status; unknown when none came.
    pub ready: Fact<bool>,
    /// When the certificate it serves expires.
    pub certificate_expires: Fact<UnixSeconds>,
}
