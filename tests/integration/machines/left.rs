//! What is left half done, and what becomes of it: given up by the kill switch, undone and finished by `quorate reconcile`.

use super::items;
use super::stage::{Said, Stage, until};
use super::story::{TO, kureds_lock, story};
use serde_json::Value;
use std::collections::BTreeSet;

/// One pod on each control plane node that takes its time to go: a drain that lasts.
const SLOW: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: slow, namespace: default}
spec:
  replicas: 3
  selector: {matchLabels: {app: slow}}
  template:
    metadata: {labels: {app: slow}}
    spec:
      terminationGracePeriodSeconds: 120
      nodeSelector: {node-role.kubernetes.io/control-plane: ""}
      tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}]
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
           labelSelector: {matchLabels: {app: slow}}}
      containers:
        - name: pause
          image: "registry.k8s.io/pause:3.10.2"
          imagePullPolicy: Never
          lifecycle: {preStop: {sleep: {seconds: 20}}}
"#;

const UPGRADE: [&str; 3] = ["upgrade", "--to", TO];
const RECORD: [&str; 4] = ["configmap", "-n", "quorate", "quorate-upgrade-v1.36.3"];

/// A pass of reconcile, and the step that it started.
pub(super) struct Pass {
    /// What the pass said.
    pub(super) said: Said,
    /// The log of the step.
    pub(super) log: String,
    /// Nodes and the Lease before and after.
    pub(super) before: (Value, Value),
    pub(super) after: (Value, Value),
    /// The Events about the node, as reasons.
    pub(super) events: Vec<String>,
    /// Whether the host of the node was ever begun on.
    pub(super) marked: bool,
}

/// What was left half done, three times.
pub(super) struct Left {
    /// An upgrade that a cordon holds, until that check is lifted; then the kill switch during its drain.
    pub(super) stopped: Stopped,
    /// A step killed during its drain, with its Job.
    pub(super) undone: Pass,
    /// A Lease under which nothing was changed, of a node that has rebooted since, and kured's lock of an upgrade that is over: what
    /// reconcile said, the Lease and kured's DaemonSet after it, and what it said then.
    pub(super) freed: (Said, Value, Value, Said),
}

/// An upgrade that is held, let go on, and stopped.
pub(super) struct Stopped {
    /// The node that somebody has cordoned: the last of the control plane in the order of the upgrade.
    cordoned: String,
    /// Why the upgrade did not begin, by its last verdict before.
    held: Value,
    /// What the upgrade that had begun held said, and the one that lifted the check and followed it.
    said: [Said; 2],
    /// The upgrade's record, nodes and the Lease then.
    record: Value,
    nodes: Value,
    lease: Value,
}

pub(super) fn left(stage: &Stage) -> Left {
    stage.apply(SLOW);
    stage.kubectl(["rollout", "status", "deployment/slow", "--timeout=180s"]);
    let stopped = stopped(stage);
    stage.kubectl(["rollout", "status", "deployment/slow", "--timeout=180s"]);
    let undone = undone(stage);
    stage.kubectl(["delete", "deployment", "slow", "--wait=true", "--cascade=foreground"]);
    stage.whole();
    Left { stopped, undone, freed: freed(stage) }
}

fn freed(stage: &Stage) -> (Said, Value, Value, Said) {
    let record = r#"{"identity":"upgrade-v1.36.2/k3/0","operation":"upgrade-v1.36.2","target":"k3","actor":"step control-plane","pod":null,"node":"k1","bootId":"an earlier one","step":{"name":"acquired","touched":false},"since":0,"stepSince":0}"#;
    let patch = serde_json::json!({
        "metadata": {"annotations": {"quorate.dev/holder": record}},
        "spec": {"holderIdentity": "upgrade-v1.36.2/k3/0"},
    });
    let lease_name = "control-plane-disruption";
    stage.kubectl(["-n", "quorate", "patch", "lease", lease_name, "--type=merge", "-p", &patch.to_string()]);
    kureds_lock(stage, r#"{"nodeID":"quorate/upgrade-v1.36.2","quorateHolder":"upgrade-v1.36.2/k2/0","TTL":1}"#);
    let said = stage.quorate(["reconcile", "-o", "json"]);
    let kured = stage.get(["daemonset", "-n", "kube-system", "kured"]);
    (said, lease(stage), kured, stage.quorate(["reconcile"]))
}

/// Runs an upgrade beside something that waits for a node of ours to be cordoned, and gives that node too.
fn while_draining<const N: usize>(stage: &Stage, upgrade: [&str; N], then: impl FnOnce(&str)) -> (Said, String) {
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(move || stage.quorate(upgrade));
        let mut node = String::new();
        until("a node to be cordoned and its drain announced", || {
            let Some(lease) = stage.try_get(["lease", "-n", "quorate", "control-plane-disruption"]) else {
                return Err("no Lease".to_owned());
            };
            let record = lease["metadata"]["annotations"]["quorate.dev/holder"].as_str().unwrap_or("{}");
            let record: Value = serde_json::from_str(record).unwrap();
            node = record["target"].as_str().unwrap_or("").to_owned();
            if record["step"]["name"] == "drain" { Ok(()) } else { Err(record["step"].to_string()) }
        });
        then(&node);
        (upgrade.join().unwrap(), node)
    })
}

