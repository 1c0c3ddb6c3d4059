//! What happens on the machines, once: refusals, the upgrade, and a second run of it.

use super::clients;
use super::etcd::{self, Etcd};
use super::left::{self, Left, Pass};
use super::looks::{self, Looks};
use super::members::{self, Members};
use super::stage::{LEASES, Said, Stage, kured, machines, shop, stage, until};
use super::templates::{self, Templates};
use lab::prober::monitor::rule::{Hit, Part};
use lab::prober::monitor::{Account, Monitor};
use lab::{Lab, Spec};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The target of the upgrade.
pub(super) const TO: &str = "v1.36.3";
/// The lab's only worker, and its machine.
const WORKER: (&str, u8) = ("k4", 4);
/// The unit on a host that does a node's step.
const UNIT: &str = "quorate-node-step";

/// A power cut of a control plane node, and the gate right after it.
pub(super) struct PowerCut {
    /// The nodes were all Ready in the API before the gate was asked.
    pub(super) all_ready_before: bool,
    /// And after it had answered.
    pub(super) all_ready_after: bool,
    /// What the gate said of another node.
    pub(super) gate: Said,
    /// And when the API had noticed.
    pub(super) noticed: Said,
}

/// A cluster with one control plane node.
pub(super) struct Single {
    pub(super) gate: Said,
    pub(super) upgrade: Said,
    /// The node before the upgrade was asked for.
    pub(super) before: Value,
    /// And after.
    pub(super) after: Value,
    /// Whether its machine runs on when the same cluster is brought up once more.
    pub(super) left_up: bool,
    /// What is said when another one is.
    pub(super) other: String,
    /// What the pod of a node step said in whose middle dpkg failed, and its exit code.
    pub(super) tool: (Value, Value),
}

/// Everything that happened.
pub(super) struct Story {
    pub(super) here: Said,
    pub(super) looks: Looks,
    pub(super) members: Members,
    pub(super) power_cut: PowerCut,
    pub(super) frozen: Said,
    pub(super) cordoned: Said,
    /// The gate of a node that is not there.
    pub(super) nobody: Said,
    /// The gate while kured's lock cannot be parsed.
    pub(super) unparsable: Said,
    pub(super) kill_switch: Said,
    pub(super) budget: Said,
    pub(super) stray: Said,
    pub(super) nodes_before_refusals: Value,
    pub(super) nodes_after_refusals: Value,
    pub(super) single: Single,
    pub(super) templates: Templates,
    pub(super) left: Left,
    pub(super) etcd: Etcd,
    /// Jobs of the runs that were refused.
    pub(super) jobs_of_refusals: Value,
    pub(super) killed_on: String,
    pub(super) killed: Said,
    pub(super) handed_over: HandedOver,
    /// Hosts whose nftables hold a rule of ours when everything is over.
    pub(super) rules_left: Vec<String>,
    /// The plan while the worker alone is not done.
    pub(super) plan_of_the_worker: Option<Said>,
    pub(super) nodes_after_kill: Value,
    /// The gate of another control plane node then.
    pub(super) gate_after_kill: Said,
    pub(super) plan_after_kill: Said,
    pub(super) lease_after_kill: Value,
    /// What reconcile made of it.
    pub(super) finished: Pass,
    /// What clients saw meanwhile.
    pub(super) clients: lab::prober::Report,
    pub(super) interrupted: Said,
    pub(super) upgrade: Said,
    /// Whether node and Lease stayed taken at each look; none when there was no look.
    pub(super) frozen_in_recovery: Vec<Value>,
    /// What a monitor outside saw of etcd and the apiservers during the upgrade, and the one fault that was in it.
    pub(super) monitored: (Account, Option<Hit>),
    /// What the node steps wrote on the hosts of k1 to k4.
    pub(super) journals: Vec<String>,
    pub(super) worker_pods: Value,
    pub(super) worker_units: usize,
    pub(super) nodes: Value,
    pub(super) static_pods: Value,
    pub(super) leases: Value,
    /// kured's DaemonSet.
    pub(super) kured: Value,
    pub(super) jobs: Value,
    pub(super) pods: Value,
    pub(super) again: Said,
    pub(super) untouched_before: Value,
    pub(super) untouched_after: Value,
    pub(super) denied: (BTreeSet<String>, usize),
    pub(super) writes_of_first_run: usize,
    pub(super) writes_of_second_run: Vec<String>,
}

