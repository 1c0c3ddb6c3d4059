//! What an upgrade does to etcd: nothing where kubeadm would write its manifest as it is, all that kubeadm does where it would not.

use super::items;
use super::stage::{Stage, until};
use super::story::story;
use serde_json::Value;
use std::collections::BTreeMap;

const MANIFEST: &str = "/etc/kubernetes/manifests/etcd.yaml";
/// A flag as kubeadm writes it, and as somebody has edited it.
const FLAGS: [&str; 2] = ["--snapshot-count=10000", "--snapshot-count=10001"];

/// etcd of each node before the upgrade and after.
pub(super) struct Etcd {
    before: BTreeMap<String, Pod>,
    after: BTreeMap<String, Pod>,
    /// Whether the certificate of k3's etcd ended within the year before the upgrade; then the same of its file and of what it serves.
    ends_soon: [bool; 3],
}

#[derive(Debug, PartialEq, Eq)]
struct Pod {
    /// The id of its container: another one after a restart.
    container: String,
    edited: bool,
}

/// k1's manifest gets another flag, by hand; k3's etcd has a certificate that was not made with the apiserver's.
pub(super) fn prepare(stage: &Stage) -> Etcd {
    let edited = stage.lab.machine(1).unwrap();
    // The kubelet runs every file in the folder, one that is half written too.
    let edit = format!("sed s/{}/{}/ {MANIFEST} >/root/etcd.yaml && mv /root/etcd.yaml {MANIFEST}", FLAGS[0], FLAGS[1]);
    edited.run_checked(["sh", "-ec", &edit]).unwrap();
    until("k1's etcd to run as it was edited", || {
        // Its apiserver has no etcd meanwhile, and the balancer may not have noticed.
        let found = stage.try_get(PODS).map(|pods| ready(&pods));
        let edited = found.as_ref().is_some_and(|found| found.len() == 3 && found["k1"].edited);
        if edited { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let old = stage.lab.machine(3).unwrap();
    let config = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\ncertificateValidityPeriod: 1440h\n";
    old.write_file("/root/kubeadm.yaml", config).unwrap();
    old.run_checked(["kubeadm", "certs", "renew", "etcd-server", "--config=/root/kubeadm.yaml"]).unwrap();
    stage.whole();
    Etcd { before: pods(stage), after: BTreeMap::new(), ends_soon: [ends_soon(stage, FILE), false, false] }
}

/// Waits until the mirror of each etcd says that it is ready.
pub(super) fn all_ready(stage: &Stage) {
    until("the mirrors of etcd to be ready", || {
        let found = stage.try_get(PODS);
        let ready = found.as_ref().is_some_and(|pods| ready(pods).len() == 3);
        if ready { Ok(()) } else { Err(found.map_or_else(String::new, |found| found.to_string())) }
    });
}

impl Etcd {
    pub(super) fn look_again(&mut self, stage: &Stage) {
        self.after = pods(stage);
        let [before, ..] = self.ends_soon;
        self.ends_soon = [before, ends_soon(stage, FILE), ends_soon(stage, SERVED)];
    }
}

const PODS: [&str; 5] = ["pods", "-n", "kube-system", "-l", "component=etcd"];

fn pods(stage: &Stage) -> BTreeMap<String, Pod> {
    ready(&stage.get(PODS))
}

/// etcd's pods that are ready, by node.
fn ready(pods: &Value) -> BTreeMap<String, Pod> {
    let one = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let command = pod["spec"]["containers"][0]["command"].as_array().unwrap();
        let edited = command.iter().any(|word| word == FLAGS[1]);
        let of = |value: &Value| value.as_str().unwrap().to_owned();
        (container["ready"] == true)
            .then(|| (of(&pod["spec"]["nodeName"]), Pod { container: of(&container["containerID"]), edited }))
    };
    items(pods).iter().filter_map(one).collect()
}

const FILE: &str = "cat /etc/kubernetes/pki/etcd/server.crt";
/// A server shows its certificate before it asks for one.
const SERVED: &str = "openssl s_client -connect 127.0.0.1:2379 </dev/null 2>/dev/null || true";

/// Whether the certificate that a command on k3 prints ends within 300 days.
fn ends_soon(stage: &Stage, print: &str) -> bool {
    let check = format!("({print}) | openssl x509 -noout -checkend {}", 300 * 86_400);
    let said = stage.lab.machine(3).unwrap().run(["sh", "-c", &check]).unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    match text.trim() {
        "Certificate will expire" => true,
        "Certificate will not expire" => false,
        _ => panic!("{print}: {said:?}"),
    }
}

/// Its hash never changes, and nobody waits until it does.
#[test]
fn r05_etcd_that_kubeadm_would_write_as_it_is_is_neither_restarted_nor_waited_for() {
    let etcd = &story().etcd;
    assert_eq!(etcd.before.len(), 3);
    for node in ["k2", "k3"] {
        assert_eq!(etcd.before[node], etcd.after[node], "{node}");
    }
    for journal in &story().journals[1..3] {
        assert!(journal.contains("kubeadm would write it just as it is"), "{journal}");
        assert!(!journal.contains("timed out waiting"), "{journal}");
    }
}

#[test]
fn etcd_that_kubeadm_would_write_otherwise_is_left_to_kubeadm() {
    let etcd = &story().etcd;
    assert!(etcd.before["k1"].edited && !etcd.after["k1"].edited, "{}", story().journals[0]);
    assert_ne!(etcd.before["k1"].container, etcd.after["k1"].container);
}

#[test]
fn etcd_gets_its_certificates_without_a_restart() {
    assert_eq!(story().etcd.ends_soon, [true, false, false], "before, then the file and what is served");
}
