//! Workloads at zero while a node is worked on, under the Lease and by the accounts that do it, with the rights that
//! kustomize/components/quiesce gives and no others (incidents R04 and R13).

use super::place::Place;
use super::reconcile::{events, note, reconcile};
use super::{NOW, nobody_looks, text};
use anyhow::{Result, anyhow};
use lab::api::{Api, Spec};
use lab::process::until;
use quorate::access::Access;
use quorate::clock::Clock;
use quorate::config::Config;
use quorate::lock::{CONTROL_PLANE, Outcome, hold};
use quorate::quiesce;
use quorum_safety::Fact;
use quorum_safety::lock::LeaseView;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

const MARK: &str = "quorate.dev/quiesced";
const TARGET: &str = "v1.36.3";
const OPERATION: &str = "upgrade-v1.36.3";

/// What is installed, and a namespace `shop`.
fn place(spec: Spec, pods: &[&str]) -> Result<Place> {
    let place = Place::new(Arc::new(Api::start(spec)?), "quorate")?;
    place.api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")])?;
    pods.iter().try_for_each(|pod| place.node_with_pod(pod, "boot-1"))?;
    place.api.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}")?;
    Ok(place)
}

const COMPONENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kustomize/components/quiesce/rbac.yaml");

/// A workload whose pods no node takes, so that they come and go without a kubelet.
fn workload(place: &Place, kind: &str, name: &str, replicas: u32) -> Result<()> {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"nodeSelector": {"nowhere": "true"}, "containers": [{"name": "c", "image": "localhost/operator:dev"}]},
        }},
    });
    if kind == "StatefulSet" {
        object["spec"]["podManagementPolicy"] = json!("Parallel");
    }
    place.api.apply(&object.to_string()).map(drop)
}

/// The workload as it is now.
fn get(place: &Place, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&place.api.kubectl(["-n", "shop", "get", kind, name, "-o", "json"])?)?)
}

/// Its replicas, and those that its mark says.
fn state(place: &Place, kind: &str, name: &str) -> Result<(u64, Option<u64>)> {
    let object = get(place, kind, name)?;
    let record = object["metadata"]["annotations"][MARK].as_str().map(serde_json::from_str::<Value>).transpose()?;
    // The label is how it is found, and the annotation what it had: one is never there without the other.
    assert_eq!(object["metadata"]["labels"][MARK] == "true", record.is_some(), "{object}");
    let replicas = object["spec"]["replicas"].as_u64().ok_or_else(|| anyhow!("no replicas: {object}"))?;
    Ok((replicas, record.and_then(|record| record["replicas"].as_u64())))
}

/// Waits until its controller has this many pods of it.
fn pods_become(place: &Place, kind: &str, name: &str, wanted: u64) -> Result<()> {
    until(&format!("{kind} {name} has {wanted} pods"), Duration::from_secs(60), || {
        let status = &get(place, kind, name)?["status"];
        Ok(match status["replicas"].as_u64().unwrap_or(0) {
            found if found == wanted => ControlFlow::Break(()),
            found => ControlFlow::Continue(anyhow!("it has {found}")),
        })
    })
}

fn scale(place: &Place, kind: &str, name: &str, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    place.api.kubectl(["-n", "shop", "scale", kind, name, &replicas]).map(drop)
}

async fn access_as(place: &Place, account: &str) -> Result<Access> {
    Ok(Access::from_file(&place.api.kubeconfig_for("quorate", account)?, "quorate").await?)
}

/// What an account has asked of workloads and was given, by the audit log: `verb resource`, each as often as it was.
fn asked(place: &Place, account: &str) -> Result<Vec<String>> {
    let user = format!("system:serviceaccount:quorate:{account}");
    let events = place.api.audit_events()?;
    let asked = events.iter().filter(|event| {
        event["user"]["username"] == user.as_str()
            && event["objectRef"]["apiGroup"] == "apps"
            && event["objectRef"]["resource"] != "daemonsets"
            && event["responseStatus"]["code"] == 200
            && !event["requestURI"].as_str().is_some_and(|uri| uri.contains("dryRun=All"))
    });
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    Ok(asked.map(|event| format!("{} {}", text(&event["verb"]), text(&event["objectRef"]["resource"]))).collect())
}

