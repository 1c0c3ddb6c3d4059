//! The reboot sentinel as a process on real nodes' objects: a real apiserver, three real etcds, the account that its component gives it. The
//! host of each is a folder; kubelet and kured are played by the test, step by step, as issue 6 says that they behave.

mod alerts;
mod alone;
mod drop_in;
mod leader;
mod one;
mod pending;
mod reboot;
mod rights;

use crate::members::job::{Stage, configure};
use anyhow::{Context, Result, anyhow};
use lab::etcd::EtcdVersion;
use lab::process::{Process, until};
use quorate::clock::Clock;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// The gate, on the host.
const GATE: &str = "var/run/quorate-reboot-required";
/// What the host wants, on the host.
const REQUIRED: &str = "var/run/reboot-required";
/// Times short enough to wait for.
const CONFIG: &str =
    "times: {lease: 6s, renew: 2s, stable: 1s}\nsentinel: {interval: 1s, watch: 300ms, soak: 0s, rest: 1h}\n";

/// Three control plane nodes, each with a folder for its host, kured and a network.
struct Fleet {
    stage: Stage,
    kubeconfig: PathBuf,
    hosts: Vec<TempDir>,
    sentinels: Vec<Option<Process>>,
    starts: usize,
    /// The namespace of the sentinels' pods.
    namespace: &'static str,
    /// The gate, on the host.
    gate: &'static str,
    program: PathBuf,
}

/// The fourth is a worker.
fn node_name(number: usize) -> String {
    if number == 4 { "w1".to_owned() } else { format!("k{number}") }
}

/// Installs the base with the sentinel.
fn install(stage: &Stage) -> Result<()> {
    let overlay = crate::manifests::overlay_with("sentinel");
    stage.api.kubectl(["apply", "-k", &overlay.path().display().to_string()]).map(drop)
}

impl Fleet {
    fn new() -> Result<Self> {
        Self::of(3)
    }