fn stopped(stage: &Stage) -> Stopped {
    // Who leads etcd goes last, and may lead it since a moment ago.
    stage.quorate(["status", "--fresh"]);
    let plan = stage.quorate(["plan", "--to", TO, "-o", "json"]).document();
    let last = plan["steps"].as_array().unwrap().iter().rfind(|step| step["controlPlane"] == true);
    let last = last.and_then(|step| step["node"].as_str()).unwrap_or_else(|| panic!("{plan}")).to_owned();
    stage.kubectl(["cordon", &last]);
    let switch = ["-n", "quorate", "create", "configmap", "quorate-kill-switch", "--from-literal=reason=not today"];
    let lifting = ["upgrade", "--to", TO, "--lift", "Q054", "--because", "it stays out", "--for", "10m"];
    let (held, said) = std::thread::scope(|scope| {
        let first = scope.spawn(|| stage.quorate(UPGRADE));
        let mut held = Value::Null;
        until("a verdict on the upgrade", || {
            held = stage.try_get(RECORD).and_then(|record| verdict(&record)).unwrap_or_default();
            if held.is_null() { Err("none".to_owned()) } else { Ok(()) }
        });
        let (said, _) = while_draining(stage, lifting, |_| drop(stage.kubectl(switch)));
        (held, [first.join().unwrap(), said])
    });
    let (record, nodes, lease) = (stage.get(RECORD), stage.get(["nodes"]), lease(stage));
    stage.kubectl(["-n", "quorate", "delete", "configmap", "quorate-kill-switch"]);
    stage.kubectl(["uncordon", &last]);
    stage.whole();
    Stopped { cordoned: last, held, said, record, nodes, lease }
}

/// The last verdict in an upgrade's record.
fn verdict(record: &Value) -> Option<Value> {
    serde_json::from_str(record["data"]["verdicts.jsonl"].as_str()?.lines().last()?).ok()
}

/// Kills the process of a step that drains, and takes its Job away: nobody tries again by himself.
fn undone(stage: &Stage) -> Pass {
    let (_, node) = while_draining(stage, UPGRADE, |node| {
        let pods = stage.get(["pods", "-n", "quorate", "-l", &format!("quorate.dev/operation=upgrade-{TO}")]);
        let step = items(&pods)
            .iter()
            .find(|pod| {
                pod["status"]["phase"] == "Running"
                    && pod["metadata"]["annotations"]["quorate.dev/target"] == node
                    && pod["spec"]["containers"][0]["args"][0] == "step"
            })
            .unwrap_or_else(|| panic!("no step of {node} runs: {pods}"));
        let runs_on = step["spec"]["nodeName"].as_str().unwrap();
        let machine = stage.lab.machines().into_iter().find(|machine| machine.name() == runs_on).unwrap();
        machine.kill("quorate").unwrap();
        let job = step["metadata"]["labels"]["batch.kubernetes.io/job-name"].as_str().unwrap();
        stage.kubectl(["-n", "quorate", "delete", "job", job, "--cascade=orphan"]);
    });
    let pass = reconcile(stage, &node);
    stage.kubectl(["-n", "quorate", "delete", "pods", "--field-selector", "status.phase=Failed"]);
    pass
}

fn lease(stage: &Stage) -> Value {
    stage.get(["lease", "-n", "quorate", "control-plane-disruption"])
}

