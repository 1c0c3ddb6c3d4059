//! What is read of a real apiserver that gives only a part, or is about to go, and what the rule says of that.

use lab::api::{Api, Spec};
use lab::process::until;
use quorate::access::Access;
use quorate::config::Config;
use quorate::{lock, observe};
use quorum_safety::fixture::{self, Cluster};
use quorum_safety::{Code, Disruption, Fact, Mine, NodeName};
use serde_json::json;
use std::ops::ControlFlow;
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

/// The codes of all reasons against an upgrade of k2.
fn codes(cluster: &Cluster) -> Vec<Code> {
    cluster.judge(&Disruption::Upgrade("k2".into())).reasons().iter().map(|reason| reason.code).collect()
}

fn start(apiserver_args: &[&str]) -> Api {
    drop(rustls::crypto::ring::default_provider().install_default());
    let apiserver_args = apiserver_args.iter().map(ToString::to_string).collect();
    Api::start(Spec { apiserver_args, ..Spec::default() }).unwrap()
}

#[tokio::test]
async fn what_an_account_may_not_read_is_unknown_and_holds() {
    let api = start(&[]);
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "k1", "labels": {"node-role.kubernetes.io/control-plane": ""}}});
    api.apply(&node.to_string()).unwrap();
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "default"}});
    api.apply(&account.to_string()).unwrap();
    let kubeconfig = api.kubeconfig_for("default", "nobody").unwrap();
    let client = Access::from_file(&kubeconfig, "default").await.unwrap().live(&[]).await.unwrap();

    let mut whole = fixture::healthy(3);
    let view = observe::cluster::observe(&client, ANSWER).await;
    (whole.seen.nodes, whole.seen.cluster_uid) = (view.nodes, view.uid);
    let config = Config { kured: "auto".to_owned(), ..Config::default() };
    whole.in_flight = lock::observe(&client, "default", &config, Mine::Nothing).await;
    let said = codes(&whole);
    for code in
        [Code::NodesUnknown, Code::ClusterUnknown, Code::LeaseUnknown, Code::KuredUnknown, Code::KillSwitchUnknown]
    {
        assert!(said.contains(&code), "{code}: {said:?}");
    }

    let defragment = whole.judge(&Disruption::Defragment(fixture::id(1)));
    assert!(defragment.reasons().iter().any(|reason| reason.code == Code::SnapshotLeaseUnknown), "{defragment:?}");

    // Nodes may be read now, pods may not.
    api.kubectl(["create", "clusterrole", "nodes", "--verb=list", "--resource=nodes"]).unwrap();
    api.kubectl(["create", "clusterrolebinding", "nodes", "--clusterrole=nodes", "--serviceaccount=default:nobody"])
        .unwrap();
    let end = tokio::time::Instant::now() + PATIENCE;
    let nodes = loop {
        if let Fact::Known(nodes) = observe::cluster::observe(&client, ANSWER).await.nodes {
            break nodes;
        }
        assert!(tokio::time::Instant::now() < end, "the role does not take effect");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(matches!(&nodes[0].static_pods, Fact::Unknown(why) if why.contains("pods is forbidden")), "{nodes:?}");
    let whole = fixture::healthy(3).on_node("k1", |view| view.static_pods = nodes[0].static_pods.clone());
    assert!(codes(&whole).contains(&Code::StaticPodsUnknown));
}

#[test]
fn an_apiserver_that_is_told_to_stop_is_not_ready_and_one_that_is_gone_does_not_answer() {
    let api = start(&["--shutdown-delay-duration=15s"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let access = runtime.block_on(Access::from_file(api.kubeconfig().unwrap(), "default")).unwrap();
    let servers = [(NodeName::from("k1"), api.address(1).to_string())];
    // Its apiserver is k1's, and the only one but the target's.
    let judged = |wanted: Code| {
        let mut whole = fixture::healthy(3);
        whole.seen.apiservers.retain(|view| view.node == "k2".into());
        whole.seen.apiservers.extend(runtime.block_on(observe::apiserver::observe(&access, &servers, ANSWER)));
        let said = codes(&whole);
        if said.contains(&wanted) {
            ControlFlow::Break(said)
        } else {
            ControlFlow::Continue(anyhow::anyhow!("{said:?}"))
        }
    };
    std::thread::scope(|scope| {
        // It answers for a while, and says that it is about to go; its watches hold it longer.
        let stopping = scope.spawn(|| api.apiserver(1).unwrap().stop(PATIENCE * 2));
        let said = until("/readyz fails", PATIENCE, || Ok(judged(Code::ApiserverNotReady))).unwrap();
        assert!(said.contains(&Code::NoOtherApiserver), "{said:?}");
        stopping.join().unwrap().unwrap();
    });
    let said = until("nobody answers", PATIENCE, || Ok(judged(Code::ApiserverUnanswered))).unwrap();
    assert!(said.contains(&Code::NoOtherApiserver), "{said:?}");
}

/// As behind a balancer, or a rule that hands connections over: the certificate says who answers.
#[test]
fn a_peer_that_answers_in_an_apiservers_place_is_not_taken_for_it() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let api = Api::start(Spec { apiservers: 2, ..Spec::default() }).unwrap();
    let (place, peer) = (api.address(9), api.address(2));
    lab::forward::pass_on((place, 6443).into(), (peer, 6443).into()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let access = runtime.block_on(Access::from_file(api.kubeconfig().unwrap(), "default")).unwrap();
    let servers = [("k1", api.address(1)), ("k2", peer), ("k9", place)];
    let servers = servers.map(|(name, address)| (NodeName::from(name), address.to_string()));
    let views = runtime.block_on(observe::apiserver::observe(&access, &servers, ANSWER));
    let ready: Vec<&Fact<bool>> = views.iter().map(|view| &view.ready).collect();
    let [Fact::Known(true), Fact::Known(true), Fact::Unknown(why)] = ready.as_slice() else { panic!("{views:#?}") };
    assert!(why.contains("not valid for name"), "{why}");
}