    /// The same with so many control plane nodes.
    fn of(control_plane: u8) -> Result<Self> {
        let stage = Stage::sized(EtcdVersion::V3_6, control_plane, Vec::new(), "quorate-members")?;
        install(&stage)?;
        let kubeconfig = stage.api.kubeconfig_for("quorate", "quorate-sentinel")?;
        let hosts = (0..4).map(|_| TempDir::new()).collect::<Result<Vec<_>, _>>()?;
        let sentinels = vec![None, None, None, None];
        let program = PathBuf::from(env!("CARGO_BIN_EXE_quorate"));
        let fleet = Self { stage, kubeconfig, hosts, sentinels, starts: 0, namespace: "quorate", gate: GATE, program };
        fleet.configure(CONFIG)?;
        for number in 1..=usize::from(control_plane) {
            fs::create_dir_all(fleet.host(number).join("var/run"))?;
            fleet.stage.pod(&format!("sentinel-{number}"), &format!("k{number}"))?;
        }
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let renewed = Clock::system().now();
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-system"},
                "spec": {"holderIdentity": "k1", "leaseDurationSeconds": 3600, "renewTime": format!("{renewed:.6}")}});
            fleet.stage.api.apply(&lease.to_string())?;
        }
        fleet.kured(&["--period=1h", "--reboot-sentinel=/sentinel/reboot-required"])?;
        fleet.network(3)?;
        Ok(fleet)
    }

    fn configure(&self, text: &str) -> Result<()> {
        configure(&self.stage.api, text)
    }

    /// kured with these arguments, the host's /var/run mounted as its chart does.
    fn kured(&self, args: &[&str]) -> Result<()> {
        let labels = json!({"name": "kured"});
        let set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kured", "namespace": "kube-system"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0", "args": args,
                    "volumeMounts": [{"name": "sentinel", "mountPath": "/sentinel", "readOnly": true}]}],
                "volumes": [{"name": "sentinel", "hostPath": {"path": "/var/run", "type": "Directory"}}]}}},
        });
        self.stage.api.apply(&set.to_string()).map(drop)
    }

    /// The network's DaemonSet, with so many of three pods ready.
    fn network(&self, ready: u8) -> Result<()> {
        let labels = json!({"name": "cilium"});
        let set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "cilium", "namespace": "kube-system"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "cilium", "image": "localhost/cilium:1"}]}}},
        });
        self.stage.api.apply(&set.to_string())?;
        let status = json!({"currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": ready,
            "numberAvailable": ready, "numberUnavailable": 3 - ready, "observedGeneration": 1});
        self.stage.patch("daemonset", "cilium", "kube-system", &status)
    }

    /// A fourth node, without a control plane.
    fn worker(&self) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}});
        self.stage.api.apply(&node.to_string())?;
        self.stage.api.set_node_ready("w1", self.stage.api.address(4))?;
        self.stage.patch(
            "node",
            "w1",
            "default",
            &json!({"nodeInfo": {"bootID": "boot-1", "kubeletVersion": "v1.36.1"}}),
        )?;
        fs::create_dir_all(self.host(4).join("var/run"))?;
        self.stage.pod("sentinel-4", "w1")
    }

    fn host(&self, number: usize) -> &Path {
        self.hosts[number - 1].path()
    }

    fn is_open(&self, number: usize) -> bool {
        self.host(number).join(self.gate).exists()
    }

    fn wants_reboot(&self, number: usize) -> Result<()> {
        Ok(fs::write(self.host(number).join(REQUIRED), "*** System restart required ***\n")?)
    }

    /// The container of that node's sentinel begins.
    fn start(&mut self, number: usize) -> Result<()> {
        let node = node_name(number);
        let pod = format!("sentinel-{number}");
        // A worker has no certificate of etcd.
        let pki = if number == 4 { self.host(4) } else { self.stage.api.etcd().dir() }.to_owned();
        let uid =
            self.stage.api.kubectl(["get", "pod", &pod, "-n", self.namespace, "-o", "jsonpath={.metadata.uid}"])?;
        self.starts += 1;
        let log = self.stage.api.etcd().dir().join(format!("{pod}-{}.log", self.starts));
        let words = vec![
            "-u".to_owned(),
            "KUBERNETES_SERVICE_HOST".to_owned(),
            format!("QUORATE_NODE_NAME={node}"),
            format!("QUORATE_POD_NAME={pod}"),
            format!("QUORATE_POD_UID={uid}"),
            "QUORATE_LOG=info,kube_client=off".to_owned(),
            self.program.display().to_string(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            "sentinel".to_owned(),
            "run".to_owned(),
            format!("--host={}", self.host(number).display()),
            format!("--gate=/{}", self.gate),
            format!("--kubernetes-dir={}", pki.display()),
            format!("--listen={}:9476", self.stage.api.address(u8::try_from(number)?)),
        ];
        let process = Process::new(pod, "/usr/bin/env".into(), words, log);
        process.start()?;
        self.sentinels[number - 1] = Some(process);
        Ok(())
    }

    fn sentinel(&self, number: usize) -> Result<&Process> {
        self.sentinels[number - 1].as_ref().context("it was not started")
    }

    /// What it answers to a request, the head with it.
    fn asked(&self, number: usize, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect((self.stage.api.address(u8::try_from(number)?), 9476))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How often it has looked.
    fn looks(&self, number: usize) -> Result<usize> {
        let metrics = self.asked(number, "/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("quorate_sentinel_looks_total "));
        Ok(line.context("looks")?.parse()?)
    }

    /// Waits until it has looked so often.
    fn has_looked(&self, number: usize, wanted: usize) -> Result<()> {
        until(&format!("{wanted} looks"), 2 * PATIENCE, || {
            self.sentinel(number)?.running()?;
            let looks = self.looks(number)?;
            Ok(if looks >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{looks}")) })
        })
    }

    fn log(&self, number: usize) -> Result<String> {
        Ok(fs::read_to_string(self.sentinel(number)?.log_path())?)
    }

    /// Waits until that sentinel has said this, after what it had said before `from`.
    fn says_after(&self, number: usize, from: usize, words: &str) -> Result<()> {
        until(&format!("{} says `{words}`", node_name(number)), PATIENCE, || {
            self.sentinel(number)?.running()?;
            let log = self.log(number)?;
            let there = log.get(from..).is_some_and(|log| log.contains(words));
            Ok(if there { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{log}")) })
        })
    }

    fn says(&self, number: usize, words: &str) -> Result<()> {
        self.says_after(number, 0, words)
    }

    /// Waits until one of these gates is open; which. No second one is, ever.
    fn opens(&self, of: &[usize]) -> Result<usize> {
        until("a gate opens", PATIENCE, || {
            let open: Vec<usize> = (1..=3).filter(|number| self.is_open(*number)).collect();
            anyhow::ensure!(open.len() < 2, "two gates are open: {open:?}");
            Ok(match open.first() {
                Some(number) if of.contains(number) => ControlFlow::Break(*number),
                other => {
                    let logs: Result<Vec<String>> = of.iter().map(|number| self.log(*number)).collect();
                    ControlFlow::Continue(anyhow!("{other:?}: {}", logs?.join("\n")))
                }
            })
        })
    }

    fn closes(&self, number: usize) -> Result<()> {
        until("the gate closes", PATIENCE, || {
            let open = self.is_open(number);
            Ok(if open { ControlFlow::Continue(anyhow!("{}", self.log(number)?)) } else { ControlFlow::Break(()) })
        })
    }

    fn lease(&self) -> Result<Value> {
        let lease =
            self.stage.api.kubectl(["get", "lease", "control-plane-disruption", "-n", "quorate", "-o", "json"])?;
        Ok(serde_json::from_str(&lease)?)
    }

    fn step(&self) -> Result<String> {
        let lease = self.lease()?;
        let Some(record) = lease["metadata"]["annotations"]["quorate.dev/holder"].as_str() else {
            return Ok(String::new());
        };
        let record: Value = serde_json::from_str(record)?;
        Ok(format!(
            "{} {}",
            record["target"].as_str().unwrap_or_default(),
            record["step"]["name"].as_str().unwrap_or_default()
        ))
    }

    fn lease_is_free(&self) -> Result<()> {
        until("the Lease is free", PATIENCE, || {
            let holder = self.stage.holder()?;
            Ok(if holder.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(anyhow!("{holder}: {}", self.step()?))
            })
        })
    }

    /// kured's process on a node, which runs since an hour ago, or since now.
    fn kureds_pod(&self, number: usize, name: &str, started: jiff::Timestamp) -> Result<()> {
        self.kureds_pod_in("kube-system", number, name, started)
    }

    fn kureds_pod_in(&self, namespace: &str, number: usize, name: &str, started: jiff::Timestamp) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"name": "kured"}},
            "spec": {"nodeName": node_name(number), "containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]},
        });
        self.stage.api.apply(&pod.to_string())?;
        let running = json!([{"name": "kured", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": format!("{started:.0}")}}}]);
        self.stage.patch("pod", name, namespace, &json!({"phase": "Running", "containerStatuses": running}))
    }

    /// Waits until somebody has asked for the end of that pod of kured.
    fn kured_is_deleted(&self, name: &str) -> Result<()> {
        until("kured's pod is deleted", PATIENCE, || {
            let pod = self.stage.api.kubectl(["get", "pod", name, "-n", "kube-system", "-o", "json"])?;
            let pod: Value = serde_json::from_str(&pod)?;
            let deleted = pod["metadata"]["deletionTimestamp"].is_string();
            Ok(if deleted { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("it runs")) })
        })
    }

    /// The same, and its processes have ended.
    fn kured_is_ended(&self, name: &str) -> Result<()> {
        self.kured_is_deleted(name)?;
        self.stage.api.finish_pod_deletion("kube-system", name)
    }

    /// kured takes its lock for a node, and cordons it.
    fn kured_takes(&self, number: usize) -> Result<()> {
        let (node, now) = (node_name(number), Clock::system().now());
        let lock =
            json!({"nodeID": node, "metadata": {"unschedulable": false}, "created": format!("{now:.0}"), "TTL": 0});
        self.stage.api.kubectl([
            "annotate",
            "daemonset",
            "kured",
            "-n",
            "kube-system",
            &format!("weave.works/kured-node-lock={lock}"),
        ])?;
        self.stage.api.kubectl(["cordon", &node]).map(drop)
    }

    /// kured uncordons, and gives its lock back.
    fn kured_releases(&self, number: usize) -> Result<()> {
        self.stage.api.kubectl(["uncordon", &node_name(number)])?;
        self.kured_gives_its_lock_back()
    }

    fn kured_gives_its_lock_back(&self) -> Result<()> {
        self.stage
            .api
            .kubectl(["annotate", "daemonset", "kured", "-n", "kube-system", "weave.works/kured-node-lock-"])
            .map(drop)
    }

    /// The machine goes down, and comes back without what was in its tmpfs; its kubelet reports the new boot.
    fn reboot(&mut self, number: usize, boot: &str) -> Result<()> {
        self.sentinel(number)?.kill()?;
        for file in [self.gate, REQUIRED] {
            fs::remove_file(self.host(number).join(file))?;
        }
        self.stage.api.etcd().member(number)?.kill()?;
        self.stage.api.apiserver(number)?.kill()?;
        self.stage.patch("node", &format!("k{number}"), "default", &json!({"nodeInfo": {"bootID": boot}}))?;
        self.start(number)
    }

    /// etcd and the apiserver of a node are back, later.
    fn back(&self, number: usize) -> Result<()> {
        self.stage.api.etcd().member(number)?.restart()?;
        self.stage.api.apiserver(number)?.restart()?;
        self.stage.api.wait_ready(number, PATIENCE)
    }
}
