//! Backups on machines: the Job of the template, started from a workstation and by plain kubectl, into a folder of the host that it runs on; of
//! whichever follower is there, when one is drained or gone.

use super::stage::{Stage, machines, stage};
use lab::{Lab, Spec};
use serde_json::Value;

pub(super) const FOLDER: &str = "/var/lib/quorate-backups";

/// A folder of the host stands in for a volume: an overlay would mount one.
pub(super) fn somewhere_to_go(stage: &Stage) {
    let patch = r#"[{"op": "add", "path": "/spec/jobTemplate/spec/template/spec/volumes/-",
        "value": {"name": "backup", "hostPath": {"path": "/var/lib/quorate-backups", "type": "DirectoryOrCreate"}}},
        {"op": "add", "path": "/spec/jobTemplate/spec/template/spec/containers/0/volumeMounts/-",
        "value": {"name": "backup", "mountPath": "/backup"}}]"#;
    stage.kubectl(["-n", "quorate", "patch", "cronjob", "quorate-backup", "--type=json", "-p", patch]);
    let map = stage.get(["configmap", "quorate-config", "-n", "quorate"]);
    let config = map["data"]["config.yaml"].as_str().unwrap();
    let config = format!("{config}\nbackup: {{directory: /backup, compression: none}}\n");
    let patch = serde_json::json!({"data": {"config.yaml": config}}).to_string();
    stage.kubectl(["-n", "quorate", "patch", "configmap", "quorate-config", "--type=merge", "-p", &patch]);
}

/// The files of all machines' folders.
fn stored(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    for machine in stage.lab.machines() {
        let list = machine.run_checked(["sh", "-c", &format!("ls {FOLDER} 2>/dev/null || true")]).unwrap();
        found.extend(list.lines().map(str::to_owned));
    }
    found.retain(|name| name.ends_with(".json"));
    found.sort();
    found
}

#[test]
#[ignore = "a cluster of its own: 10 minutes"]
fn r32_backups_are_taken_by_jobs_whichever_node_is_drained() {
    let _alone = machines();
    let stage = stage(Spec::default());
    stage.whole();
    somewhere_to_go(&stage);
    let said = stage.quorate(["etcd", "backup", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.document()["summary"].as_str().unwrap().starts_with("Backup done: etcd-snapshot-"), "{said:?}");
    assert_eq!(stored(&stage).len(), 1);
    // Whichever node somebody is about to work on.
    for node in ["k1", "k2", "k3"] {
        stage.kubectl(["cordon", node]);
        let before = stored(&stage).len();
        let name = format!("backup-without-{node}");
        stage.kubectl(["-n", "quorate", "create", "job", "--from=cronjob/quorate-backup", &name]);
        stage.kubectl(["-n", "quorate", "wait", "--for=condition=Complete", "--timeout=300s", &format!("job/{name}")]);
        assert_eq!(stored(&stage).len(), before + 1);
        stage.kubectl(["uncordon", node]);
    }
    let jobs: Value = stage.get(["jobs", "-n", "quorate"]);
    assert!(super::items(&jobs).len() >= 3);
    Lab::down().unwrap();
}