#[tokio::test]
async fn r04_listed_operators_are_at_zero_only_while_a_node_is_worked_on() -> Result<()> {
    let controller_manager_args = vec!["--node-monitor-grace-period=2h".to_owned()];
    let spec = Spec { controllers: true, audit: true, controller_manager_args, ..Spec::default() };
    let place = place(spec, &["cp1"])?;
    for (kind, name, replicas) in [
        ("Deployment", "operator", 2),
        ("StatefulSet", "broker", 3),
        ("Deployment", "asleep", 0),
        ("Deployment", "other", 1),
    ] {
        workload(&place, kind, name, replicas)?;
        pods_become(&place, kind, name, replicas.into())?;
    }
    let config = Config::parse(
        "upgrade: {quiesce: [{namespace: shop, name: operator}, {namespace: shop, name: broker, kind: StatefulSet},
            {namespace: shop, name: asleep}, {namespace: shop, name: gone}]}",
    )?;
    let (access, clock) = (access_as(&place, "quorate-step").await?, Clock::system());
    // Without the component: named before anything is touched. With nothing listed nothing is asked that would be denied.
    let blockers = quiesce::rehearse(&access, &config, clock).await?.blockers;
    assert!(blockers.iter().any(|line| line.contains("cannot read Deployment shop/operator")), "{blockers:#?}");
    assert!(blockers.iter().all(|line| line.contains("kustomize/components/quiesce")), "{blockers:#?}");
    assert_eq!(quiesce::rehearse(&access, &Config::default(), clock).await?, quiesce::Rehearsal::default());
    place.api.kubectl(["apply", "-f", COMPONENT])?;
    let rehearsal = quiesce::rehearse(&access, &config, clock).await?;
    assert_eq!(rehearsal.blockers, Vec::<String>::new());
    assert_eq!(
        rehearsal.told,
        [
            "Deployment shop/operator would be scaled from 2 to zero",
            "StatefulSet shop/broker would be scaled from 3 to zero",
            "Deployment shop/asleep: at zero before, and left alone",
            "Deployment shop/gone, which `upgrade.quiesce` names, does not exist: there is nothing to scale",
        ]
    );
    assert_eq!(state(&place, "Deployment", "operator")?, (2, None), "a rehearsal changes nothing");

    let leases = place.leases_as("quorate-step").await?;
    let who = place.claimant("cp1", OPERATION, "cp2").await?;
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &who, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    let holder = held.guard.identity().await;
    let told = quiesce::quiesce(&access, &config, &holder, clock.now(), &held.guard).await?;
    assert_eq!(
        told.first().map(String::as_str),
        Some("Deployment shop/operator: scaled from 2 to zero for the time being")
    );
    pods_become(&place, "Deployment", "operator", 0)?;
    pods_become(&place, "StatefulSet", "broker", 0)?;
    let marked = [("Deployment", "operator", (0, Some(2))), ("StatefulSet", "broker", (0, Some(3)))];
    let alone = [("Deployment", "asleep", (0, None)), ("Deployment", "other", (1, None))];
    for (kind, name, expected) in marked.iter().chain(&alone) {
        assert_eq!(state(&place, kind, name)?, *expected, "{name}");
    }
    let Fact::Known(seen) = quiesce::seen(&access, &config, clock).await else { panic!("unknown") };
    assert_eq!(
        seen,
        [
            format!("Deployment shop/operator (from 2, by {holder})"),
            format!("StatefulSet shop/broker (from 3, by {holder})")
        ]
    );
    // Once more, and by another holder: the zero that is there now is never what it had.
    quiesce::quiesce(&access, &config, &holder, clock.now(), &held.guard).await?;
    quiesce::quiesce(&access, &config, "upgrade-v1.36.3/quorate-cp2/successor", clock.now(), &held.guard).await?;
    for (kind, name, expected) in marked.iter().chain(&alone) {
        assert_eq!(state(&place, kind, name)?, *expected, "{name}");
    }

    // The configuration has forgotten them: what has the mark comes back all the same.
    let restored = quiesce::restore(&access, &Config::default(), &held.guard).await;
    assert!(restored.failed.is_empty(), "{:?}", restored.failed);
    assert_eq!(
        restored.told,
        ["Deployment shop/operator: scaled back to 2", "StatefulSet shop/broker: scaled back to 3"]
    );
    for (kind, name, replicas) in
        [("Deployment", "operator", 2), ("StatefulSet", "broker", 3), ("Deployment", "asleep", 0)]
    {
        pods_become(&place, kind, name, replicas)?;
        assert_eq!(state(&place, kind, name)?, (replicas, None), "{name}");
    }
    held.release().await?;
    // The component gives what was used and no more; mark and scale were one write each, for two workloads and three writes.
    let asked = asked(&place, "quorate-step")?;
    let used: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    let wanted = ["get", "list", "patch"].map(|verb| ["deployments", "statefulsets"].map(|of| format!("{verb} {of}")));
    assert_eq!(used, wanted.iter().flatten().map(String::as_str).collect());
    assert_eq!(asked.iter().filter(|line| line.starts_with("patch")).count(), 6, "{asked:?}");
    Ok(())
}

