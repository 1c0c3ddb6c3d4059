//! What an upgrade must leave, and what it must not.

use super::super::items;
use super::super::stage::Stage;
use super::super::story::TO;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A kubelet that has just come back writes the status of its pods for a moment longer.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is wrong after an upgrade that has ended well; nothing when everything is on target and nothing of ours is left.
pub(super) fn wrong(stage: &Stage) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = look(stage);
        if found.is_empty() || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn look(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |words: &[&str], judge: fn(&Value) -> Vec<String>| match stage.try_get(words.iter().copied()) {
        Some(answer) => found.extend(judge(&answer)),
        None => found.push(format!("the API does not answer for {}", words.join(" "))),
    };
    look(&["nodes"], nodes);
    look(&["pods", "-n", "kube-system", "-l", "tier=control-plane"], static_pods);
    look(&["leases", "-n", "quorate"], leases);
    look(&["jobs", "-n", "quorate"], jobs);
    look(&["daemonsets", "-n", "kube-system"], kured);
    for machine in stage.lab.machines() {
        let name = machine.name();
        match machine.run_checked(["nft", "list", "tables"]) {
            Ok(tables) if tables.contains("quorate") => found.push(format!("{name}: nftables has {tables:?}")),
            Ok(_) => {}
            Err(error) => found.push(format!("{name}: {error:#}")),
        }
        // One that failed stays loaded.
        match machine.run_checked(["systemctl", "list-units", "--all", "--no-legend", "--plain", "quorate-*"]) {
            Ok(units) if !units.trim().is_empty() => found.push(format!("{name}: a unit is left: {}", units.trim())),
            Ok(_) => {}
            Err(error) => found.push(format!("{name}: {error:#}")),
        }
    }
    found
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or("?")
}

fn nodes(list: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for node in items(list) {
        let kubelet = &node["status"]["nodeInfo"]["kubeletVersion"];
        if kubelet != TO {
            found.push(format!("{}: its kubelet is {kubelet}", name(node)));
        }
        if node["spec"]["unschedulable"] == true || !node["metadata"]["annotations"]["quorate.dev/cordon"].is_null() {
            found.push(format!(
                "{} is cordoned: {}",
                name(node),
                node["metadata"]["annotations"]["quorate.dev/cordon"]
            ));
        }
        let conditions = node["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        if !conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True") {
            found.push(format!("{} is not Ready", name(node)));
        }
    }
    found
}

fn static_pods(list: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if items(list).len() != 12 {
        found.push(format!("{} static pods instead of 12", items(list).len()));
    }
    for pod in items(list) {
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or("?");
        if !image.contains("/etcd:") && !image.ends_with(TO) {
            found.push(format!("{} is {image}", name(pod)));
        }
        if pod["status"]["containerStatuses"][0]["ready"] != true {
            found.push(format!("{} is not ready", name(pod)));
        }
    }
    found
}

fn leases(list: &Value) -> Vec<String> {
    let held = |lease: &&Value| !lease["spec"]["holderIdentity"].as_str().unwrap_or("").is_empty();
    items(list)
        .iter()
        .filter(held)
        .map(|lease| format!("{} is held by {}", name(lease), lease["spec"]["holderIdentity"]))
        .collect()
}

/// Names of the Jobs that work on a node, or are about to.
pub(super) fn active(list: &Value) -> Vec<&str> {
    let active = |job: &&Value| job["status"]["active"].as_u64().unwrap_or(0) > 0;
    let word = |job: &Value| job["spec"]["template"]["spec"]["containers"][0]["args"][0].clone();
    let works = |job: &&Value| word(job) == "step" || word(job) == "node";
    items(list).iter().filter(active).filter(works).map(name).collect()
}

fn jobs(list: &Value) -> Vec<String> {
    active(list).into_iter().map(|name| format!("Job {name} is active")).collect()
}

fn kured(list: &Value) -> Vec<String> {
    let block = |set: &Value| set["metadata"]["annotations"]["weave.works/kured-node-lock"].as_str().map(str::to_owned);
    items(list).iter().filter_map(block).filter(|lock| lock.contains("quorate/")).collect()
}

#[test]
fn what_is_left_behind_is_found() {
    let list = |item: Value| serde_json::json!({"items": [item]});
    let cordoned = list(serde_json::json!({
        "metadata": {"name": "k1", "annotations": {"quorate.dev/cordon": "{}"}}, "spec": {"unschedulable": true},
        "status": {"nodeInfo": {"kubeletVersion": "v1.36.1"}, "conditions": [{"type": "Ready", "status": "Unknown"}]},
    }));
    assert_eq!(nodes(&cordoned).len(), 3, "{:?}", nodes(&cordoned));
    let held = list(serde_json::json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "somebody"}}));
    assert_eq!(leases(&held).len(), 1);
    let container = serde_json::json!({"args": ["step", "worker"]});
    let spec = serde_json::json!({"template": {"spec": {"containers": [container]}}});
    let job = list(serde_json::json!({"metadata": {"name": "j"}, "status": {"active": 1}, "spec": spec}));
    assert_eq!(jobs(&job).len(), 1);
    let lock = serde_json::json!({"weave.works/kured-node-lock": "{\"nodeID\":\"quorate/upgrade\"}"});
    assert_eq!(kured(&list(serde_json::json!({"metadata": {"annotations": lock}}))).len(), 1);
    assert_eq!(static_pods(&list(serde_json::json!({}))).len(), 3);
}
