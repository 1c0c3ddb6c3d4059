//! Backups in the pods of Jobs: the real Lease, the real authorizer. No kubelet runs: what one writes of nodes and pods is written by the test.

use super::*;
use crate::members::job::{configure, kured};
use lab::api::{Api, Spec as ApiSpec};

struct Stage {
    api: Api,
    kubeconfig: PathBuf,
    store: TempDir,
}

impl Stage {
    fn new() -> Result<Self> {
        let api = Api::start(ApiSpec { etcd_members: 3, apiservers: 3, audit: true, ..ApiSpec::default() })?;
        api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")])?;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "quorate"}});
        api.apply(&account.to_string())?;
        let kubeconfig = api.kubeconfig_for("quorate", "quorate-backup")?;
        let stage = Self { api, kubeconfig, store: TempDir::new()? };
        for number in 1..=3_u8 {
            let (name, labels) = (format!("k{number}"), json!({"node-role.kubernetes.io/control-plane": ""}));
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
            stage.api.apply(&node.to_string())?;
            stage.api.set_node_ready(&name, stage.api.address(number))?;
            let info = json!({"nodeInfo": {"bootID": "boot-1", "kubeletVersion": "v1.36.1"}});
            stage.patch("node", &name, "default", &info)?;
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("backup-{name}"), "namespace": "quorate"},
                "spec": {"nodeName": name, "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]},
            });
            stage.api.apply(&pod.to_string())?;
            stage.api.set_pod_ready("quorate", &format!("backup-{name}"))?;
        }
        stage.configure("auto")?;
        Ok(stage)
    }

    fn configure(&self, kured: &str) -> Result<()> {
        let config =
            format!("backup: {{directory: {}, compression: none}}\nkured: {kured}\n", self.store.path().display());
        configure(&self.api, &config)
    }

    /// kured's DaemonSet, which the configuration names from here on.
    fn kured(&self) -> Result<()> {
        kured(&self.api)?;
        self.configure("kube-system/kured")
    }

    fn patch(&self, kind: &str, name: &str, namespace: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        let args = ["patch", kind, name, "-n", namespace, "--subresource=status", "--type=strategic", "-p", &patch];
        self.api.kubectl(args).map(drop)
    }

    fn command(&self, node: &str, args: &[&str]) -> Result<Vec<String>> {
        let pod = format!("backup-{node}");
        let uid = self.api.kubectl(["get", "pod", &pod, "-n", "quorate", "-o", "jsonpath={.metadata.uid}"])?;
        let mut words = vec![
            "-u".to_owned(),
            "KUBERNETES_SERVICE_HOST".to_owned(),
            "QUORATE_LOG=warn,quorate=info".to_owned(),
            format!("QUORATE_NODE_NAME={node}"),
            format!("QUORATE_POD_NAME={pod}"),
            format!("QUORATE_POD_UID={uid}"),
            env!("CARGO_BIN_EXE_quorate").to_owned(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
        ];
        words.extend(["etcd", "backup", "--in-job"].map(str::to_owned));
        words.push(format!("--kubernetes-dir={}", self.api.etcd().dir().display()));
        words.extend(args.iter().map(ToString::to_string));
        Ok(words)
    }

    fn run(&self, node: &str, args: &[&str]) -> Result<Said> {
        Ok(Command::new("/usr/bin/env").args(self.command(node, args)?).output()?.into())
    }

    fn begin(&self, node: &str) -> Result<Process> {
        let log = self.api.etcd().dir().join(format!("backup-{node}.log"));
        let process = Process::new(node, "/usr/bin/env".into(), self.command(node, &[])?, log);
        process.start()?;
        Ok(process)
    }

    /// On the host of k1, with the API there, and with nothing but what the API tells of the configuration.
    fn here(&self, state: &Path, args: &[&str]) -> Result<Said> {
        let folder = self.api.etcd().dir();
        fs::create_dir_all(folder.join("manifests"))?;
        let manifest = format!("    - --advertise-client-urls={}\n", self.api.etcd().member(1)?.endpoint());
        fs::write(folder.join("manifests/etcd.yaml"), manifest)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg(format!("--kubeconfig={}", self.api.kubeconfig()?.display())).args(["etcd", "backup", "--here"]);
        command.arg(format!("--kubernetes-dir={}", folder.display())).arg(format!("--state-dir={}", state.display()));
        Ok(command.args(args).env_remove("KUBERNETES_SERVICE_HOST").output()?.into())
    }

    /// Raises the alarm of a full database, or ends it.
    fn no_space(&self, action: &str) -> Result<()> {
        let member = self.api.etcd().member(1)?;
        let alarm = json!({"action": action, "memberID": member.id().to_string(), "alarm": "NOSPACE"});
        member.call("/v3/maintenance/alarm", &alarm).map(drop)
    }

    fn holder(&self, lease: &str) -> Result<String> {
        let args =
            ["get", "lease", lease, "-n", "quorate", "--ignore-not-found", "-o", "jsonpath={.spec.holderIdentity}"];
        self.api.kubectl(args)
    }

    fn published(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(self.store.path())? {
            count += usize::from(entry?.file_name().to_string_lossy().ends_with(".json"));
        }
        Ok(count)
    }
}