/// Runs `quorate reconcile` until it has started a step, and waits for the step's end.
pub(super) fn reconcile(stage: &Stage, node: &str) -> Pass {
    let before = (stage.get(["nodes"]), lease(stage));
    let mut pass = None;
    // The kubelet tells a moment later that the pod of the holder has ended.
    until("reconcile to start a step", || {
        let said = stage.quorate(["reconcile", "-o", "json"]);
        match said.document()["next"].as_str().map(str::to_owned) {
            Some(next) => {
                pass = Some((said, next));
                Ok(())
            }
            None => Err(format!("{said:?}")),
        }
    });
    let (said, next) = pass.unwrap();
    until("the step to end", || {
        let job = stage.try_get(["job", "-n", "quorate", &next]).ok_or("no answer")?;
        let conditions = job["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let over =
            conditions.iter().any(|it| it["status"] == "True" && (it["type"] == "Complete" || it["type"] == "Failed"));
        if over { Ok(()) } else { Err(job["status"].to_string()) }
    });
    stage.whole();
    let events = stage.get(["events", "-n", "default", "--field-selector", &format!("involvedObject.name={node}")]);
    let events = items(&events).iter().filter_map(|event| event["reason"].as_str());
    let machine = stage.lab.machines().into_iter().find(|machine| machine.name() == node).unwrap();
    Pass {
        said,
        log: stage.kubectl(["-n", "quorate", "logs", &format!("job/{next}")]),
        before,
        after: (stage.get(["nodes"]), lease(stage)),
        events: events.filter(|reason| reason.starts_with("Quorate")).map(str::to_owned).collect(),
        marked: machine.run(["test", "-e", "/var/lib/quorate/node-step.begun"]).unwrap().status.success(),
    }
}

/// The names of the nodes that are cordoned.
fn cordoned(nodes: &Value) -> Vec<&str> {
    let cordoned = items(nodes).iter().filter(|node| node["spec"]["unschedulable"] == true);
    cordoned.map(|node| node["metadata"]["name"].as_str().unwrap()).collect()
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or("")
}

#[test]
fn r31_the_kill_switch_during_a_drain_takes_back_what_was_begun() {
    let Stopped { said, nodes, lease, cordoned: other, .. } = &story().left.stopped;
    for said in said {
        assert_eq!(said.code, 11, "{said:?}");
        assert!(said.out.contains("Q075-kill-switch-engaged: not today"), "{said:?}");
        assert!(said.out.contains("everything is as it was"), "{said:?}");
    }
    assert_eq!((cordoned(nodes), holder(lease)), (vec![other.as_str()], ""));
}

#[test]
fn h03_a_cordon_that_holds_an_upgrade_is_lifted_by_name_for_a_while_and_on_record() {
    let Stopped { cordoned, held, said: [_, said], record, .. } = &story().left.stopped;
    assert_ne!(held["verdict"]["answer"], "permitted", "{held}");
    let reasons = held["verdict"]["reasons"].as_array().unwrap();
    let of_the_cordon = |reason: &Value| {
        reason["code"] == "Q054-foreign-cordon" && reason["detail"].as_str().is_some_and(|it| it.contains(cordoned))
    };
    assert!(reasons.iter().any(of_the_cordon), "{held}");
    // It was let go on, by what the second command put down.
    let lifted = verdict(record).unwrap();
    assert_eq!(
        (&lifted["verdict"]["answer"], &lifted["policy"]["lifted"]),
        (&"permitted".into(), &serde_json::json!(["Q054-foreign-cordon"])),
        "{lifted}"
    );
    let state: Value = serde_json::from_str(record["data"]["state.json"].as_str().unwrap()).unwrap();
    let put_down = &state["lifted"][0];
    assert_eq!((&put_down["code"], &put_down["because"]), (&"Q054-foreign-cordon".into(), &"it stays out".into()));
    let text = "Q054-foreign-cordon is lifted until ";
    assert!(
        said.err.lines().filter(|line| line.contains(text)).count() >= 2,
        "the command and a step say so: {said:?}"
    );
}

#[test]
fn r20_a_step_killed_in_its_drain_is_undone_by_reconcile() {
    let pass = &story().left.undone;
    let ((nodes, lease), (nodes_after, lease_after)) = (&pass.before, &pass.after);
    assert_eq!(cordoned(nodes).len(), 1, "half done: {nodes}");
    assert_ne!(holder(lease), "");
    assert!(pass.log.contains("was taken back; everything is as it was"), "{}", pass.log);
    assert_eq!((cordoned(nodes_after), holder(lease_after)), (vec![], ""), "{:?}", pass.said);
    let events: BTreeSet<&str> = pass.events.iter().map(String::as_str).collect();
    assert_eq!(events, BTreeSet::from(["QuorateFinishing", "QuorateFinished"]));
    assert!(!pass.marked, "nothing was begun on the host");
    let version = |node: &Value| node["status"]["nodeInfo"]["kubeletVersion"].clone();
    assert!(items(nodes_after).iter().all(|node| version(node) == "v1.36.1"), "reconcile starts nothing");
}

#[test]
fn a_lease_under_which_nothing_was_changed_and_a_stale_block_of_kureds_lock_are_given_back() {
    let (said, lease, kured, again) = &story().left.freed;
    let report = said.document();
    assert_eq!((said.code, &report["summary"]), (0, &"2 done, 0 left alone".into()), "{report}");
    assert_eq!(holder(lease), "", "{report}");
    assert!(kured["metadata"]["annotations"]["weave.works/kured-node-lock"].is_null(), "{kured}");
    assert_eq!((again.code, again.out.trim()), (0, "nothing is half done"), "{again:?}");
}

#[test]
fn r34_what_was_half_done_on_a_host_is_finished_by_reconcile_and_nothing_else_is_begun() {
    let story = story();
    let (pass, on) = (&story.finished, story.killed_on.as_str());
    let (nodes_after, lease_after) = &pass.after;
    assert!(
        pass.log.contains(&format!("{on}: going on with what a step before this one began (node-step)")),
        "{}",
        pass.log
    );
    assert_eq!((cordoned(nodes_after), holder(lease_after)), (vec![], ""), "{:?}", pass.said);
    for node in items(nodes_after) {
        let name = node["metadata"]["name"].as_str().unwrap();
        let version = if name == on { TO } else { "v1.36.1" };
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], version, "{name}");
    }
    assert!(pass.events.contains(&"QuorateFinished".to_owned()), "{:?}", pass.events);
}
