//! The two clauses of proven recovery that are read beside the observation, from real parts: who leads, and whom the load balancer serves.
//! Everything else is well, so that one clause alone is open.

use lab::api::{Api, Spec};
use lab::process::{Process, until};
use quorate::access::Access;
use quorate::clock::Clock;
use quorate::observe::leaders;
use quorate::upgrade::recover::balancer_serves;
use quorum_safety::fixture::{self, Cluster};
use quorum_safety::recovery::{
    ClauseKind, ConfigHash, Expectation, ExpectedPod, LeaderLeases, LoadBalancer, open_clauses,
};
use quorum_safety::{Component, Fact};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);

/// What is open of k1's recovery when all that is observed is well.
fn open(leases: &LeaderLeases, balancer: &LoadBalancer) -> Vec<ClauseKind> {
    let Cluster { seen, policy, .. } = fixture::healthy(3);
    let pod = |component: Component| {
        let image = format!("registry.k8s.io/{}:v1.36.1", component.name());
        (component, ExpectedPod { image, config_hash: ConfigHash::Any })
    };
    let static_pods = Component::ALL.into_iter().map(pod).collect();
    let expected = Expectation { target: "k1".into(), static_pods, load_balancer: true };
    open_clauses(&expected, &seen, leases, balancer, &policy).into_iter().map(|clause| clause.kind).collect()
}

fn led() -> LeaderLeases {
    LeaderLeases { controller_manager: Fact::Known(true), scheduler: Fact::Known(true) }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn start(spec: Spec) -> Api {
    drop(rustls::crypto::ring::default_provider().install_default());
    Api::start(spec).unwrap()
}

fn leases_as(kubeconfig: &Path) -> LeaderLeases {
    wait(async {
        let access = Access::from_file(kubeconfig, "default").await.unwrap();
        leaders::observe(&access, Clock::system(), ANSWER).await
    })
}

/// What is seen and judged of the scheduler's Lease, while the controller-manager leads.
fn scheduler_leads(api: &Api) -> Fact<bool> {
    let leases = leases_as(api.kubeconfig().unwrap());
    assert_eq!(leases.controller_manager, Fact::Known(true));
    let wanted = if leases.scheduler == Fact::Known(true) { vec![] } else { vec![ClauseKind::LeaderLeases] };
    assert_eq!(open(&leases, &LoadBalancer { serves_node: Fact::Known(true) }), wanted);
    leases.scheduler
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler";

/// The scheduler's Lease with another spec.
fn write_lease(api: &Api, spec: &Value) {
    let mut lease = api.request("GET", LEASE, None).unwrap();
    lease["spec"] = spec.clone();
    api.request("PUT", LEASE, Some(&lease)).unwrap();
}

#[track_caller]
fn unknown(fact: &Fact<bool>, why: &str) {
    assert!(matches!(fact, Fact::Unknown(said) if said.contains(why)), "{why}: {fact:?}");
}

#[test]
fn a_leader_that_is_gone_or_not_to_be_told_keeps_a_node_from_being_recovered() {
    let api = start(Spec { controllers: true, ..Spec::default() });
    assert_eq!(scheduler_leads(&api), Fact::Known(true));

    // Who may not read it knows nothing.
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "default"}});
    api.apply(&account.to_string()).unwrap();
    let nobody = leases_as(&api.kubeconfig_for("default", "nobody").unwrap());
    for fact in [&nobody.controller_manager, &nobody.scheduler] {
        unknown(fact, "forbidden");
    }

    // Killed, it holds its Lease until that runs out.
    api.scheduler().unwrap().kill().unwrap();
    until("the scheduler's Lease is stale", PATIENCE, || {
        let leads = scheduler_leads(&api);
        let stale = leads == Fact::Known(false);
        Ok(if stale { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow::anyhow!("{leads:?}")) })
    })
    .unwrap();

    let at = |seconds: i64| {
        let now = Clock::system().now() + jiff::SignedDuration::from_secs(seconds);
        format!("{now:.6}")
    };
    let by =
        |holder: &str, seconds| json!({"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": at(seconds)});
    // It need not be this node's.
    write_lease(&api, &by("k9_8f5c7d0e-5f0b-4a57-9c8a-2f8f6c1f0a11", 0));
    assert_eq!(scheduler_leads(&api), Fact::Known(true));
    write_lease(&api, &by("k9", -60));
    assert_eq!(scheduler_leads(&api), Fact::Known(false));
    write_lease(&api, &by("", 0));
    assert_eq!(scheduler_leads(&api), Fact::Known(false));
    // A clock that is a little ahead is none that is wrong.
    write_lease(&api, &by("k9", 10));
    assert_eq!(scheduler_leads(&api), Fact::Known(true));
    write_lease(&api, &by("k9", 3600));
    unknown(&scheduler_leads(&api), "in the future");
    write_lease(&api, &json!({"holderIdentity": "k9", "leaseDurationSeconds": 15}));
    unknown(&scheduler_leads(&api), "kube-scheduler: it was never renewed");
    write_lease(&api, &json!({"holderIdentity": "k9", "renewTime": at(0)}));
    unknown(&scheduler_leads(&api), "kube-scheduler: it has no duration");
    api.request("DELETE", LEASE, None).unwrap();
    unknown(&scheduler_leads(&api), "not found");

    api.apiserver(1).unwrap().kill().unwrap();
    let leases = leases_as(api.kubeconfig().unwrap());
    for fact in [&leases.controller_manager, &leases.scheduler] {
        unknown(fact, "no apiserver answered");
    }
}

