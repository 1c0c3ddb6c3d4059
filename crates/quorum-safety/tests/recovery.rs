//! Proven recovery: from a whole cluster, each clause with a change after which it alone fails.

use quorum_safety::fixture::{Cluster, healthy, id, unknown};
use quorum_safety::recovery::{ConfigHash, ExpectedPod, open_clauses};
use quorum_safety::*;

#[derive(Clone)]
struct Case {
    cluster: Cluster,
    expected: Expectation,
    leases: LeaderLeases,
    balancer: LoadBalancer,
}

/// k1 is back on the images and manifests that it should have.
fn back() -> Case {
    let cluster = healthy(3);
    let pod = |component: Component| ExpectedPod {
        image: format!("registry.k8s.io/{}:v1.36.1", component.name()),
        config_hash: ConfigHash::NoLonger(format!("hash-before-{}", component.name())),
    };
    Case {
        cluster,
        expected: Expectation {
            target: "k1".into(),
            static_pods: Component::ALL.into_iter().map(|component| (component, pod(component))).collect(),
            load_balancer: true,
        },
        leases: LeaderLeases { controller_manager: Fact::Known(true), scheduler: Fact::Known(true) },
        balancer: LoadBalancer { serves_node: Fact::Known(true) },
    }
}

impl Case {
    fn open(&self) -> Vec<Clause> {
        open_clauses(&self.expected, &self.cluster.seen, &self.leases, &self.balancer, &self.cluster.policy)
    }

