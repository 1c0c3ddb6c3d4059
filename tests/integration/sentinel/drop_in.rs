//! The overlay `drop-in`: the names that a bash pipeline had, and a sentinel that works under them.

use super::*;

impl Fleet {
    /// The old CronJobs, by what their account may: the Job of a backup is made from the base's template.
    fn starts_backups(&self) -> Result<()> {
        let api = &self.stage.api;
        let line = r#"jsonpath={range .items[*]}{.metadata.name} {.spec.jobTemplate.spec.template.spec.containers[0].args[*]}{"\n"}{end}"#;
        let old = api.kubectl(["get", "cronjobs", "-n", "default", "-o", line])?;
        assert_eq!(old.lines().collect::<Vec<_>>(), ["backup-etcd etcd backup", "defrag-etcd etcd defrag"]);
        let account = "--as=system:serviceaccount:default:quorate-defrag-all";
        for right in ["list pods", "get pods --subresource=log", "get cronjobs/quorate-defrag"] {
            let words = ["auth", "can-i"].into_iter().chain(right.split(' ')).chain(["-n", "quorate", account]);
            assert_eq!(api.kubectl(words.collect::<Vec<_>>()).with_context(|| right)?.trim(), "yes");
        }
        let kubeconfig = api.kubeconfig_for("default", "quorate-defrag-all")?;
        let words = [
            "-u",
            "KUBERNETES_SERVICE_HOST",
            env!("CARGO_BIN_EXE_quorate"),
            &format!("--kubeconfig={}", kubeconfig.display()),
            "etcd",
            "backup",
        ];
        let log = api.etcd().dir().join("backup-etcd.log");
        let process =
            Process::new("backup-etcd", "/usr/bin/env".into(), words.map(str::to_owned).to_vec(), log.clone());
        process.start()?;
        let job = [
            "get",
            "jobs",
            "-n",
            "quorate",
            "-l",
            "quorate.dev/operation=backup",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ];
        until("a backup's Job", PATIENCE, || {
            process.running()?;
            let made = api.kubectl(job)?;
            let said = || anyhow!("{}", fs::read_to_string(&log).unwrap_or_default());
            Ok(if made.is_empty() { ControlFlow::Continue(said()) } else { ControlFlow::Break(()) })
        })?;
        process.kill()?;
        Ok(())
    }
}