/// A real HAProxy in front of the apiservers of k1 and k2.
struct Balancer {
    process: Process,
    endpoint: String,
    folder: tempfile::TempDir,
}

impl Balancer {
    fn start(api: &Api) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // An address that both certificates name, as kubeadm's name the endpoint.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "global\n  stats socket {}/haproxy.sock mode 600 level admin\n\
             defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
             listen apiservers\n  bind {free}\n  balance roundrobin\n  server k1 {}:6443\n  server k2 {}:6443\n",
            folder.path().display(),
            api.address(1),
            api.address(2)
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let words = ["-db", "-f", file.to_str().unwrap()].map(str::to_owned).to_vec();
        let process = Process::new("haproxy", "haproxy".into(), words, folder.path().join("haproxy.log"));
        process.start().unwrap();
        let balancer = Self { process, endpoint: free.to_string(), folder };
        until("HAProxy listens", PATIENCE, || {
            balancer.process.running()?;
            Ok(match balancer.connect() {
                Ok(_) => ControlFlow::Break(()),
                Err(error) => ControlFlow::Continue(error.into()),
            })
        })
        .unwrap();
        balancer
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.folder.path().join("haproxy.sock"))
    }

    /// `maint`: takes it out; `ready`: takes it back.
    fn set(&self, server: &str, state: &str) {
        let mut socket = self.connect().unwrap();
        writeln!(socket, "set server apiservers/{server} state {state}").unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        assert_eq!(said.trim(), "");
    }
}

#[test]
fn a_node_that_the_load_balancer_does_not_serve_is_not_recovered() {
    let api = start(Spec { apiservers: 2, ..Spec::default() });
    let balancer = Balancer::start(&api);
    let nodes = fixture::healthy(3).seen.nodes;
    // Through k2, which is well throughout.
    let seen_among = |number, nodes: &Fact<_>| {
        let serves = wait(async {
            let access = Access::from_file(api.kubeconfig_at(2).unwrap(), "default").await.unwrap();
            balancer_serves(&access, nodes, &api.address(number).to_string(), ANSWER).await
        });
        let wanted = if serves.serves_node == Fact::Known(true) { vec![] } else { vec![ClauseKind::LoadBalancer] };
        assert_eq!(open(&led(), &serves), wanted);
        serves.serves_node
    };
    let seen = |number| seen_among(number, &nodes);
    let configured = |text: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
            "data": {"ClusterConfiguration": text}});
        api.apply(&map.to_string()).unwrap();
    };

    unknown(&seen(1), "kubeadm-config");
    configured("kubernetesVersion: v1.36.1\n");
    unknown(&seen(1), "names no controlPlaneEndpoint");
    configured(&format!("kubernetesVersion: v1.36.1\ncontrolPlaneEndpoint: {}\n", balancer.endpoint));
    unknown(&seen_among(1, &fixture::unknown()), "no answer within 3 s");

    assert_eq!((seen(1), seen(2)), (Fact::Known(true), Fact::Known(true)));
    balancer.set("k1", "maint");
    assert_eq!((seen(1), seen(2)), (Fact::Known(false), Fact::Known(true)));
    balancer.set("k1", "ready");
    assert_eq!(seen(1), Fact::Known(true));
    // What its own certificate is cannot be told, whoever answers through the balancer.
    api.apiserver(1).unwrap().pause().unwrap();
    unknown(&seen(1), &format!("https://{}:6443/readyz", api.address(1)));
    api.apiserver(1).unwrap().resume().unwrap();
    api.wait_ready(1, PATIENCE).unwrap();
    for server in ["k1", "k2"] {
        balancer.set(server, "maint");
    }
    unknown(&seen(1), &balancer.endpoint);
    balancer.process.kill().unwrap();
    unknown(&seen(1), &balancer.endpoint);
}
