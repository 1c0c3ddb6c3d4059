//! Three real apiservers with three control plane nodes, quorate's sentinel installed, kured and a network there, and a host that wants a
//! reboot: for `make bench`, beside the shell loop that the sentinel replaces. Prints where everything is, as JSON, and ends with its
//! standard input. No kubelet runs: what one writes of nodes and pods is written here.

use anyhow::{Context, Result};
use lab::api::{Api, Spec};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

/// The node whose sentinel is measured.
const NODE: &str = "k3";

fn main() -> Result<()> {
    let api = Api::start(Spec { etcd_members: 3, apiservers: 3, audit: true, ..Spec::default() })?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    api.kubectl(["apply", "-k", &root.join("manifests").display().to_string()])?;
    for file in ["account.yaml", "rbac.yaml"] {
        let file = root.join("kustomize/components/sentinel").join(file);
        api.kubectl(["apply", "-f", &file.display().to_string()])?;
    }
    for namespace in ["quorate", "kube-system"] {
        object(
            &api,
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}),
        )?;
    }
    (1..=3).try_for_each(|number| node(&api, number))?;
    let args = json!(["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"]);
    let mounts = json!([{"name": "run", "mountPath": "/sentinel"}]);
    let volumes = json!([{"name": "run", "hostPath": {"path": "/var/run", "type": "Directory"}}]);
    daemon_set(
        &api,
        "kured",
        json!([{"name": "kured", "image": "kured", "args": args, "volumeMounts": mounts}]),
        volumes,
    )?;
    daemon_set(&api, "cilium", json!([{"name": "cilium", "image": "cilium"}]), json!([]))?;
    let whole = json!({"currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
        "numberAvailable": 3, "observedGeneration": 1});
    patch(&api, "daemonset", "cilium", &whole)?;

    // Asked for last, so that a check which nothing cheaper ends asks for everything.
    object(
        &api,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "quorate-kill-switch", "namespace": "quorate"},
        "data": {"reason": "a benchmark"}}),
    )?;
    let host = api.etcd().dir().join("host");
    fs::create_dir_all(host.join("var/run"))?;
    fs::write(host.join("var/run/reboot-required"), "*** System restart required ***\n")?;
    let audits: Vec<_> = (1..=3).map(|number| api.etcd().dir().join(format!("k{number}/audit.log"))).collect();
    let told = json!({
        "node": NODE, "host": host, "kubernetesDir": api.etcd().dir(), "address": api.address(3),
        "kubeconfig": api.kubeconfig_for("quorate", "quorate-sentinel")?, "audits": audits,
        "kubectl": api.kubectl_program(), "cache": api.etcd().dir().join("kubectl-cache"),
    });
    writeln!(std::io::stdout(), "{told}")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A control plane node as kubeadm makes it, with a pod of the network; those but the last have said long ago since when they are up.
fn node(api: &Api, number: u8) -> Result<()> {
    let name = format!("k{number}");
    let boot = json!({"id": "boot-1", "since": 0}).to_string();
    let annotations = if name == NODE { json!({}) } else { json!({"quorate.dev/boot": boot}) };
    let metadata =
        json!({"name": name, "labels": {"node-role.kubernetes.io/control-plane": ""}, "annotations": annotations});
    object(api, json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))?;
    api.set_node_ready(&name, api.address(number))?;
    patch(api, "node", &name, &json!({"nodeInfo": {"bootID": "boot-1", "kubeletVersion": "v1.36.1"}}))?;
    for component in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        let labels = json!({"component": component, "tier": "control-plane"});
        let annotations = json!({"kubernetes.io/config.hash": component});
        pod(api, &format!("{component}-{name}"), &name, &labels, &annotations)?;
    }
    pod(api, &format!("cilium-{name}"), &name, &json!({"k8s-app": "cilium"}), &json!({}))
}

fn pod(api: &Api, name: &str, node: &str, labels: &Value, annotations: &Value) -> Result<()> {
    object(
        api,
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "kube-system", "labels": labels, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "one", "image": "registry.k8s.io/one:v1"}]}}),
    )?;
    api.set_pod_ready("kube-system", name)
}

fn daemon_set(api: &Api, name: &str, containers: Value, volumes: Value) -> Result<()> {
    let labels = json!({"name": name});
    object(
        api,
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": containers, "volumes": volumes}}}}),
    )
}

fn object(api: &Api, object: Value) -> Result<()> {
    api.apply(&object.to_string()).with_context(|| object.to_string()).map(drop)
}

fn patch(api: &Api, kind: &str, name: &str, status: &Value) -> Result<()> {
    let patch = json!({"status": status}).to_string();
    let args = ["patch", kind, name, "-n", "kube-system", "--subresource=status", "--type=strategic", "-p", &patch];
    api.kubectl(args).map(drop)
}
