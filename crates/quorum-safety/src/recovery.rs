//! Proven recovery: when a node that was taken down counts as back (design.md "Released on proven recovery", incident H06).
//! Node Ready is one clause of many, and each has a test in which it alone fails.

use crate::membership::{Member, MemberId, NodeName, Role};
use crate::observation::{
    ApiserverView, Component, Fact, MemberView, NodeView, Observation, StaticPodView, StatusSample, UnixSeconds,
};
use crate::policy::Policy;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a node must be like again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expectation {
    /// The node.
    pub target: NodeName,
    /// What each of the four static pods must run. A component that is not named here never recovers.
    pub static_pods: BTreeMap<Component, ExpectedPod>,
    /// Whether the load balancer must serve the node again: where it balances, not where it hashes.
    pub load_balancer: bool,
}

/// What one static pod must run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExpectedPod {
    /// The image of its container.
    pub image: String,
    /// What is known of its `kubernetes.io/config.hash`. The hash itself cannot be predicted.
    pub config_hash: ConfigHash,
}

/// How a config hash must stand to the one before. That it is the same is never demanded: a kubelet of another version may make another
/// one of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConfigHash {
    /// The manifest's bytes changed: the old hash must be gone.
    NoLonger(String),
    /// The manifest's bytes did not change, or it is not known whether they did.
    Any,
}

/// The two Leases by which controller-manager and scheduler elect their leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaderLeases {
    /// Whether `kube-controller-manager` is held and renewed in time, by anybody.
    pub controller_manager: Fact<bool>,
    /// Whether `kube-scheduler` is held and renewed in time, by anybody.
    pub scheduler: Fact<bool>,
}

/// What fresh connections to the virtual address have shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// Whether one of them was served by the node's own certificate.
    pub serves_node: Fact<bool>,
}

/// The clauses of proven recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClauseKind {
    /// The node's own apiserver is ready on its own address.
    Apiserver,
    /// The four static pods are ready on the expected image and hash.
    StaticPods,
    /// The etcd member answered twice, as itself, as a voter, through linearizable reads.
    MemberAnswers,
    /// The member names the leader that the others name.
    MemberLeader,
    /// The member has caught up.
    MemberCaughtUp,
    /// The node is Ready.
    Node,
    /// Somebody holds the Leases of controller-manager and scheduler.
    LeaderLeases,
    /// The load balancer serves the node again.
    LoadBalancer,
    /// All of this has been so for a while.
    Stable,
}

impl ClauseKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Apiserver,
        Self::StaticPods,
        Self::MemberAnswers,
        Self::MemberLeader,
        Self::MemberCaughtUp,
        Self::Node,
        Self::LeaderLeases,
        Self::LoadBalancer,
        Self::Stable,
    ];
}

/// A clause that does not hold yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Clause {
    /// Which.
    pub kind: ClauseKind,
    /// Why not, in words.
    pub detail: String,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Whether a node is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Recovery {
    /// Every clause holds.
    Recovered,
    /// These do not; never empty.
    NotYet(Vec<Clause>),
}

/// Since when everything has been good, by the clock of who asks. Feed it every observation: one that is not good starts the
/// time anew, and so does a clock that runs backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stability {
    good: Option<(UnixSeconds, UnixSeconds)>,
}

impl Stability {
    /// Nothing seen yet.
    pub const fn new() -> Self {
        Self { good: None }
    }

    /// Judges one more observation. `required` are the seconds for which everything must have been good, over two
    /// observations at least.
    pub fn observe(
        &mut self,
        expected: &Expectation,
        seen: &Observation,
        leases: &LeaderLeases,
        balancer: &LoadBalancer,
        policy: &Policy,
        required: i64,
    ) -> Recovery {
        let open = open_clauses(expected, seen, leases, balancer, policy);
        if !open.is_empty() {
            self.good = None;
            return Recovery::NotYet(open);
        }
        let now = seen.taken_at;
        let since = match self.good {
            Some((since, last)) if last <= now => since,
            Some(_) | None => now,
        };
        let first_time = self.good.is_none();
        self.good = Some((since, now));
        let lasted = now.0.saturating_sub(since.0);
        if lasted >= required && !first_time {
            Recovery::Recovered
        } else {
            let detail = format!("{} has been good for {lasted} of {required} s", expected.target);
            Recovery::NotYet(vec![Clause { kind: ClauseKind::Stable, detail }])
        }
    }
}