/// The story; told by whichever test asks first, and once: one that ended early ends every test that asks for it.
pub(super) fn story() -> &'static Story {
    static STORY: OnceLock<Result<Story, String>> = OnceLock::new();
    let told = STORY.get_or_init(|| {
        std::panic::catch_unwind(tell).map_err(|said| match said.downcast::<String>() {
            Ok(said) => *said,
            Err(said) => said.downcast_ref::<&str>().unwrap_or(&"for a reason that is no text").to_string(),
        })
    });
    told.as_ref().unwrap_or_else(|said| panic!("the story ended early: {said}"))
}

fn tell() -> Story {
    let _alone = machines();
    let single = single();
    let stage = stage(Spec { workers: 1, audit: true, ..Spec::default() });
    stage.whole();

    let nodes_before_refusals = stage.nodes();
    let here = in_place(&stage);
    let looks = looks::looks(&stage);
    let power_cut = power_cut(&stage);
    let frozen = frozen(&stage);
    let cordoned = cordoned(&stage);
    let nobody = stage.gate_of("k9");
    let unparsable = unparsable(&stage);
    let kill_switch = kill_switch(&stage);
    let budget = budget(&stage);
    let stray = stray(&stage);
    let nodes_after_refusals = stage.nodes();
    let members = members::members(&stage);

    let templates = templates::templates(&stage);
    let left = left::left(&stage);
    let mut etcd = etcd::prepare(&stage);

    let jobs_of_refusals = stage.get(["jobs", "-n", "quorate"]);
    let (killed_on, handed_over, killed) = kubeadm_killed(&stage);
    let (nodes_after_kill, lease_after_kill) =
        (stage.get(["nodes"]), stage.get(["lease", "-n", "quorate", "control-plane-disruption"]));
    let gate_after_kill = stage.gate_of(if killed_on == "k2" { "k3" } else { "k2" });
    let plan_after_kill = stage.quorate(["plan", "--to", TO, "-o", "json"]);
    let (finished, clients) = clients::probed(&stage, || left::reconcile(&stage, &killed_on));
    let interrupted = interrupted(&stage);
    let over = AtomicBool::new(false);
    let monitor = Monitor::start(&stage.lab, LEASES).unwrap();
    let (upgrade, plan_of_the_worker, (frozen_in_recovery, hit)) = std::thread::scope(|scope| {
        let fault = scope.spawn(|| node_pod_killed(&stage, &over));
        let frozen = scope.spawn(|| frozen_in_recovery(&stage, &killed_on, &over, &monitor));
        let said = stage.quorate(["upgrade", "--to", TO]);
        over.store(true, Ordering::Relaxed);
        (said, fault.join().unwrap(), frozen.join().unwrap())
    });
    let monitored = (monitor.stop().unwrap(), hit);
    // What has just restarted reports itself Ready for a moment longer.
    stage.whole();
    etcd.look_again(&stage);
    let worker_pods = stage.get(["pods", "-n", "quorate", "--field-selector", &format!("spec.nodeName={}", WORKER.0)]);
    let worker_units = units(&stage);
    let journals = journals(&stage);
    let rules_left =
        (1..=4).filter(|number| rule(&stage, *number).is_some()).map(|number| format!("k{number}")).collect();
    let (nodes, static_pods) =
        (stage.get(["nodes"]), stage.get(["pods", "-n", "kube-system", "-l", "tier=control-plane"]));
    let leases = stage.get(["leases", "-n", "quorate"]);
    let kured = stage.get(["daemonset", "-n", "kube-system", "kured"]);
    let (jobs, pods) = (stage.get(["jobs", "-n", "quorate"]), stage.get(["pods", "-n", "quorate"]));
    let first = stage.writes();
    let untouched_before = stage.at_rest(Stage::untouched);
    let again = stage.quorate(["upgrade", "--to", TO]);
    let untouched_after = stage.untouched();
    let denied = stage.denied();
    stage.keep_what_was_asked();
    let writes_of_second_run = stage.writes().into_iter().filter(|write| !first.contains(write)).collect();
    Story {
        here,
        looks,
        members,
        power_cut,
        frozen,
        cordoned,
        nobody,
        unparsable,
        kill_switch,
        budget,
        stray,
        nodes_before_refusals,
        nodes_after_refusals,
        single,
        templates,
        left,
        etcd,
        jobs_of_refusals,
        killed_on,
        killed,
        handed_over,
        rules_left,
        plan_of_the_worker,
        nodes_after_kill,
        gate_after_kill,
        plan_after_kill,
        lease_after_kill,
        finished,
        clients,
        interrupted,
        upgrade,
        frozen_in_recovery,
        monitored,
        journals,
        worker_pods,
        worker_units,
        nodes,
        static_pods,
        leases,
        kured,
        jobs,
        pods,
        again,
        untouched_before,
        untouched_after,
        denied,
        writes_of_first_run: first.len(),
        writes_of_second_run,
    }
}

