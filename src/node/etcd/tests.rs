use super::*;
use crate::cli::node::Mode;
use crate::node::packages::PackageManager;
use lab::pki::{Authority, Subject};

/// As kubeadm writes it when a node joins.
const JOINED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: etcd, namespace: kube-system, labels: {component: etcd}}
spec:
  containers:
  - name: etcd
    image: registry.k8s.io/etcd:3.6.8-0
    command:
    - etcd
    - --name=k2
    - --initial-cluster=k1=https://10.10.0.11:2380,k2=https://10.10.0.12:2380
    - --initial-cluster-state=existing
    - --snapshot-count=10000
    resources: {requests: {cpu: 100m}}
";

#[test]
fn only_what_etcd_does_not_look_at_any_more_may_differ() {
    let is = as_it_runs(JOINED.as_bytes()).unwrap();
    let upgraded =
        JOINED.replace("    - --initial-cluster-state=existing\n", "").replace("k1=https://10.10.0.11:2380,k2", "k2");
    assert_eq!(as_it_runs(upgraded.as_bytes()).unwrap(), is);
    for (old, new) in [
        ("3.6.8-0", "3.6.9-0"),
        ("--snapshot-count=10000", "--snapshot-count=20000"),
        ("    - --snapshot-count=10000\n", ""),
        ("--name=k2", "--name=k2\n    - --initial-cluster-token=x"),
        ("cpu: 100m", "cpu: 200m"),
    ] {
        assert!(JOINED.contains(old));
        assert_ne!(as_it_runs(upgraded.replace(old, new).as_bytes()).unwrap(), is, "{new}");
    }
    assert!(as_it_runs(b"no pod: [").is_err());
}

#[test]
fn kubeadm_is_told_of_this_node_and_the_target() {
    let order = Upgrade::bare("v1.36.3", Mode::Node);
    let address = "10.10.0.12:6443".parse().unwrap();
    let object = |value: Value| value.as_object().unwrap().clone();
    let given =
        json!({"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "kubernetesVersion": "v1.36.1"});
    let text = documents(&object(given), &order, "k2", address).unwrap();
    let (cluster, node) = text.split_once("---\n").unwrap();
    let (cluster, node): (Value, Value) = (serde_json::from_str(cluster).unwrap(), serde_json::from_str(node).unwrap());
    assert_eq!((&cluster["kubernetesVersion"], &node["apiVersion"]), (&json!("v1.36.3"), &cluster["apiVersion"]));
    assert_eq!(node["localAPIEndpoint"], json!({"advertiseAddress": "10.10.0.12", "bindPort": 6443}));
    assert!(documents(&JsonObject::new(), &order, "k2", address).unwrap_err().contains("no apiVersion"));
}

#[test]
fn certificates_that_end_before_the_apiservers_are_named() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::at(root.path().to_owned(), PackageManager::Apt);
    let pki = host.path(PKI);
    let authority = Authority::create(&root.path().join("ca"), "etcd-ca").unwrap();
    let sign = |name: &str, days: u64| {
        let subject = Subject { name, groups: &[], ..Default::default() };
        let pair = authority.sign(&root.path().join("new"), &subject, Duration::from_secs(days * 86_400)).unwrap();
        std::fs::create_dir_all(pki.join("etcd")).unwrap();
        std::fs::copy(pair.cert, pki.join(name)).unwrap();
    };
    for name in ["apiserver.crt", "etcd/server.crt", "etcd/peer.crt", "etcd/healthcheck-client.crt"] {
        sign(name, 365);
    }
    sign("etcd/peer.crt", 364);
    assert!(outlived(&host).unwrap().is_empty(), "nobody here can sign");
    std::fs::write(pki.join("etcd/ca.key"), "").unwrap();
    assert_eq!(outlived(&host).unwrap(), ["etcd-peer"]);
    sign("etcd/peer.crt", 365);
    assert!(outlived(&host).unwrap().is_empty());
    // Some do without it.
    std::fs::remove_file(pki.join("etcd/healthcheck-client.crt")).unwrap();
    assert!(outlived(&host).unwrap().is_empty());
    std::fs::write(pki.join("etcd/server.crt"), "torn").unwrap();
    assert!(outlived(&host).unwrap_err().to_string().contains("etcd/server.crt"));
}
