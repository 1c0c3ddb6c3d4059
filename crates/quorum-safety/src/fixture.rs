//! Whole clusters for tests, and ways to damage them. Behind the feature `fixture`; never part of what ships.

use crate::disruption::Disruption;
use crate::in_flight::{Holder, InFlight, KillSwitch, Kured, Lock, Mine};
use crate::judge::judge;
use crate::membership::{ClusterId, Member, MemberId, Membership, NodeName, Role};
use crate::observation::{
    ApiserverView, Budgets, Component, Cordon, EtcdView, Fact, MemberView, NodeView, Observation, Quota, StaticPodView,
    StatusSample, UnixSeconds,
};
use crate::policy::Policy;
use crate::reason::Code;
use crate::verdict::Verdict;

/// When every fixture is observed: 2026-11-22 12:00 UTC.
pub const NOW: UnixSeconds = UnixSeconds(1_795_348_800);
/// The cluster id of every fixture.
pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// The identity that [`Cluster::taken`] and [`Cluster::adopted`] use.
pub const IDENTITY: &str = "me-1";
/// The operation that they use.
pub const OPERATION: &str = "upgrade-v1.36.3";

/// Everything that `judge` is asked with, but for the disruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The member list.
    pub list: Vec<Member>,
    /// What is seen; its membership follows `list` through [`Cluster::on_list`].
    pub seen: Observation,
    /// What is under way.
    pub in_flight: InFlight,
    /// The numbers.
    pub policy: Policy,
}

/// The id of the n-th member, counted from 1.
pub const fn id(n: u64) -> MemberId {
    MemberId(0xa0 + n)
}

/// The name of the n-th control plane node and of its member, counted from 1.
pub fn name(n: u64) -> NodeName {
    NodeName(format!("k{n}"))
}

/// A reason for whatever is unknown.
pub fn unknown<T>() -> Fact<T> {
    Fact::Unknown("no answer within 3 s".to_owned())
}

/// A Lease held by a stranger.
pub fn stranger() -> Lock {
    Lock::Held(Holder { identity: "they-1".into(), operation: "defrag".into(), target: "k9".into() })
}

/// A whole cluster of n voters, k1 … kn, led by kn; one worker w1; nothing under way.
pub fn healthy(n: u64) -> Cluster {
    let list: Vec<Member> = (1..=n).map(|n| member(n, Role::Voter)).collect();
    let nodes = (1..=n).map(control_plane_node).chain([worker("w1")]).collect();
    let seen = Observation {
        taken_at: NOW,
        cluster_uid: Fact::Known("11111111-2222-3333-4444-555555555555".into()),
        etcd: EtcdView {
            membership: Fact::Unknown("not made yet".into()),
            members: (1..=n).map(|at| member_view(at, n, &list)).collect(),
        },
        nodes: Fact::Known(nodes),
        apiservers: (1..=n).map(apiserver).collect(),
        budgets: Fact::Known(Budgets { count: 0, closed: 0, named: Vec::new() }),
    };
    let in_flight = InFlight {
        control_plane: Fact::Known(Lock::Free),
        workers: Fact::Known(vec![Lock::Free]),
        snapshot: Fact::Known(Lock::Free),
        kured: Fact::Known(Kured::Free),
        kill_switch: Fact::Known(KillSwitch::Off),
        mine: Mine::Nothing,
    };
    let mut cluster = Cluster { list, seen, in_flight, policy: Policy::default() };
    cluster.seen.etcd.membership = Fact::from(Membership::new(cluster.list.clone()));
    cluster
}

/// The n-th entry of a member list.
pub fn member(n: u64, role: Role) -> Member {
    Member {
        id: id(n),
        name: format!("k{n}"),
        role,
        peer_urls: vec![format!("https://10.10.0.{}:2380", n.saturating_add(10))],
        client_urls: vec![format!("https://10.10.0.{}:2379", n.saturating_add(10))],
    }
}

/// A sample of the n-th member.
pub fn sample(n: u64, leader: u64, index: u64) -> StatusSample {
    StatusSample {
        cluster_id: CLUSTER,
        member_id: id(n),
        leader: Some(id(leader)),
        term: 7,
        raft_index: index,
        applied_index: index,
        is_learner: false,
        version: "3.6.15".into(),
        db_size: 20_000_000,
        db_size_in_use: 12_000_000,
        db_quota: Fact::Known(Quota::Bytes(2 * 1024 * 1024 * 1024)),
    }
}