/// `gate --here` as root on k1, for k2.
fn in_place(stage: &Stage) -> Said {
    let machine = stage.lab.machine(1).unwrap();
    machine.write_file("/root/quorate", std::fs::read(&stage.binary).unwrap()).unwrap();
    machine.run_checked(["chmod", "755", "/root/quorate"]).unwrap();
    machine.run(["/root/quorate", "gate", "--here", "--node", "k2", "-o", "json"]).unwrap().into()
}

fn power_cut(stage: &Stage) -> PowerCut {
    // The first by name: a Job that is to look is tried on it first, since it is Ready still.
    let machine = stage.lab.machine(1).unwrap();
    machine.crash().unwrap();
    // The case is about the half minute in which the API does not know yet.
    std::thread::sleep(Duration::from_secs(3));
    let all_ready_before = stage.all_ready();
    let gate = stage.gate();
    let all_ready_after = stage.all_ready();
    until("the API to notice that k1 is silent", || {
        let silent = stage.nodes_ready("Unknown");
        if silent == ["k1"] { Ok(()) } else { Err(format!("{silent:?}")) }
    });
    let noticed = stage.gate();
    machine.start().unwrap();
    stage.whole();
    PowerCut { all_ready_before, all_ready_after, gate, noticed }
}

fn frozen(stage: &Stage) -> Said {
    let machine = stage.lab.machine(3).unwrap();
    machine.pause("etcd").unwrap();
    let said = stage.gate();
    machine.resume("etcd").unwrap();
    stage.whole();
    said
}

fn cordoned(stage: &Stage) -> Said {
    stage.kubectl(["cordon", "k3"]);
    let said = stage.gate();
    stage.kubectl(["uncordon", "k3"]);
    stage.whole();
    said
}