/// A control plane node, as far as its kubelet and its mirror pods would tell.
fn control_plane_node(place: &Place, short: &str) -> Result<()> {
    let name = place.node(short).0;
    place.api.kubectl(["label", "node", &name, "node-role.kubernetes.io/control-plane="])?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kube-system"}});
    place.api.apply(&account.to_string())?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": format!("kube-apiserver-{name}"), "namespace": "kube-system",
            "labels": {"tier": "control-plane", "component": "kube-apiserver"}, "annotations": {"kubernetes.io/config.hash": "1"},
        },
        "spec": {"nodeName": name, "containers": [{"name": "kube-apiserver", "image": "registry.k8s.io/kube-apiserver:v1.36.1"}]},
    });
    place.api.apply(&pod.to_string()).map(drop)
}

/// One run of the step that finishes or undoes, as in the pod of that name, which ends with it.
fn finish(place: &Place, pod: &str, target: &str) -> Result<Output> {
    let uid = place.api.kubectl(["get", "pod", pod, "-n", "quorate", "-o", "jsonpath={.metadata.uid}"])?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.arg("--kubeconfig").arg(place.api.kubeconfig_for("quorate", "quorate-step")?);
    let node = format!("--node={}", place.node(target));
    command.args(["--namespace", "quorate", "step", "control-plane", "--to", TARGET, &node, "--finish-only"]);
    command.env("QUORATE_NODE_NAME", place.node(pod).0).env("QUORATE_POD_NAME", pod).env("QUORATE_POD_UID", uid);
    let said = command.env_remove("KUBERNETES_SERVICE_HOST").output()?;
    place.pod_ended(pod)?;
    Ok(said)
}

