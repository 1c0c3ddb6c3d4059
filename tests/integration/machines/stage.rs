//! A cluster with quorate in it, and what is asked of it.

use crate::image::dist;
use lab::{Lab, Machine, Spec};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(900);
/// Where a monitor looks who holds our locks.
pub(super) const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/quorate/leases";
/// How long nothing may have changed for a cluster to be at rest.
const REST: Duration = Duration::from_secs(30);

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    /// Its exit code.
    pub(super) code: i32,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Standard output as JSON.
    pub(super) fn document(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts a refusal for a reason that names somebody.
    pub(super) fn refused_with(&self, code: &str, about: &str) {
        assert_eq!((self.code, &self.document()["verdict"]["answer"]), (10, &"refused".into()), "{self:?}");
        self.has_reason(code, about);
    }

    /// Asserts that it is no permit, with a reason that names somebody.
    pub(super) fn has_reason(&self, code: &str, about: &str) {
        assert_ne!(self.code, 0, "{self:?}");
        let verdict = &self.document()["verdict"];
        assert_ne!(verdict["answer"], "permitted", "{self:?}");
        let reasons = verdict["reasons"].as_array().unwrap();
        assert!(
            reasons.iter().any(|r| r["code"] == code && r["detail"].as_str().unwrap().contains(about)),
            "{code} about {about}: {reasons:?}"
        );
    }
}

/// The cluster.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) binary: PathBuf,
}

impl Stage {
    /// A machine by the name of its node.
    pub(super) fn machine(&self, name: &str) -> lab::Machine {
        self.lab.machines().into_iter().find(|machine| machine.name() == name).unwrap()
    }

    pub(super) fn quorate<const N: usize>(&self, args: [&str; N]) -> Said {
        let binary = self.binary.to_str().unwrap();
        let words: Vec<&str> = [binary].into_iter().chain(args).collect();
        self.lab.run(words).unwrap().into()
    }

    pub(super) fn kubectl<const N: usize>(&self, args: [&str; N]) -> String {
        let words: Vec<&str> = ["kubectl"].into_iter().chain(args).collect();
        self.lab.run_checked(words).unwrap()
    }

    /// `kubectl apply` of a manifest.
    pub(super) fn apply(&self, manifest: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.kubectl(["apply", "-f", file.path().to_str().unwrap()]);
    }

    pub(super) fn get<const N: usize>(&self, args: [&str; N]) -> Value {
        let words: Vec<&str> = ["kubectl", "get", "-o", "json"].into_iter().chain(args).collect();
        serde_json::from_str(&self.lab.run_checked(words).unwrap()).unwrap()
    }