/// All clauses but stability that do not hold on this observation.
pub fn open_clauses(
    expected: &Expectation,
    seen: &Observation,
    leases: &LeaderLeases,
    balancer: &LoadBalancer,
    policy: &Policy,
) -> Vec<Clause> {
    let target = &expected.target;
    let node = seen.nodes.as_result().map(|nodes| nodes.iter().find(|node| node.name == *target));
    let mut open = Vec::new();
    open.extend(apiserver(target, &seen.apiservers));
    open.extend(static_pods(expected, node));
    open.extend(member(target, seen, policy));
    open.extend(node_ready(target, node));
    open.extend(leader_leases(leases));
    open.extend(load_balancer(expected, balancer));
    open
}

fn apiserver(target: &NodeName, apiservers: &[ApiserverView]) -> Vec<Clause> {
    let not_yet = |why: &str| Clause { kind: ClauseKind::Apiserver, detail: format!("apiserver of {target}: {why}") };
    let mut views = apiservers.iter().filter(|view| view.node == *target).peekable();
    if views.peek().is_none() {
        return vec![not_yet("it was not asked")];
    }
    views
        .filter_map(|view| match &view.ready {
            Fact::Known(true) => None,
            Fact::Known(false) => Some(not_yet("it is not ready")),
            Fact::Unknown(why) => Some(not_yet(why)),
        })
        .collect()
}

type SeenNode<'a> = Result<Option<&'a NodeView>, &'a str>;

fn static_pods(expected: &Expectation, node: SeenNode<'_>) -> Vec<Clause> {
    let target = &expected.target;
    let not_yet = |text: String| Clause { kind: ClauseKind::StaticPods, detail: text };
    let pods = match node.and_then(|node| node.ok_or("the API does not list it")) {
        Err(why) => return vec![not_yet(format!("static pods of {target}: {why}"))],
        Ok(node) => match &node.static_pods {
            Fact::Unknown(why) => return vec![not_yet(format!("static pods of {target}: {why}"))],
            Fact::Known(pods) => pods,
        },
    };
    let mut open = Vec::new();
    for component in Component::ALL {
        let what = component.name();
        let Some(wanted) = expected.static_pods.get(&component) else {
            open.push(not_yet(format!("{what} of {target}: nobody said what it should run")));
            continue;
        };
        let of_it: Vec<&StaticPodView> = pods.iter().filter(|pod| pod.component == component).collect();
        if of_it.is_empty() {
            open.push(not_yet(format!("{what} of {target} is missing")));
        }
        for pod in of_it {
            open.extend(pod_differs(pod, wanted).map(|why| not_yet(format!("{what} of {target} {why}"))));
        }
    }
    open
}

fn pod_differs(pod: &StaticPodView, wanted: &ExpectedPod) -> Option<String> {
    if !pod.ready {
        return Some("is not ready".to_owned());
    }
    if pod.image != wanted.image {
        return Some(format!("runs {}, expected {}", pod.image, wanted.image));
    }
    match &wanted.config_hash {
        ConfigHash::NoLonger(hash) if pod.config_hash == *hash => {
            Some(format!("still has the config hash from before, {hash}"))
        }
        ConfigHash::NoLonger(_) | ConfigHash::Any => None,
    }
}

fn member(target: &NodeName, seen: &Observation, policy: &Policy) -> Vec<Clause> {
    let answers = |why: String| Clause { kind: ClauseKind::MemberAnswers, detail: format!("etcd of {target}: {why}") };
    let membership = match seen.etcd.membership.as_result() {
        Ok(membership) => membership,
        Err(why) => return vec![answers(format!("the member list is not known: {why}"))],
    };
    let of_target: Vec<&MemberView> =
        seen.etcd.members.iter().filter(|view| view.node.known() == Some(target)).collect();
    let [view] = of_target.as_slice() else {
        return vec![answers(format!("{} members are known to run there", of_target.len()))];
    };
    let Some(entry) = membership.get(view.id) else {
        return vec![answers(format!("member {} is not in the member list", view.id))];
    };
    let (first, second) = match (&view.first, &view.second) {
        (Fact::Known(first), Fact::Known(second)) => (first, second),
        (Fact::Unknown(why), _) | (_, Fact::Unknown(why)) => return vec![answers(why.clone())],
    };
    let others: Vec<&StatusSample> = seen
        .etcd
        .members
        .iter()
        .filter(|other| other.id != view.id && membership.voters().any(|voter| voter.id == other.id))
        .filter_map(|other| other.second.known())
        .collect();
    let mut open = Vec::new();
    open.extend(as_itself(view.id, entry, [first, second], &others).map(answers));
    if let Fact::Unknown(why) = &view.linearizable_read {
        open.push(answers(format!("a linearizable read: {why}")));
    }
    open.extend(follows(target, first, second, &others));
    open.extend(caught_up(target, second, &others, policy));
    open
}

