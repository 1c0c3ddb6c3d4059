//! A cluster with sentinels and `kured_contract` on every node.

use super::super::stage::{Said, Stage, shop, stage};
use crate::image::dist;
use lab::kured::Step;
use lab::{Machine, Spec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const KURED: &str = include_str!("kured.yaml");
/// By which a test holds the contract up, on the host.
const CONTRACT: &str = "/var/lib/kured-contract";
/// The gate, on the host; /var/run is a link.
pub(super) const GATE: &str = "/run/quorate-reboot-required";
const REQUIRED: &str = "/run/reboot-required";
/// A day of soaking is 20 s here. The lab's network is no DaemonSet; kube-proxy stands in for it.
const SENTINEL: &str = "    sentinel: {interval: 5s, watch: 1s, soak: 20s, margin: 30s, rest: 30s, daemonSets: [kube-system/kube-proxy]}\n    kured: kube-system/kured\n";

const SENTINELS: [&str; 2] = ["daemonset/quorate-sentinel-control-plane", "daemonset/quorate-sentinel-worker"];
/// A pod on every node that a drain takes away.
const EVERYWHERE: &str = "
      tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: till}}}";

/// What runs.
pub(super) struct Fleet {
    pub(super) stage: Stage,
}

impl Fleet {
    /// Brings it up. The configuration is there before the sentinels: they read it once.
    pub(super) fn up(workers: u8) -> Self {
        let stage = stage(Spec { workers, audit: true, ..Spec::default() });
        stage.lab.load_image(&dist("KURED_CONTRACT_IMAGE", "kured-contract-image.tar")).unwrap();
        stage.apply(KURED);
        let overlays = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize/overlays");
        let folder = tempfile::tempdir_in(&overlays).unwrap();
        let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        put("config.yaml", std::fs::read_to_string(overlays.join("lab/config.yaml")).unwrap() + SENTINEL);
        put(
            "kustomization.yaml",
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../lab]\n\
             components: [../../components/sentinel, ../../components/fence]\npatches: [{path: config.yaml}]\n"
                .to_owned(),
        );
        stage.kubectl(["apply", "-k", folder.path().to_str().unwrap()]);
        // One reconcile that an operator has not asked for would be another actor.
        stage.kubectl(["-n", "quorate", "patch", "cronjob", "quorate-reconcile", "-p", r#"{"spec":{"suspend":true}}"#]);
        stage.apply(&shop(workers + 3, EVERYWHERE));
        for set in SENTINELS {
            stage.kubectl(["-n", "quorate", "rollout", "status", set, "--timeout=180s"]);
        }
        stage.kubectl(["-n", "kube-system", "rollout", "status", "daemonset/kured", "--timeout=180s"]);
        stage.kubectl(["-n", "shop", "rollout", "status", "deployment/till", "--timeout=180s"]);
        Self { stage }
    }

    pub(super) fn machines(&self) -> Vec<Machine> {
        self.stage.lab.machines()
    }

    /// The control plane's machines.
    pub(super) fn control_plane(&self) -> Vec<Machine> {
        let count = usize::from(self.stage.lab.spec().control_planes);
        self.machines().into_iter().take(count).collect()
    }

    /// A package of the host wants a reboot.
    pub(super) fn flag(&self, machine: &Machine) {
        machine.write_file(REQUIRED, "*** System restart required ***\n").unwrap();
    }

    /// kured's process on that node will wait at this step.
    pub(super) fn hold(&self, machine: &Machine, step: Step) {
        machine.write_file(&format!("{CONTRACT}/hold"), step.name()).unwrap();
    }

    /// It waits no more.
    pub(super) fn let_go(&self, machine: &Machine) {
        machine.run_checked(["rm", "-f", &format!("{CONTRACT}/hold")]).unwrap();
    }

    /// Whether the gate of that node is closed.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn is_closed(&self, machine: &Machine) -> Result<(), String> {
        if machine.peek(GATE).unwrap().is_none() { Ok(()) } else { Err("it is open".to_owned()) }
    }

    /// The UID of kured's pod on that node that is not on its way out; none while there is none, or the API does not answer.
    pub(super) fn kureds_pod(&self, machine: &Machine) -> Option<String> {
        let on = format!("--field-selector=spec.nodeName={}", machine.name());
        let pods = self.stage.try_get(["pods", "-n", "kube-system", "-l", "name=kured", &on])?;
        let mut pods = super::super::items(&pods).iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods.next().and_then(|pod| pod["metadata"]["uid"].as_str()).map(str::to_owned)
    }