/// The gate while kured's lock says something that is no lock. kured stays: every step takes its lock from here on.
fn unparsable(stage: &Stage) -> Said {
    stage.apply(&kured("{}"));
    kureds_lock(stage, r#"{"nodeID":"k1","created":"the day before yesterday","TTL":"soon"}"#);
    let said = stage.gate();
    stage.kubectl(["-n", "kube-system", "annotate", "daemonset", "kured", "weave.works/kured-node-lock-"]);
    stage.whole();
    said
}

/// Writes kured's lock as somebody else would.
pub(super) fn kureds_lock(stage: &Stage, lock: &str) {
    let annotation = format!("weave.works/kured-node-lock={lock}");
    stage.kubectl(["-n", "kube-system", "annotate", "--overwrite", "daemonset", "kured", &annotation]);
}

fn kill_switch(stage: &Stage) -> Said {
    stage.kubectl([
        "-n",
        "quorate",
        "create",
        "configmap",
        "quorate-kill-switch",
        "--from-literal=reason=paused by hand",
    ]);
    let said = stage.quorate(["upgrade", "--to", TO]);
    stage.kubectl(["-n", "quorate", "delete", "configmap", "quorate-kill-switch"]);
    said
}

/// A single replica behind a budget that needs it, on the worker.
fn budget(stage: &Stage) -> Said {
    const KEEPS_ALL: &str = "
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: keeps-all, namespace: shop}
spec: {minAvailable: 1, selector: {matchLabels: {app: till}}}
";
    stage.apply(&format!("{}---{KEEPS_ALL}", shop(1, "")));
    stage.kubectl(["-n", "shop", "rollout", "status", "deployment/till", "--timeout=180s"]);
    let said = stage.quorate(["upgrade", "--to", TO]);
    stage.kubectl(["delete", "namespace", "shop", "--wait=true"]);
    said
}

/// A backup copy of a manifest in the kubelet's folder becomes a second static pod.
fn stray(stage: &Stage) -> Said {
    let machine = stage.lab.machine(2).unwrap();
    let folder = "/etc/kubernetes/manifests";
    machine
        .run_checked(["cp", &format!("{folder}/kube-scheduler.yaml"), &format!("{folder}/kube-scheduler.yaml.bak")])
        .unwrap();
    let said = stage.quorate(["upgrade", "--to", TO]);
    machine.run_checked(["rm", &format!("{folder}/kube-scheduler.yaml.bak")]).unwrap();
    stage.whole();
    said
}

/// One control plane node, on a cluster of its own.
fn single() -> Single {
    let spec = Spec { control_planes: 1, ..Spec::default() };
    let stage = stage(spec.clone());
    let gate = stage.quorate(["gate", "--node", "k1", "-o", "json"]);
    let before = stage.at_rest(Stage::nodes);
    // When its init began: a machine shares the host's boot id.
    let began = || stage.lab.machine(1).unwrap().run_checked(["cut", "-d ", "-f22", "/proc/1/stat"]).unwrap();
    let booted = began();
    Lab::up(spec).unwrap();
    let other = format!("{:#}", Lab::up(Spec::default()).unwrap_err());
    let left_up = began() == booted;
    let upgrade = stage.quorate(["upgrade", "--to", TO, "-o", "json"]);
    let after = stage.nodes();
    let tool = tool_failed(&stage);
    Lab::down().unwrap();
    Single { gate, upgrade, before, after, left_up, other, tool }
}

/// A node step by its Job, as the chain makes it, on a host whose dpkg fails at kubeadm's package. Gives its report and exit code.
fn tool_failed(stage: &Stage) -> (Value, Value) {
    let machine = stage.lab.machine(1).unwrap();
    let hook = "pre-invoke=echo no space is left, says the disk >&2; exit 7\n";
    machine.write_file("/etc/dpkg/dpkg.cfg.d/broken", hook).unwrap();
    let template = stage.get(["cronjob", "-n", "quorate", "quorate-node"]);
    let mut spec = template["spec"]["jobTemplate"]["spec"].clone();
    let pod = &mut spec["template"]["spec"];
    pod["nodeName"] = "k1".into();
    pod["containers"][0]["args"] =
        serde_json::json!(["node", "upgrade", format!("--to={TO}"), "--mode=apply", "--role=control-plane"]);
    let job = serde_json::json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "tool", "namespace": "quorate"}, "spec": spec,
    });
    stage.apply(&job.to_string());
    stage.kubectl(["-n", "quorate", "wait", "--for=condition=failed", "job/tool", "--timeout=300s"]);
    let pods = stage.get(["pods", "-n", "quorate", "-l", "batch.kubernetes.io/job-name=tool"]);
    let end = &pods["items"][0]["status"]["containerStatuses"][0]["state"]["terminated"];
    let report = end["message"].as_str().unwrap_or_else(|| panic!("{pods}"));
    (serde_json::from_str(report).unwrap(), end["exitCode"].clone())
}