/// One at a time; beside no change of etcd; a killed one's Lease is taken over once its pod has ended; by the account of the manifests.
#[test]
fn backups_are_taken_under_their_lease_one_at_a_time() -> Result<()> {
    let stage = Stage::new()?;
    let said = stage.run("k1", &[])?.ended(0, "Backup done");
    assert_eq!((stage.published()?, stage.holder("etcd-snapshot")?), (1, String::new()), "{said:?}");
    stage.kured()?;
    stage.run("k1", &["--list"])?.ended(0, "1 backups, 0 files that are none");

    // Somebody defragments: the Lease of the control plane says so, and a scheduled backup has not succeeded.
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "control-plane-disruption", "namespace": "quorate", "annotations": {"quorate.dev/holder":
            json!({"identity": "they-1", "operation": "defrag-k2", "target": "k2", "actor": "a test", "node": "k3", "bootId": "boot-1",
                "step": {"name": "acquired", "touched": false}, "since": 1, "stepSince": 1}).to_string()}},
        "spec": {"holderIdentity": "they-1", "leaseDurationSeconds": 60}});
    stage.api.apply(&lease.to_string())?;
    let said = stage.run("k2", &[])?;
    assert!(said.code == Some(11) || said.code == Some(12), "{said:?}");
    assert_eq!((stage.published()?, stage.holder("etcd-snapshot")?), (1, String::new()), "{said:?}");
    assert!(said.err.contains("--without-lease") || said.out.contains("--without-lease"), "{said:?}");
    // On a host the override goes past it, and past a database that takes no Lease; each use is on record.
    let state = TempDir::new()?;
    stage.here(state.path(), &[])?.ended(2, "--without-lease --because");
    let past = ["--without-lease", "--because", "a test: nobody is at it"];
    stage.here(state.path(), &past)?.ended(0, "Backup done");
    stage.api.kubectl(["delete", "lease", "control-plane-disruption", "-n", "quorate"])?;
    stage.no_space("ACTIVATE")?;
    assert!(stage.api.apply(&lease.to_string()).is_err(), "a full database takes nothing");
    let full = until("it is of another second", PATIENCE, || {
        let said = stage.here(state.path(), &past)?;
        let taken = said.out.contains("it is there already");
        Ok(if taken { ControlFlow::Continue(anyhow!("{said:?}")) } else { ControlFlow::Break(said) })
    });
    stage.no_space("DEACTIVATE")?;
    full?.ended(0, "Backup done");
    let recorded = fs::read_to_string(state.path().join("overrides.jsonl"))?;
    assert_eq!(recorded.lines().filter(|line| line.contains("nobody is at it")).count(), 2, "{recorded}");
    assert_eq!(stage.published()?, 3);

    // Killed while it holds the Lease: frozen by its member first, so that it is there to be killed.
    for member in stage.api.etcd().members() {
        member.wait_healthy(PATIENCE)?;
    }
    let first = stage.begin("k1")?;
    until("it holds the Lease", PATIENCE, || {
        let holder = stage.holder("etcd-snapshot")?;
        let held = holder.starts_with("backup/k1/");
        if !held {
            first.running()?;
        }
        Ok(if held { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{holder}")) })
    })?;
    first.pause()?;
    let second = stage.begin("k2")?;
    until("the second waits", PATIENCE, || {
        second.running()?;
        let log = fs::read_to_string(stage.api.etcd().dir().join("backup-k2.log"))?;
        let waits = log.contains("Waiting for the Lease");
        Ok(if waits { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!(log)) })
    })?;
    let before = stage.published()?;
    assert!(stage.holder("etcd-snapshot")?.starts_with("backup/k1/"));
    first.kill()?;
    let ended = json!({"name": "quorate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 137}}});
    stage.patch("pod", "backup-k1", "quorate", &json!({"phase": "Failed", "containerStatuses": [ended]}))?;
    until("the second has ended", PATIENCE, || {
        Ok(match second.running() {
            Ok(()) => ControlFlow::Continue(anyhow!("it runs")),
            Err(_) => ControlFlow::Break(()),
        })
    })?;
    let log = fs::read_to_string(stage.api.etcd().dir().join("backup-k2.log"))?;
    assert!(log.contains("Backup done"), "{log}");
    assert_eq!((stage.published()?, stage.holder("etcd-snapshot")?), (before + 1, String::new()), "{log}");

    let events = stage.api.audit_events()?;
    let own = "system:serviceaccount:quorate:quorate-backup";
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["user"]["username"] == own && event["responseStatus"]["code"] == 403)
        .collect();
    assert!(denied.is_empty(), "{denied:#?}");
    Ok(())
}