    /// Writes kured's lock in the name of somebody, or removes it.
    pub(super) fn lock(&self, by: Option<&str>) {
        let value = by.map_or_else(
            || "weave.works/kured-node-lock-".to_owned(),
            |by| format!(r#"weave.works/kured-node-lock={{"nodeID":"{by}"}}"#),
        );
        self.stage.kubectl(["-n", "kube-system", "annotate", "--overwrite", "daemonset", "kured", &value]);
    }

    /// The sentinel of that node gets a folder of the host that it cannot write to, as by a mistake in its manifest.
    pub(super) fn read_only(&self, machine: &Machine) {
        self.mount_read_only(true);
        let on = format!("--field-selector=spec.nodeName={}", machine.name());
        self.stage.kubectl(["-n", "quorate", "delete", "pod", "-l", "quorate.dev/sentinel", &on]);
    }

    /// All sentinels can write again.
    pub(super) fn writable(&self) {
        self.mount_read_only(false);
        for set in SENTINELS {
            self.stage.kubectl(["-n", "quorate", "rollout", "status", set, "--timeout=300s"]);
        }
    }

    fn mount_read_only(&self, read_only: bool) {
        let path = "/spec/template/spec/containers/0/volumeMounts/0/readOnly";
        let patch = serde_json::json!([{"op": "add", "path": path, "value": read_only}]).to_string();
        for set in SENTINELS {
            self.stage.kubectl(["-n", "quorate", "patch", set, "--type=json", "-p", &patch]);
        }
    }

    /// How often kured has come to a step on that node.
    pub(super) fn times(&self, machine: &Machine, step: Step) -> usize {
        self.steps(machine).into_iter().filter(|it| *it == step).count()
    }

    /// All steps that kured has come to on that node.
    pub(super) fn steps(&self, machine: &Machine) -> Vec<Step> {
        let text = machine.peek(&format!("{CONTRACT}/steps")).unwrap().unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Step::named).collect()
    }

    /// What the nodes report as their boots, by name.
    pub(super) fn boots(&self) -> Option<BTreeMap<String, String>> {
        let nodes = self.stage.try_get(["nodes"])?;
        let boot = |node: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&node["metadata"]["name"]), text(&node["status"]["nodeInfo"]["bootID"]))
        };
        Some(super::super::items(&nodes).iter().map(boot).collect())
    }

    /// What is left of a reboot: empty when everything is over.
    pub(super) fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = Vec::new();
        for machine in self.machines() {
            for (path, what) in [(GATE, "its gate is open"), (REQUIRED, "it wants a reboot")] {
                if machine.peek(path).unwrap().is_some() {
                    left.push(format!("{}: {what}", machine.name()));
                }
            }
        }
        let (Some(nodes), Some(leases), Some(kured)) = (
            self.stage.try_get(["nodes"]),
            self.stage.try_get(["leases", "-n", "quorate"]),
            self.stage.try_get(["daemonset", "-n", "kube-system", "kured"]),
        ) else {
            left.push("the API does not answer".to_owned());
            return left;
        };
        for node in super::super::items(&nodes) {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            if !conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True") {
                left.push(format!("{name}: not Ready"));
            }
            if node["spec"]["unschedulable"] == true {
                left.push(format!("{name}: cordoned"));
            }
        }
        for lease in super::super::items(&leases) {
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            if !holder.is_empty() {
                left.push(format!("{} is held by {holder}", lease["metadata"]["name"]));
            }
        }
        if let Some(lock) = kured["metadata"]["annotations"]["weave.works/kured-node-lock"].as_str() {
            left.push(format!("kured's lock: {lock}"));
        }
        left
    }

    /// `quorate sentinel status`.
    pub(super) fn status(&self) -> Said {
        self.stage.quorate(["sentinel", "status"])
    }

    /// Waits for a condition for so long; why it does not come is told.
    pub(super) fn within(&self, limit: Duration, what: &str, mut check: impl FnMut() -> Result<(), String>) {
        let end = Instant::now() + limit;
        loop {
            match check() {
                Ok(()) => return,
                Err(said) => assert!(Instant::now() < end, "waited in vain for {what}: {said}\n{}", self.why()),
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Why it is not over, for whoever reads the failure.
    pub(super) fn why(&self) -> String {
        let mut text = self.status().out;
        for (namespace, label) in [("quorate", "quorate.dev/sentinel"), ("kube-system", "name=kured")] {
            let said = self.stage.lab.run([
                "kubectl",
                "-n",
                namespace,
                "logs",
                "-l",
                label,
                "--prefix",
                "--tail=25",
                "--max-log-requests=20",
            ]);
            text +=
                &said.map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said.stdout).into_owned());
        }
        text
    }
}