/// The hand-over rule of a machine, as nft lists it.
fn rule(stage: &Stage, number: u8) -> Option<String> {
    let listed = stage.lab.machine(number).unwrap().run(["nft", "list", "table", "ip", "quorate_handover"]).unwrap();
    listed.status.success().then(|| String::from_utf8_lossy(&listed.stdout).into_owned())
}

/// What became of new connections to an apiserver while kubeadm worked on its node.
pub(super) struct HandedOver {
    /// The rule, before the unit was killed; none when there was none.
    pub(super) rule: Option<String>,
    /// The names in the certificate that a new connection to the node's own address met.
    pub(super) names: String,
    /// The node's own address.
    pub(super) address: String,
}

/// An upgrade during which the whole unit on the first node is killed while kubeadm is at work: as a crash of the host would, but that
/// the node stays. Gives the node, where new connections to it went until then, and what the command said.
fn kubeadm_killed(stage: &Stage) -> (String, HandedOver, Said) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let fault = scope.spawn(|| {
            let machines: Vec<lab::Machine> = (1..=3).map(|number| stage.lab.machine(number).unwrap()).collect();
            loop {
                let at_work = machines
                    .iter()
                    .find(|it| it.run(["pgrep", "-f", "^kubeadm upgrade "]).unwrap().status.code() == Some(0));
                if let Some(machine) = at_work {
                    let (address, rule_before) = (machine.address(), rule(stage, machine.index()));
                    let names = names_served(stage, &address);
                    machine.run_checked(["systemctl", "kill", "--kill-whom=all", "--signal=KILL", UNIT]).unwrap();
                    until("the rule to be gone with whoever held it", || {
                        rule(stage, machine.index()).map_or(Ok(()), Err)
                    });
                    return (machine.name(), HandedOver { rule: rule_before, names, address });
                }
                assert!(!over.load(Ordering::Relaxed), "the upgrade was over before kubeadm was seen");
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let said = stage.quorate(["upgrade", "--to", TO]);
        over.store(true, Ordering::Relaxed);
        let (node, handed_over) = fault.join().unwrap();
        (node, handed_over, said)
    })
}

/// Whose certificate a new connection to an apiserver's address meets.
fn names_served(stage: &Stage, address: &str) -> String {
    let ask = "openssl s_client -connect \"$1:6443\" </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName";
    stage.lab.run_checked(["sh", "-ec", ask, "sh", address]).unwrap()
}

