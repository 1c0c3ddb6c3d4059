//! A restore on machines: three members are stopped, one is restored by what `run` does, the others join by what is printed for them.

use super::backup::{FOLDER, somewhere_to_go};
use super::stage::{Said, Stage, followed, machines, stage, until};
use lab::{Lab, Machine, Spec};
use serde_json::Value;

/// Pods that somebody has to look after.
const SHOP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec: {containers: [{name: pause, image: "registry.k8s.io/pause:3.10.2", imagePullPolicy: IfNotPresent}]}
"#;

fn map(stage: &Stage, name: &str) {
    stage.kubectl(["create", "configmap", name, "-n", "default"]);
}

fn on(machine: &Machine, words: &[&str]) -> Said {
    let words: Vec<&str> = ["/root/quorate", "etcd"].into_iter().chain(words.iter().copied()).collect();
    machine.run(words).unwrap().into()
}

/// The backup that some Job has stored on some machine, brought to `to` with its manifest.
fn bring_backup(stage: &Stage, to: &Machine) -> String {
    let list = format!("ls {FOLDER} 2>/dev/null || true");
    for from in stage.lab.machines() {
        let names = from.run_checked(["sh", "-c", &list]).unwrap();
        let Some(file) = names.lines().find(|name| name.ends_with(".db")) else { continue };
        for name in [file.to_owned(), file.replace(".db", ".json")] {
            to.write_file(&format!("/root/{name}"), from.read_file(&format!("{FOLDER}/{name}")).unwrap()).unwrap();
        }
        return format!("/root/{file}");
    }
    panic!("no machine has a backup")
}

/// Types what a step of the plan says for a node.
fn type_on(stage: &Stage, step: &Value) {
    let node = step["node"].as_str().unwrap();
    let commands: Vec<&str> = step["commands"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!(commands[0], format!("on {node}, as root:"), "{step}");
    stage.machine(node).run_checked(["sh", "-ec", &commands[1..].join("\n")]).unwrap();
}

/// Follows `restore join` on the restored node, and types on the other what it prints.
fn join(stage: &Stage, first: &Machine, node: &str) {
    let command = first.command(["/root/quorate", "etcd", "restore", "join", node, "--here", "-o", "json"]).unwrap();
    let (said, _) = followed(command, &stage.machine(node), "systemctl restart kubelet");
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.document()["summary"].as_str().unwrap().starts_with(&format!("{node} takes part: ")), "{said:?}");
}

fn ready_pods(stage: &Stage) -> Result<i64, String> {
    let shop = stage.try_get(["deployment", "shop", "-n", "default"]).ok_or("no answer")?;
    Ok(shop["status"]["readyReplicas"].as_i64().unwrap_or(0))
}

#[test]
fn h09_three_members_are_restored_and_objects_made_after_the_backup_are_gone() {
    let _alone = machines();
    let stage = stage(Spec { workers: 1, ..Spec::default() });
    stage.whole();
    somewhere_to_go(&stage);
    stage.apply(SHOP);
    until("the shop to be open", || match ready_pods(&stage) {
        Ok(2) => Ok(()),
        said => Err(format!("{said:?}")),
    });
    map(&stage, "before");
    let said = stage.quorate(["etcd", "backup", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    map(&stage, "after");

    let first = stage.machine("k1");
    first.write_file("/root/quorate", std::fs::read(&stage.binary).unwrap()).unwrap();
    first.run_checked(["chmod", "755", "/root/quorate"]).unwrap();
    let file = bring_backup(&stage, &first);
    let run = ["restore", "run", &file, "--here", "--yes", "k1", "-o", "json"];

    // While it has quorum.
    let refused = on(&first, &run);
    assert_eq!(refused.code, 10, "{refused:?}");
    assert!(refused.out.contains("Q038-restore-over-quorum"), "{refused:?}");

    // As the plan says, from its first word to its last.
    let plan = on(
        &first,
        &["restore", "plan", &file, "--on", "k1", "--kubeconfig", "/etc/kubernetes/admin.conf", "-o", "json"],
    );
    assert_eq!(plan.code, 0, "{plan:?}");
    let plan = plan.document();
    let steps = plan["steps"].as_array().unwrap();
    let order: Vec<&str> = steps.iter().map(|step| step["node"].as_str().unwrap()).collect();
    assert_eq!(order, ["k2", "k3", "k1", "k2", "k3"], "{plan}");
    type_on(&stage, &steps[0]);
    type_on(&stage, &steps[1]);
    let restored = on(&first, &run);
    assert_eq!(restored.code, 0, "{restored:?}");

    // What was made after the backup is gone, and what was there before is there.
    until("the API to answer", || {
        let maps = stage.try_get(["configmap", "-n", "default"]).ok_or("no answer")?;
        let names: Vec<&str> =
            super::items(&maps).iter().map(|map| map["metadata"]["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"before") && !names.contains(&"after"), "{names:?}");
        Ok(())
    });
    let switch = stage.get(["configmap", "-n", "quorate", "quorate-kill-switch"]);
    assert!(switch["data"]["reason"].as_str().unwrap().starts_with("restored on k1 from "), "{switch}");
    let cron_jobs = stage.get(["cronjobs", "-n", "quorate"]);
    assert!(super::items(&cron_jobs).iter().all(|it| it["spec"]["suspend"] == true), "{cron_jobs}");

    // One after the other.
    for node in ["k2", "k3"] {
        join(&stage, &first, node);
    }
    let list = on(&first, &["members", "list", "--here", "-o", "json"]).document();
    let members = list["members"].as_array().unwrap();
    assert_eq!(members.len(), 3, "{list}");
    for member in members {
        assert_eq!((&member["role"], &member["strange"]), (&"voter".into(), &Value::Array(Vec::new())), "{member}");
        let cluster = member["status"]["known"]["clusterId"].as_str();
        assert_eq!(cluster, members[0]["status"]["known"]["clusterId"].as_str(), "{list}");
    }

    // Everybody reports, and controllers reconcile.
    until(
        "all nodes to be ready",
        || {
            if stage.all_ready() { Ok(()) } else { Err(stage.nodes_ready("True").join(" ")) }
        },
    );
    stage.kubectl(["scale", "deployment", "shop", "-n", "default", "--replicas=3"]);
    until("the shop to grow", || match ready_pods(&stage) {
        Ok(3) => Ok(()),
        said => Err(format!("{said:?}")),
    });

    // Nothing of quorate does anything until somebody says so; then the gate permits.
    until("nothing but the kill switch to hold the gate", || {
        let said = stage.gate();
        said.has_reason("Q075-kill-switch-engaged", "restored on k1");
        if said.document()["verdict"]["reasons"].as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(said.out) }
    });
    stage.kubectl(["delete", "configmap", "-n", "quorate", "quorate-kill-switch"]);
    stage.whole();

    // What was there before is kept on each node.
    for node in ["k1", "k2", "k3"] {
        stage.machine(node).run_checked(["sh", "-c", "test -d /var/lib/etcd/member-before-*/wal"]).unwrap();
    }
    Lab::down().unwrap();
}