/// The first actor is killed between quiesce and restore, with SIGKILL; then one lacks the rights to restore; then one restores. Later it
/// all was left without a Lease, and `quorate reconcile` restores.
#[tokio::test]
async fn r13_what_was_quiesced_is_restored_by_whoever_runs_next() -> Result<()> {
    let place = place(Spec { audit: true, ..Spec::default() }, &["cp1", "cp2", "cp3", "cp4"])?;
    control_plane_node(&place, "cp2")?;
    for pod in ["cp1", "cp2", "cp3", "cp4"] {
        let told = json!({"nodeInfo": {"kubeletVersion": "v1.36.1"}});
        place.patch_status("node", &place.node(pod).0, &told)?;
        let image = json!({"name": "quorate", "image": "", "imageID": "sha256:1", "ready": true, "restartCount": 0});
        place.patch_status("pod", pod, &json!({"containerStatuses": [image]}))?;
    }
    let kubeadm = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
        "data": {"ClusterConfiguration": "kubernetesVersion: v1.36.1"}});
    place.api.apply(&kubeadm.to_string())?;
    place.api.kubectl(["apply", "-f", COMPONENT])?;
    for (kind, name, replicas) in [("Deployment", "operator", 2), ("StatefulSet", "broker", 3)] {
        workload(&place, kind, name, replicas)?;
    }
    let config =
        "upgrade: {quiesce: [{namespace: shop, name: operator}, {namespace: shop, name: broker, kind: StatefulSet}]}";
    let both = |operator, broker| -> Result<()> {
        assert_eq!(state(&place, "Deployment", "operator")?, operator);
        assert_eq!(state(&place, "StatefulSet", "broker")?, broker);
        Ok(())
    };

    let killed = place.process_that_quiesces("cp1", OPERATION, "cp2", config)?;
    killed.says("got")?;
    killed.process.kill()?;
    place.pod_ended("cp1")?;
    both((0, Some(2)), (0, Some(3)))?;
    // While its Lease names a holder nobody restores in passing.
    reconcile(&place, "cp1")?;
    both((0, Some(2)), (0, Some(3)))?;

    // What cannot be restored keeps Lease and cordon, and says what to type; the other is back all the same.
    let spoil =
        |text: &str| place.api.kubectl(["-n", "shop", "annotate", "--overwrite", "deployment", "operator", text]);
    let good = get(&place, "Deployment", "operator")?["metadata"]["annotations"][MARK].as_str().unwrap().to_owned();
    spoil(&format!("{MARK}=two"))?;
    let said = finish(&place, "cp3", "cp2")?;
    assert_eq!(said.status.code(), Some(20), "{}", text(&said));
    for word in [
        "StatefulSet shop/broker: scaled back to 3",
        "kubectl -n shop scale deployment operator",
        "quorate upgrade --to v1.36.3",
    ] {
        assert!(text(&said).contains(word), "no `{word}` in {}", text(&said));
    }
    assert_eq!(get(&place, "Deployment", "operator")?["spec"]["replicas"], 0);
    assert_eq!(state(&place, "StatefulSet", "broker")?, (3, None));
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Held { .. }));
    let node =
        |short: &str| place.api.kubectl(["get", "node", &place.node(short).0, "-o", "jsonpath={.spec.unschedulable}"]);
    assert_eq!(node("cp2")?, "true");

    spoil(&format!("{MARK}={good}"))?;
    let said = finish(&place, "cp4", "cp2")?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    assert!(text(&said).contains("Deployment shop/operator: scaled back to 2"), "{}", text(&said));
    both((2, None), (3, None))?;
    assert_eq!(node("cp2")?, "");
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));

    // Left again, and by hand the cordon is lifted and the Lease deleted; somebody has scaled one of the two.
    place.node_with_pod("cp5", "boot-1")?;
    let killed = place.process_that_quiesces("cp5", OPERATION, "cp2", config)?;
    killed.says("got")?;
    killed.process.kill()?;
    place.pod_ended("cp5")?;
    place.api.kubectl(["uncordon", &place.node("cp2").0])?;
    place.api.kubectl(["-n", "quorate", "delete", "lease", CONTROL_PLANE])?;
    scale(&place, "Deployment", "operator", 5)?;
    both((5, Some(2)), (0, Some(3)))?;
    let said = reconcile(&place, "cp2")?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    both((5, None), (3, None))?;
    let told = events(&place)?;
    let restored: Vec<&String> =
        told.iter().filter(|event| event.0.starts_with("QuorateRestored")).map(|event| &event.1).collect();
    assert_eq!(restored.len(), 2, "{told:#?}");
    assert!(
        restored.iter().any(|line| line.starts_with("Deployment shop/operator: scaled to 5 by somebody else")),
        "{told:#?}"
    );
    assert!(restored.iter().any(|line| line.starts_with("StatefulSet shop/broker: scaled back to 3")), "{told:#?}");
    // Nothing guessed here either.
    scale(&place, "Deployment", "operator", 0)?;
    spoil(&format!("{MARK}=two"))?;
    place.api.kubectl(["-n", "shop", "label", "deployment", "operator", &format!("{MARK}=true")])?;
    reconcile(&place, "cp2")?;
    let hand = note(&events(&place)?, &format!("QuorateNeedsAHand Warning Lease/{CONTROL_PLANE}"));
    assert!(hand.contains("kubectl -n shop scale deployment operator"), "{hand}");
    let asked = asked(&place, "quorate-reconcile")?;
    let used: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    let wanted = ["list", "patch"].map(|verb| ["deployments", "statefulsets"].map(|of| format!("{verb} {of}")));
    assert_eq!(used, wanted.iter().flatten().map(String::as_str).collect());
    Ok(())
}