/// The upgrade's command, interrupted when the work on the first node has begun.
fn interrupted(stage: &Stage) -> Said {
    let binary = stage.binary.to_str().unwrap();
    // Whoever runs the tests in the background of a script has them ignore it.
    let mut command = stage.lab.client(["env", "--default-signal=INT", binary, "upgrade", "--to", TO]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("a node's work to begin", || {
        let jobs = stage.get(["jobs", "-n", "quorate"]);
        let active: Vec<&Value> = super::items(&jobs).iter().filter(|job| job["status"]["active"] == 1).collect();
        if active.iter().any(|job| super::order_of(job).is_some()) {
            Ok(())
        } else {
            Err("no node Job runs".to_owned())
        }
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Kills the node Job's pod in the middle of the worker's step. The step's unit is held until the next pod runs, or it might be
/// over by then. An upgrade that is over without it shows in what the tests assert of the worker's pods. Gives the plan meanwhile.
fn node_pod_killed(stage: &Stage, over: &AtomicBool) -> Option<Said> {
    let worker = stage.lab.machine(WORKER.1).unwrap();
    while worker.run(["systemctl", "is-active", "--quiet", UNIT]).unwrap().status.code() != Some(0) {
        if over.load(Ordering::Relaxed) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    worker.run_checked(["systemctl", "kill", "--kill-whom=main", "--signal=STOP", UNIT]).unwrap();
    let plan = stage.quorate(["plan", "--to", TO, "-o", "json"]);
    worker.kill("quorate").unwrap();
    until("another pod on the worker", || {
        let pods = stage.get(["pods", "-n", "quorate", "--field-selector", &format!("spec.nodeName={}", WORKER.0)]);
        let phases: Vec<&Value> = super::items(&pods).iter().map(|pod| &pod["status"]["phase"]).collect();
        if phases.contains(&&"Failed".into()) && phases.contains(&&"Running".into()) {
            Ok(())
        } else {
            Err(format!("{phases:?}"))
        }
    });
    worker.run_checked(["systemctl", "kill", "--kill-whom=main", "--signal=CONT", UNIT]).unwrap();
    Some(plan)
}

/// Freezes etcd of the next control plane node when its step on the host is done, for longer than it has to be well to count as
/// recovered, and looks meanwhile who holds what.
fn frozen_in_recovery(stage: &Stage, not: &str, over: &AtomicBool, monitor: &Monitor) -> (Vec<Value>, Option<Hit>) {
    let node = loop {
        let jobs = stage.get(["jobs", "-n", "quorate"]);
        let done = super::items(&jobs)
            .iter()
            .filter(|job| job["status"]["succeeded"] == 1 && super::order_of(job).is_some())
            .filter_map(|job| job["metadata"]["annotations"]["quorate.dev/target"].as_str())
            .find(|target| *target != not && *target != WORKER.0);
        if let Some(node) = done {
            break node.to_owned();
        }
        if over.load(Ordering::Relaxed) {
            return (Vec::new(), None);
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    let from_ms = monitor.now_ms();
    let machine = stage.lab.machines().into_iter().find(|machine| machine.name() == node).unwrap();
    machine.pause("etcd").unwrap();
    let until = Instant::now() + Duration::from_secs(25);
    let mut looks = Vec::new();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_secs(1));
        // The balancer may still send one or the other to the apiserver that has lost its etcd.
        let (Some(seen), Some(lease)) =
            (stage.try_get(["node", &node]), stage.try_get(["lease", "-n", "quorate", "control-plane-disruption"]))
        else {
            continue;
        };
        let ready = seen["status"]["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Ready").unwrap();
        looks.push(serde_json::json!({
            "node": node, "ready": ready["status"], "cordoned": seen["spec"]["unschedulable"],
            "held": !lease["spec"]["holderIdentity"].as_str().unwrap_or("").is_empty(),
        }));
    }
    machine.resume("etcd").unwrap();
    let healed_ms = Some(monitor.now_ms());
    (looks, Some(Hit { one_of: vec![node], part: Part::Voter, from_ms, healed_ms }))
}

fn journals(stage: &Stage) -> Vec<String> {
    let read = |number| {
        let machine = stage.lab.machine(number).unwrap();
        machine.run_checked(["journalctl", "--unit", UNIT, "--output=cat", "--no-pager"]).unwrap()
    };
    (1..=4).map(read).collect()
}

/// How often a node's step was started on the worker's host.
fn units(stage: &Stage) -> usize {
    let worker = stage.lab.machine(WORKER.1).unwrap();
    let journal = worker.run_checked(["journalctl", "--unit", UNIT, "--output=json", "--no-pager"]).unwrap();
    let ids: std::collections::BTreeSet<String> = journal
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|entry| {
            // systemd writes of a unit under `INVOCATION_ID`, the unit's own processes under `_SYSTEMD_INVOCATION_ID`.
            ["INVOCATION_ID", "_SYSTEMD_INVOCATION_ID"].iter().find_map(|key| entry[key].as_str().map(str::to_owned))
        })
        .collect();
    ids.len()
}