fn member_view(n: u64, leader: u64, list: &[Member]) -> MemberView {
    MemberView {
        id: id(n),
        node: Fact::Known(name(n)),
        first: Fact::Known(sample(n, leader, 100_000)),
        second: Fact::Known(sample(n, leader, 100_010)),
        member_list: Fact::Known(list.to_vec()),
        linearizable_read: Fact::Known(()),
        first_read: Fact::Known(4),
        second_read: Fact::Known(3),
        alarms: Fact::Known(Vec::new()),
        certificate_expires: Fact::Known(in_a_year()),
    }
}

/// Both reads through a member take that long, milliseconds.
pub fn slow(view: &mut MemberView, milliseconds: u64) {
    view.first_read = Fact::Known(milliseconds);
    view.second_read = Fact::Known(milliseconds);
}

/// A time at which nothing is about to expire.
pub fn in_a_year() -> UnixSeconds {
    UnixSeconds(NOW.0.saturating_add(365 * 24 * 3600))
}

/// The n-th control plane node, whole.
pub fn control_plane_node(n: u64) -> NodeView {
    NodeView {
        name: name(n),
        control_plane: true,
        address: Fact::Known(format!("10.10.0.{}", n.saturating_add(10))),
        ready: Fact::Known(true),
        pressures: Vec::new(),
        boot_id: Fact::Known(format!("boot-k{n}")),
        kubelet_version: Fact::Known("v1.36.1".into()),
        cordon: Cordon::None,
        cordoned_by: None,
        static_pods: Fact::Known(Component::ALL.map(static_pod).to_vec()),
    }
}

fn static_pod(component: Component) -> StaticPodView {
    StaticPodView {
        component,
        ready: true,
        image: format!("registry.k8s.io/{}:v1.36.1", component.name()),
        config_hash: format!("hash-{}", component.name()),
        started_at: Some(UnixSeconds(NOW.0.saturating_sub(3600))),
    }
}

/// A worker, whole.
pub fn worker(name: &str) -> NodeView {
    NodeView {
        name: name.into(),
        control_plane: false,
        address: Fact::Known("10.10.0.31".into()),
        ready: Fact::Known(true),
        pressures: Vec::new(),
        boot_id: Fact::Known(format!("boot-{name}")),
        kubelet_version: Fact::Known("v1.36.1".into()),
        cordon: Cordon::None,
        cordoned_by: None,
        static_pods: Fact::Known(Vec::new()),
    }
}

/// The n-th apiserver, ready.
pub fn apiserver(n: u64) -> ApiserverView {
    ApiserverView { node: name(n), ready: Fact::Known(true), certificate_expires: Fact::Known(in_a_year()) }
}

impl Cluster {
    /// Changes what was seen of the n-th member.
    pub fn on_member(mut self, n: u64, change: impl FnOnce(&mut MemberView)) -> Self {
        let view = self.seen.etcd.members.iter_mut().find(|view| view.id == id(n));
        assert!(view.is_some(), "the fixture has no member {n}");
        view.map(change);
        self
    }

    /// Changes both samples of the n-th member.
    pub fn on_samples(self, n: u64, change: impl Fn(&mut StatusSample)) -> Self {
        self.on_member(n, |view| {
            for sample in [&mut view.first, &mut view.second] {
                if let Fact::Known(sample) = sample {
                    change(sample);
                }
            }
        })
    }

    /// Changes the second sample of the n-th member.
    pub fn on_second(self, n: u64, change: impl Fn(&mut StatusSample)) -> Self {
        self.on_member(n, |view| {
            if let Fact::Known(sample) = &mut view.second {
                change(sample);
            }
        })
    }

    /// Changes the node of that name.
    pub fn on_node(mut self, name: &str, change: impl FnOnce(&mut NodeView)) -> Self {
        let nodes = match &mut self.seen.nodes {
            Fact::Known(nodes) => nodes.as_mut_slice(),
            Fact::Unknown(_) => &mut [],
        };
        let node = nodes.iter_mut().find(|node| node.name.0 == name);
        assert!(node.is_some(), "the fixture has no node {name}");
        node.map(change);
        self
    }