    /// The same, while apiservers may come and go.
    pub(super) fn try_get<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Option<Value> {
        let words: Vec<&str> =
            ["kubectl", "--request-timeout=4s", "get", "-o", "json"].into_iter().chain(args).collect();
        let output = self.lab.run(words).unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub(super) fn gate(&self) -> Said {
        self.gate_of("k2")
    }

    pub(super) fn gate_of(&self, node: &str) -> Said {
        self.quorate(["gate", "--node", node, "-o", "json"])
    }

    /// Waits until the gate permits again: whatever was broken is mended.
    pub(super) fn whole(&self) {
        until("the gate to permit k2", || {
            let said = self.gate();
            if said.code == 0 { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }

    /// The nodes whose condition Ready is this, by name.
    pub(super) fn nodes_ready(&self, wanted: &str) -> Vec<String> {
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array().unwrap();
            conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == wanted)
        };
        let nodes = self.get(["nodes"]);
        super::items(&nodes)
            .iter()
            .filter(ready)
            .map(|node| node["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(super) fn all_ready(&self) -> bool {
        self.nodes_ready("True").len() == 4
    }

    /// What an upgrade would change on nodes, without what heartbeats and reboots change.
    pub(super) fn nodes(&self) -> Value {
        let nodes = self.get(["nodes"]);
        super::items(&nodes)
            .iter()
            .map(|node| {
                let annotations: Vec<&String> =
                    node["metadata"]["annotations"].as_object().map_or_else(Vec::new, |all| all.keys().collect());
                serde_json::json!({
                    "name": node["metadata"]["name"], "labels": node["metadata"]["labels"], "annotations": annotations,
                    "unschedulable": node["spec"]["unschedulable"],
                    "kubelet": node["status"]["nodeInfo"]["kubeletVersion"],
                })
            })
            .collect()
    }

    /// Nodes with everything that is in them but what a kubelet writes without anybody's doing: its heartbeats, and with them the
    /// resourceVersion, and the list of images that it counts now and then.
    fn whole_nodes(&self) -> Value {
        let mut nodes = self.get(["nodes"]);
        let nodes = nodes["items"].as_array_mut().unwrap();
        for node in nodes.iter_mut() {
            let metadata = node["metadata"].as_object_mut().unwrap();
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            let status = node["status"].as_object_mut().unwrap();
            status.remove("images");
            for condition in status["conditions"].as_array_mut().unwrap() {
                condition.as_object_mut().unwrap().remove("lastHeartbeatTime");
            }
        }
        std::mem::take(nodes).into()
    }

    /// Nodes, and every pod outside of our namespace with its resourceVersion and its containers' start times.
    pub(super) fn untouched(&self) -> Value {
        let pods = self.get(["pods", "--all-namespaces"]);
        let pods: Vec<Value> = super::items(&pods)
            .iter()
            .filter(|pod| pod["metadata"]["namespace"] != "quorate")
            .map(|pod| {
                let started: Vec<&Value> = pod["status"]["containerStatuses"]
                    .as_array()
                    .map_or_else(Vec::new, |list| list.iter().map(|status| &status["state"]).collect());
                serde_json::json!({
                    "name": pod["metadata"]["name"], "version": pod["metadata"]["resourceVersion"], "started": started,
                })
            })
            .collect();
        serde_json::json!({"nodes": self.whole_nodes(), "pods": pods})
    }

    /// Waits until something has come to rest, and gives what it is then: a kubelet that has just been restarted writes the status of its
    /// pods once more, seconds after they are Ready.
    pub(super) fn at_rest(&self, look: impl Fn(&Self) -> Value) -> Value {
        let mut last = (Instant::now(), look(self));
        until("the cluster to come to rest", || {
            let now = look(self);
            if now != last.1 {
                last = (Instant::now(), now);
                return Err("something still changes".to_owned());
            }
            if last.0.elapsed() >= REST { Ok(()) } else { Err("not for long enough".to_owned()) }
        });
        last.1
    }

    /// What our service accounts asked, as the apiservers' audit logs have it.
    pub(super) fn asked(&self) -> Vec<Value> {
        let mut asked = Vec::new();
        for number in 1..=self.lab.spec().control_planes {
            // A log that grows too long is put aside under another name. The last line may be half written.
            let script = "cat /var/log/kubernetes/audit*.log";
            let log = self.lab.machine(number).unwrap().run(["sh", "-c", script]).unwrap();
            assert!(log.status.success(), "{log:?}");
            let events = String::from_utf8_lossy(&log.stdout).into_owned();
            let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            asked.extend(events.filter(|event| {
                event["user"]["username"].as_str().unwrap_or("").starts_with("system:serviceaccount:quorate:")
            }));
        }
        asked
    }

    /// Leaves what they asked to the test that reads all of it at the end of a run (incident R03).
    pub(super) fn keep_what_was_asked(&self) {
        lab::audit::keep(&self.asked()).unwrap();
    }

    /// Writes this line into the configuration, in the place of the one that said something else of the same.
    pub(super) fn configure(&self, line: &str) {
        let key = line.split_inclusive(':').next().unwrap();
        let map = self.get(["configmap", "quorate-config", "-n", "quorate"]);
        let config = map["data"]["config.yaml"].as_str().unwrap();
        let mut lines: Vec<&str> = config.lines().filter(|line| !line.starts_with(key)).collect();
        lines.extend([line, ""]);
        let patch = serde_json::json!({"data": {"config.yaml": lines.join("\n")}}).to_string();
        self.kubectl(["-n", "quorate", "patch", "configmap", "quorate-config", "--type=merge", "-p", &patch]);
    }

    /// Writes beyond our own namespace, and to Leases in it. Dry runs change nothing.
    pub(super) fn writes(&self) -> Vec<String> {
        let mut writes = Vec::new();
        for event in self.asked() {
            let verb = event["verb"].as_str().unwrap_or("");
            let uri = event["requestURI"].as_str().unwrap_or("");
            let writing = !["get", "list", "watch"].contains(&verb);
            let object = &event["objectRef"];
            let about = object["namespace"] != "quorate" || object["resource"] == "leases";
            if writing && about && !uri.contains("dryRun=All") && !uri.contains("selfsubject") {
                writes.push(format!("{} {verb} {uri}", event["auditID"].as_str().unwrap_or("")));
            }
        }
        writes
    }

    /// What was forbidden and never allowed, and how much was asked in all. An apiserver that has just started knows no role yet and
    /// forbids for a moment what it allows then.
    pub(super) fn denied(&self) -> (BTreeSet<String>, usize) {
        let asked = self.asked();
        let forbidden = |event: &&Value| event["responseStatus"]["code"] == 403;
        // By what a role can grant: most names are asked for once.
        let line = |event: &Value| {
            let object = &event["objectRef"];
            let what = match object["resource"].as_str() {
                Some(resource) => {
                    format!("{} {resource} {} in {}", object["apiGroup"], object["subresource"], object["namespace"])
                }
                None => event["requestURI"].to_string(),
            };
            format!("{} {} {what}", event["user"]["username"], event["verb"])
        };
        let allowed: BTreeSet<String> = asked.iter().filter(|event| !forbidden(event)).map(line).collect();
        let denied = asked.iter().filter(forbidden).map(line).filter(|line| !allowed.contains(line));
        (denied.collect(), asked.len())
    }
}

/// kured's DaemonSet, for its lock; no node has the label that its pods want.
pub(super) fn kured(annotations: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: kured, namespace: kube-system, annotations: {annotations}}}
spec:
  selector: {{matchLabels: {{app: kured}}}}
  template:
    metadata: {{labels: {{app: kured}}}}
    spec:
      nodeSelector: {{quorate.dev/test: nowhere}}
      containers: [{{name: kured, image: "ghcr.io/kubereboot/kured:1.23.0"}}]
"#
    )
}

/// Namespace `shop` with Deployment `till` of so many pods that do nothing; `pod` is more of their spec.
pub(super) fn shop(replicas: u8, pod: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: till, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: till}}}}
  template:
    metadata: {{labels: {{app: till}}}}
    spec:
      terminationGracePeriodSeconds: 0{pod}
      containers: [{{name: pause, image: "registry.k8s.io/pause:3.10.2", imagePullPolicy: Never}}]