fn as_itself(id: MemberId, entry: &Member, samples: [&StatusSample; 2], others: &[&StatusSample]) -> Option<String> {
    if entry.role == Role::Learner || samples.iter().any(|sample| sample.is_learner) {
        return Some("it is a learner".to_owned());
    }
    if let Some(stranger) = samples.iter().find(|sample| sample.member_id != id) {
        return Some(format!("member {} answered for {id}", stranger.member_id));
    }
    let clusters: BTreeSet<_> = samples.iter().chain(others).map(|sample| sample.cluster_id).collect();
    (clusters.len() > 1).then(|| "it is not in the same cluster as the others".to_owned())
}

fn follows(target: &NodeName, first: &StatusSample, second: &StatusSample, others: &[&StatusSample]) -> Option<Clause> {
    let not_yet = |why: &str| Clause { kind: ClauseKind::MemberLeader, detail: format!("etcd of {target} {why}") };
    if first.leader.is_none() || second.leader.is_none() {
        return Some(not_yet("knows no leader"));
    }
    let all = || [first, second].into_iter().chain(others.iter().copied());
    if all().any(|sample| sample.leader != second.leader) {
        return Some(not_yet("and the others do not name the same leader"));
    }
    all().any(|sample| sample.term != second.term).then(|| not_yet("and the others are not in the same term"))
}

fn caught_up(target: &NodeName, second: &StatusSample, others: &[&StatusSample], policy: &Policy) -> Option<Clause> {
    let highest = others.iter().map(|sample| sample.raft_index).max().unwrap_or(second.raft_index);
    let behind = highest.saturating_sub(second.raft_index);
    let to_apply = second.raft_index.saturating_sub(second.applied_index);
    let bound = policy.recovered_lag;
    (behind > bound || to_apply > bound).then(|| Clause {
        kind: ClauseKind::MemberCaughtUp,
        detail: format!(
            "etcd of {target} is {behind} entries behind and has {to_apply} to apply, at most {bound} may remain"
        ),
    })
}

fn node_ready(target: &NodeName, node: SeenNode<'_>) -> Option<Clause> {
    let why = match node {
        Err(why) => why,
        Ok(None) => "the API does not list it",
        Ok(Some(node)) => match &node.ready {
            Fact::Known(true) => return None,
            Fact::Known(false) => "it is not Ready",
            Fact::Unknown(why) => why,
        },
    };
    Some(Clause { kind: ClauseKind::Node, detail: format!("node {target}: {why}") })
}

fn leader_leases(leases: &LeaderLeases) -> Vec<Clause> {
    let LeaderLeases { controller_manager, scheduler } = leases;
    [("kube-controller-manager", controller_manager), ("kube-scheduler", scheduler)]
        .into_iter()
        .filter_map(|(lease, held)| {
            let why = match held {
                Fact::Known(true) => return None,
                Fact::Known(false) => "nobody holds it",
                Fact::Unknown(why) => why,
            };
            Some(Clause { kind: ClauseKind::LeaderLeases, detail: format!("Lease {lease}: {why}") })
        })
        .collect()
}

fn load_balancer(expected: &Expectation, balancer: &LoadBalancer) -> Option<Clause> {
    if !expected.load_balancer {
        return None;
    }
    let why = match &balancer.serves_node {
        Fact::Known(true) => return None,
        Fact::Known(false) => "no fresh connection was served by it",
        Fact::Unknown(why) => why,
    };
    let detail = format!("load balancer and {}: {why}", expected.target);
    Some(Clause { kind: ClauseKind::LoadBalancer, detail })
}