    /// Changes the n-th apiserver.
    pub fn on_apiserver(mut self, n: u64, change: impl FnOnce(&mut ApiserverView)) -> Self {
        let view = self.seen.apiservers.iter_mut().find(|view| view.node == name(n));
        assert!(view.is_some(), "the fixture has no apiserver {n}");
        view.map(change);
        self
    }

    /// Changes the member list, as all members and the linearizable request give it.
    pub fn on_list(mut self, change: impl FnOnce(&mut Vec<Member>)) -> Self {
        change(&mut self.list);
        for view in &mut self.seen.etcd.members {
            view.member_list = Fact::Known(self.list.clone());
        }
        self.seen.etcd.membership = Fact::from(Membership::new(self.list.clone()));
        self
    }

    /// Changes anything else.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The n-th member answers nothing more, three seconds ago: its node still looks well.
    pub fn member_dead(self, n: u64) -> Self {
        self.on_member(n, |view| {
            view.first = unknown();
            view.second = unknown();
            view.member_list = unknown();
            view.linearizable_read = unknown();
            view.first_read = unknown();
            view.second_read = unknown();
            view.alarms = unknown();
            view.certificate_expires = unknown();
        })
    }

    /// The n-th node has no power: nothing of it answers; the API has not noticed yet.
    pub fn power_cut(self, n: u64) -> Self {
        self.member_dead(n).on_apiserver(n, |view| {
            view.ready = unknown();
            view.certificate_expires = unknown();
        })
    }

    /// Member n+1 joins as a learner that has caught up, on a node of its own that is not whole yet.
    pub fn learner(self) -> Self {
        let n = u64::try_from(self.list.len()).unwrap_or(u64::MAX).saturating_add(1);
        let leader = n.saturating_sub(1);
        let mut cluster = self.on_list(|list| list.push(member(n, Role::Learner)));
        let mut view = member_view(n, leader, &cluster.list);
        for sample in [&mut view.first, &mut view.second] {
            if let Fact::Known(sample) = sample {
                sample.is_learner = true;
            }
        }
        // What a learner does not answer.
        view.member_list = unknown();
        view.linearizable_read = unknown();
        view.first_read = unknown();
        view.second_read = unknown();
        view.alarms = unknown();
        cluster.seen.etcd.members.push(view);
        if let Fact::Known(nodes) = &mut cluster.seen.nodes {
            nodes.push(NodeView { ready: Fact::Known(false), ..control_plane_node(n) });
        }
        cluster.seen.apiservers.push(ApiserverView { ready: unknown(), ..apiserver(n) });
        cluster
    }

    fn mine(&self, target: &str) -> Lock {
        let _ = self;
        Lock::Held(Holder { identity: IDENTITY.into(), operation: OPERATION.into(), target: target.into() })
    }

    /// The asker holds the control plane Lease for that target, newly taken.
    pub fn taken(mut self, target: &str) -> Self {
        self.in_flight.control_plane = Fact::Known(self.mine(target));
        self.in_flight.mine = Mine::Taken(IDENTITY.into());
        self
    }

    /// The asker holds the control plane Lease for that target, on which it has already begun.
    pub fn adopted(mut self, target: &str) -> Self {
        self.in_flight.control_plane = Fact::Known(self.mine(target));
        self.in_flight.mine = Mine::Adopted(IDENTITY.into());
        self
    }

    /// The asker holds a worker Lease for that target.
    pub fn worker_taken(mut self, target: &str) -> Self {
        self.in_flight.workers = Fact::Known(vec![self.mine(target)]);
        self.in_flight.mine = Mine::Taken(IDENTITY.into());
        self
    }

    /// An override lifts these checks.
    pub fn lifting(mut self, codes: &[Code]) -> Self {
        self.policy.lifted = codes.to_vec();
        self
    }

    /// Asks the rule.
    pub fn judge(&self, wanted: &Disruption) -> Verdict {
        judge(&self.seen, &self.in_flight, wanted, &self.policy)
    }
}

/// Reboot of the n-th control plane node.
pub fn reboot(n: u64) -> Disruption {
    Disruption::Reboot(name(n))
}

/// Upgrade of the n-th control plane node.
pub fn upgrade(n: u64) -> Disruption {
    Disruption::Upgrade(name(n))
}
