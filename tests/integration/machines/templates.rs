//! The templates as they are, by whoever has nothing but kubectl: their Jobs are told no apiserver's address and find them behind the Service.

use super::backup::{ended, somewhere_to_go};
use super::stage::Stage;
use super::story::story;
use serde_json::Value;
use std::collections::BTreeMap;

/// All that can be started as they are; of a node's own Job the arguments say what it is about.
const TEMPLATES: [&str; 6] = ["gate", "members", "defrag", "backup", "reconcile", "step"];

/// Cluster DNS as far as it is looked at: a Service and an endpoint of it that is ready. The machines have none that answers.
const DNS: &str = "
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {ports: [{name: dns, port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-lab, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: [192.0.2.53], conditions: {ready: true}}]
";

/// What the Job of each has said, and whether it is done.
pub(super) type Templates = BTreeMap<&'static str, (bool, String)>;

/// Runs each, the configuration naming kured's DaemonSet meanwhile. Of upgrades it names no version: that Job refuses. From here on there is
/// cluster DNS.
pub(super) fn templates(stage: &Stage) -> Templates {
    stage.apply(DNS);
    somewhere_to_go(stage);
    stage.configure("kured: kube-system/kured");
    let run = |template: &'static str| {
        let job = format!("plain-{template}");
        stage.kubectl(["-n", "quorate", "create", "job", &format!("--from=cronjob/quorate-{template}"), &job]);
        let done = ended(stage, &job);
        let log = stage.kubectl(["-n", "quorate", "logs", &format!("job/{job}")]);
        // What is looked at later are the Jobs of upgrades.
        stage.kubectl(["-n", "quorate", "delete", "job", &job]);
        (template, (done, log))
    };
    let said = TEMPLATES.map(run).into();
    stage.configure("kured: auto");
    said
}

/// The last document that the Job of a template printed.
fn document(template: &str) -> Value {
    let (done, log) = &story().templates[template];
    assert!(done, "{template}: {log}");
    let last = log.lines().rev().find(|line| line.starts_with('{'));
    serde_json::from_str(last.unwrap_or_else(|| panic!("{template}: {log}"))).unwrap()
}

#[test]
fn each_template_does_its_work_with_kubectl_alone() {
    let gate = document("gate");
    assert_eq!((&gate["kind"], gate["nodes"].as_array().unwrap().len()), (&"Status".into(), 4), "{gate}");
    let list = document("members");
    assert_eq!((&list["kind"], list["members"].as_array().unwrap().len()), (&"EtcdMembers".into(), 3), "{list}");
    assert!(story().templates.values().all(|(done, _)| *done), "{:#?}", story().templates);
    let words = [
        ("backup", "Backup done"),
        ("defrag", r#""kind":"EtcdDefragPlan""#),
        ("reconcile", "nothing is half done"),
        ("step", "no version to upgrade to: name one with --to, or as `upgrade.target`"),
    ];
    for (template, wanted) in words {
        let (_, log) = &story().templates[template];
        assert!(log.contains(wanted), "{template}: {log}");
    }
}