    fn cluster(self, change: impl FnOnce(Cluster) -> Cluster) -> Self {
        Self { cluster: change(self.cluster), ..self }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn pod(self, component: Component, change: impl Fn(&mut StaticPodView)) -> Self {
        self.cluster(|cluster| {
            cluster.on_node("k1", |node| {
                if let Fact::Known(pods) = &mut node.static_pods {
                    pods.iter_mut().filter(|pod| pod.component == component).for_each(change);
                }
            })
        })
    }

    fn expect(self, component: Component, config_hash: ConfigHash) -> Self {
        self.with(|case| {
            if let Some(pod) = case.expected.static_pods.get_mut(&component) {
                pod.config_hash = config_hash;
            }
        })
    }
}

fn back_by(sample: &mut StatusSample, by: u64) {
    sample.raft_index -= by;
    sample.applied_index -= by;
}

#[test]
fn a_node_that_is_back() {
    assert_eq!(back().open(), []);
}

#[test]
fn h06_node_ready_alone_is_not_recovery() {
    use ClauseKind as K;
    let member = |change: fn(&mut MemberView)| back().cluster(|c| c.on_member(1, change));
    let samples = |change: fn(&mut StatusSample)| back().cluster(|c| c.on_samples(1, change));
    let rows: Vec<(&str, Case, ClauseKind)> = vec![
        ("apiserver not ready", back().cluster(|c| c.on_apiserver(1, |v| v.ready = Fact::Known(false))), K::Apiserver),
        ("apiserver silent", back().cluster(|c| c.on_apiserver(1, |v| v.ready = unknown())), K::Apiserver),
        ("apiserver not asked", back().with(|c| drop(c.cluster.seen.apiservers.remove(0))), K::Apiserver),
        ("etcd not ready", back().pod(Component::Etcd, |pod| pod.ready = false), K::StaticPods),
        ("apiserver pod not ready", back().pod(Component::Apiserver, |pod| pod.ready = false), K::StaticPods),
        ("old image", back().pod(Component::Scheduler, |pod| pod.image = "old".into()), K::StaticPods),
        (
            "the hash from before though the manifest changed",
            back().expect(Component::Apiserver, ConfigHash::NoLonger("hash-kube-apiserver".into())),
            K::StaticPods,
        ),
        (
            "a component without expectation",
            back().with(|c| drop(c.expected.static_pods.remove(&Component::Etcd))),
            K::StaticPods,
        ),
        (
            "a mirror pod missing",
            back().cluster(|c| c.on_node("k1", |n| n.static_pods = Fact::Known(Vec::new()))),
            K::StaticPods,
        ),
        ("mirror pods unknown", back().cluster(|c| c.on_node("k1", |n| n.static_pods = unknown())), K::StaticPods),
        ("answered once", member(|view| view.second = unknown()), K::MemberAnswers),
        ("answered once", member(|view| view.first = unknown()), K::MemberAnswers),
        (
            "another member runs there too",
            back().cluster(|c| c.on_member(2, |view| view.node = Fact::Known("k1".into()))),
            K::MemberAnswers,
        ),
        ("no linearizable read", member(|view| view.linearizable_read = unknown()), K::MemberAnswers),
        ("nobody knows where it runs", member(|view| view.node = unknown()), K::MemberAnswers),
        ("says it is a learner", samples(|sample| sample.is_learner = true), K::MemberAnswers),
        ("another member answers", samples(|sample| sample.member_id = id(3)), K::MemberAnswers),
        ("another cluster", samples(|sample| sample.cluster_id = ClusterId(0xbad)), K::MemberAnswers),
        (
            "is listed as a learner",
            back().cluster(|c| c.on_list(|list| list[0].role = Role::Learner)),
            K::MemberAnswers,
        ),
        ("is not listed", back().cluster(|c| c.on_list(|list| drop(list.remove(0)))), K::MemberAnswers),
        ("no member list", back().with(|c| c.cluster.seen.etcd.membership = unknown()), K::MemberAnswers),
        ("no leader", samples(|sample| sample.leader = None), K::MemberLeader),
        (
            "no leader at first",
            member(|view| {
                if let Fact::Known(s) = &mut view.first {
                    s.leader = None
                }
            }),
            K::MemberLeader,
        ),
        (
            "another leader at first",
            member(|view| {
                if let Fact::Known(s) = &mut view.first {
                    s.leader = Some(id(2))
                }
            }),
            K::MemberLeader,
        ),
        ("another leader", samples(|sample| sample.leader = Some(id(1))), K::MemberLeader),
        ("another term", samples(|sample| sample.term += 1), K::MemberLeader),
        ("an election between", back().cluster(|c| c.on_second(1, |sample| sample.term += 1)), K::MemberLeader),
        ("101 entries behind", samples(|sample| back_by(sample, 101)), K::MemberCaughtUp),
        ("101 entries to apply", samples(|sample| sample.applied_index -= 101), K::MemberCaughtUp),
        ("node not Ready", back().cluster(|c| c.on_node("k1", |n| n.ready = Fact::Known(false))), K::Node),
        ("node Ready unknown", back().cluster(|c| c.on_node("k1", |n| n.ready = unknown())), K::Node),
        (
            "no controller-manager leads",
            back().with(|c| c.leases.controller_manager = Fact::Known(false)),
            K::LeaderLeases,
        ),
        ("no scheduler leads", back().with(|c| c.leases.scheduler = Fact::Known(false)), K::LeaderLeases),
        ("a Lease unknown", back().with(|c| c.leases.scheduler = unknown()), K::LeaderLeases),
        ("the balancer stays away", back().with(|c| c.balancer.serves_node = Fact::Known(false)), K::LoadBalancer),
        ("the balancer unknown", back().with(|c| c.balancer.serves_node = unknown()), K::LoadBalancer),
    ];
    for (what, case, kind) in &rows {
        let mut kinds: Vec<ClauseKind> = case.open().into_iter().map(|clause| clause.kind).collect();
        kinds.dedup();
        assert_eq!(kinds, [*kind], "{what}: {:?}", case.open());
    }
    for kind in ClauseKind::ALL {
        let tested = rows.iter().any(|row| row.2 == kind);
        assert!(tested || kind == ClauseKind::Stable, "no row for {kind:?}");
    }
}

#[test]
fn what_does_not_hinder_recovery() {
    let rows = [
        ("100 entries behind", back().cluster(|c| c.on_samples(1, |sample| back_by(sample, 100)))),
        ("100 entries to apply", back().cluster(|c| c.on_samples(1, |sample| sample.applied_index -= 100))),
        ("the hash changed with the manifest", back().expect(Component::Etcd, ConfigHash::NoLonger("old".into()))),
        (
            "a kubelet of another version hashes the same bytes otherwise",
            back().expect(Component::Etcd, ConfigHash::Any).pod(Component::Etcd, |pod| pod.config_hash = "x".into()),
        ),
        ("nothing is known of the hash before", back().expect(Component::Etcd, ConfigHash::Any)),
        ("another node is sick", back().cluster(|c| c.power_cut(2).on_node("k2", |n| n.ready = Fact::Known(false)))),
        (
            "a learner elsewhere knows less",
            back().cluster(|c| {
                c.learner().on_samples(4, |sample| {
                    sample.term -= 1;
                    sample.leader = None;
                    sample.cluster_id = ClusterId(0xbad);
                    sample.raft_index += 5_000;
                })
            }),
        ),
        ("cordoned, by us or not", back().cluster(|c| c.on_node("k1", |n| n.cordon = Cordon::Foreign))),
        (
            "a balancer that hashes",
            back().with(|c| {
                c.expected.load_balancer = false;
                c.balancer.serves_node = Fact::Known(false);
            }),
        ),
    ];
    for (what, case) in rows {
        assert_eq!(case.open(), [], "{what}");
    }
}

#[test]
fn who_knew_no_leader_once_is_said_to_know_none() {
    for first in [true, false] {
        let change = |view: &mut MemberView| {
            let answer = if first { &mut view.first } else { &mut view.second };
            if let Fact::Known(sample) = answer {
                sample.leader = None;
            }
        };
        let open = back().cluster(|cluster| cluster.on_member(1, change)).open();
        let told: Vec<String> = open.iter().map(Clause::to_string).collect();
        assert_eq!(told, ["etcd of k1 knows no leader"]);
    }
}

#[test]
fn all_nodes_unknown_opens_two_clauses() {
    let case = back().with(|c| c.cluster.seen.nodes = unknown());
    let kinds: Vec<ClauseKind> = case.open().into_iter().map(|clause| clause.kind).collect();
    assert_eq!(kinds, [ClauseKind::StaticPods, ClauseKind::Node]);
}

#[test]
fn good_for_ten_seconds_without_a_break() {
    let good = back();
    let bad = back().with(|c| c.leases.scheduler = Fact::Known(false));
    let mut stability = Stability::new();
    let mut at = |case: &Case, seconds: i64| {
        let mut seen = case.cluster.seen.clone();
        seen.taken_at = UnixSeconds(1_000 + seconds);
        stability.observe(&case.expected, &seen, &case.leases, &case.balancer, &case.cluster.policy, 10)
    };
    let is_stable_clause = |recovery: Recovery| matches!(recovery, Recovery::NotYet(open) if open.len() == 1 && open[0].kind == ClauseKind::Stable);
    assert!(is_stable_clause(at(&good, 0)));
    assert!(is_stable_clause(at(&good, 9)));
    assert!(matches!(at(&bad, 10), Recovery::NotYet(open) if open[0].kind == ClauseKind::LeaderLeases));
    assert!(is_stable_clause(at(&good, 11)));
    assert!(is_stable_clause(at(&good, 20)));
    // A clock that runs backwards proves nothing.
    assert!(is_stable_clause(at(&good, 5)));
    assert!(is_stable_clause(at(&good, 14)));
    assert_eq!(at(&good, 15), Recovery::Recovered);
}

#[test]
fn one_observation_never_proves_stability() {
    let good = back();
    let mut once = Stability::new();
    let first = once.observe(&good.expected, &good.cluster.seen, &good.leases, &good.balancer, &good.cluster.policy, 0);
    assert!(matches!(first, Recovery::NotYet(_)));
    let second =
        once.observe(&good.expected, &good.cluster.seen, &good.leases, &good.balancer, &good.cluster.policy, 0);
    assert_eq!(second, Recovery::Recovered);
}