"#
    )
}

/// Follows a command that prints what is to be typed on a machine, and types it there once its last line has come: what the command said,
/// and what was typed.
pub(super) fn followed(mut command: Command, machine: &Machine, last: &str) -> (Said, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut told, mut script, mut printed) = (String::new(), String::new(), false);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if printed {
            script.push_str(&line);
            script.push('\n');
        }
        printed |= line == format!("on {}, as root:", machine.name());
        if printed && line.trim() == last {
            machine.run_checked(["sh", "-ec", &script]).unwrap();
            printed = false;
        }
        told.push_str(&line);
        told.push('\n');
    }
    (Said { err: told, ..child.wait_with_output().unwrap().into() }, script)
}

/// Waits for a condition.
pub(super) fn until(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(()) => return,
            Err(said) => assert!(Instant::now() < end, "waited in vain for {what}: {said}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Whoever brings machines up holds this meanwhile: one cluster at a time on a host.
pub(super) fn machines() -> MutexGuard<'static, ()> {
    static MACHINES: Mutex<()> = Mutex::new(());
    // A test that panicked leaves machines behind, and whoever comes next takes them down first.
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster with quorate in it.
pub(super) fn stage(spec: Spec) -> Stage {
    Lab::down().unwrap();
    let lab = Lab::up(spec).unwrap();
    lab.load_image(&dist("QUORATE_IMAGE", "quorate-image.tar")).unwrap();
    let stage = Stage { lab, binary: dist("QUORATE_BIN", "quorate") };
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize/overlays/lab");
    stage.kubectl(["apply", "-k", overlay.to_str().unwrap()]);
    // By hand only: what is left half done here is looked at before anybody finishes it.
    stage.kubectl(["-n", "quorate", "patch", "cronjob", "quorate-reconcile", "-p", r#"{"spec":{"suspend":true}}"#]);
    stage
}