/// As an administrator sees it, and as the pod of a worker runs: its own namespace, its own account, the old file.
#[test]
fn the_drop_in_overlay_keeps_the_old_names_and_works_under_them() -> Result<()> {
    let mut fleet = Fleet::of(1)?;
    fleet.worker()?;
    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/kustomize/overlays/drop-in");
    let api = &fleet.stage.api;
    api.kubectl(["create", "namespace", "kured"])?;
    // Of the test's own set-up, under the names of the base.
    api.kubectl(["delete", "daemonsets", "-n", "quorate", "--all"])?;
    api.kubectl(["delete", "serviceaccount", "quorate-sentinel", "-n", "quorate"])?;
    api.kubectl(["apply", "-k", overlay])?;
    let sets = api.kubectl(["get", "daemonsets", "-n", "kured", "-l", "app=kured-sentinel-gate", "-o", "name"])?;
    assert_eq!(
        sets.lines().collect::<Vec<_>>(),
        ["daemonset.apps/kured-sentinel-gate", "daemonset.apps/kured-sentinel-gate-control-plane"]
    );
    assert_eq!(api.kubectl(["get", "daemonsets", "-n", "quorate", "-o", "name"])?, "");
    let args = api.kubectl([
        "get",
        "daemonset",
        "kured-sentinel-gate",
        "-n",
        "kured",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].args[*]} {.spec.template.metadata.labels.app}",
    ])?;
    assert!(args.ends_with("--gate=/var/run/gated-reboot-required kured-sentinel-gate"), "{args}");

    // Whoever waits for a Lease looks at its holder's pod, which is there.
    for who in ["reconcile", "members", "defrag", "backup", "step"] {
        let account = format!("--as=system:serviceaccount:quorate:quorate-{who}");
        let may = api.kubectl(["auth", "can-i", "get", "pods", "-n", "kured", &account]);
        assert_eq!(may.with_context(|| account)?.trim(), "yes");
    }

    fleet.starts_backups()?;
    let api = &fleet.stage.api;

    // kured, as the pipeline had it.
    api.kubectl(["delete", "daemonset", "kured", "-n", "kube-system"])?;
    let labels = json!({"name": "kured"});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kured", "namespace": "kured"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0",
                "args": ["--period=10m", "--reboot-sentinel=/sentinel/gated-reboot-required"],
                "volumeMounts": [{"name": "sentinel", "mountPath": "/sentinel", "readOnly": true}]}],
            "volumes": [{"name": "sentinel", "hostPath": {"path": "/var/run", "type": "Directory"}}]}}},
    });
    api.apply(&set.to_string())?;
    let boot = json!({"id": "boot-1", "since": 0}).to_string();
    api.kubectl(["annotate", "node", "k1", &format!("quorate.dev/boot={boot}")])?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kured"}});
    api.apply(&account.to_string())?;
    let labels = json!({"app": "kured-sentinel-gate", "quorate.dev/sentinel": "worker"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sentinel-4", "namespace": "kured", "labels": labels},
        "spec": {"nodeName": "w1", "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]},
    });
    api.apply(&pod.to_string())?;
    api.set_pod_ready("kured", "sentinel-4")?;
    // What the overlay says, and times short enough to wait for.
    let own =
        api.kubectl(["get", "configmap", "quorate-config", "-n", "quorate", "-o", "jsonpath={.data.config\\.yaml}"])?;
    assert_eq!(own, "sentinel:\n  namespace: kured\n");
    fleet.configure(&CONFIG.replace("sentinel: {", "sentinel: {namespace: kured, "))?;
    fleet.kubeconfig = fleet.stage.api.kubeconfig_for("kured", "quorate-sentinel")?;
    (fleet.namespace, fleet.gate) = ("kured", "var/run/gated-reboot-required");

    fleet.wants_reboot(4)?;
    fleet.start(4)?;
    fleet.worker_opens()?;
    let slot = fleet.stage.api.kubectl(["get", "lease", "worker-disruption-0", "-n", "quorate", "-o", "json"])?;
    assert!(slot.contains(r#"\"namespace\":\"kured\""#), "whose pod is in namespace kured: {slot}");
    // A process that died is adopted, by what is seen of its pod there; it ends kured's there, and gives back.
    fleet.kureds_pod_in("kured", 4, "kured-w", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.sentinel(4)?.kill()?;
    fleet.start(4)?;
    fleet.says(4, "The Lease is held step=open in boot boot1")?;
    until("kured's pod is deleted", PATIENCE, || {
        let deleted = ["get", "pod", "kured-w", "-n", "kured", "-o", "jsonpath={.metadata.deletionTimestamp}"];
        let deleted = fleet.stage.api.kubectl(deleted)?;
        Ok(if deleted.is_empty() { ControlFlow::Continue(anyhow!("it runs")) } else { ControlFlow::Break(()) })
    })?;
    fleet.stage.api.finish_pod_deletion("kured", "kured-w")?;
    fleet.slot_is_free()?;

    // The table for people finds the pod, too.
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
    status.arg("--kubeconfig").arg(fleet.stage.api.kubeconfig()?).args(["sentinel", "status", "--output=json"]);
    let said = status.env_remove("KUBERNETES_SERVICE_HOST").output()?;
    let fleet_seen: Value = serde_json::from_slice(&said.stdout)?;
    let row = fleet_seen["nodes"].as_array().and_then(|rows| rows.iter().find(|row| row["node"] == "w1"));
    assert_eq!(row.context("w1")?["ready"], true, "{fleet_seen}");
    let denied: Vec<Value> = fleet
        .stage
        .api
        .audit_events()?
        .into_iter()
        .filter(|event| event["user"]["username"] == "system:serviceaccount:kured:quorate-sentinel")
        .filter(|event| event["responseStatus"]["code"] == 403 && event["requestURI"] != "/readyz")
        .collect();
    assert_eq!(denied, Vec::<Value>::new());
    Ok(())
}
