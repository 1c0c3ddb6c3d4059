//! Backups on machines: the Job of the template, started from a workstation and by plain kubectl, into a folder of the host that it runs on; of
//! whichever follower is there, when one is drained or gone.

mod struck;

use super::stage::{Stage, machines, stage, until};
use crate::backup::KEYS;
use crate::manifests::overlay_of;
use lab::{Lab, Spec};

pub(super) const FOLDER: &str = "/var/lib/quorate-backups";

/// A folder of the host stands in for a volume: an overlay would mount one.
pub(super) fn somewhere_to_go(stage: &Stage) {
    let patch = r#"[{"op": "add", "path": "/spec/jobTemplate/spec/template/spec/volumes/-",
        "value": {"name": "backup", "hostPath": {"path": "/var/lib/quorate-backups", "type": "DirectoryOrCreate"}}},
        {"op": "add", "path": "/spec/jobTemplate/spec/template/spec/containers/0/volumeMounts/-",
        "value": {"name": "backup", "mountPath": "/backup"}}]"#;
    stage.kubectl(["-n", "quorate", "patch", "cronjob", "quorate-backup", "--type=json", "-p", patch]);
    stage.configure("backup: {directory: /backup, compression: none}");
}

/// The manifests in the folders of all machines that are on, each with its node.
fn stored(stage: &Stage) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for machine in stage.lab.machines() {
        if machine.is_on().unwrap() {
            let list = machine.run_checked(["sh", "-c", &format!("ls {FOLDER} 2>/dev/null || true")]).unwrap();
            found.extend(list.lines().map(|name| (name.to_owned(), machine.name())));
        }
    }
    found.retain(|(name, _)| name.ends_with(".json"));
    found.sort();
    found
}

#[test]
#[ignore = "a cluster of its own: 10 minutes"]
fn r32_backups_are_taken_by_jobs_whichever_node_is_drained() {
    let _alone = machines();
    let stage = stage(Spec { audit: true, ..Spec::default() });
    stage.whole();
    somewhere_to_go(&stage);
    let said = stage.quorate(["etcd", "backup", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.document()["summary"].as_str().unwrap().starts_with("Backup done: etcd-snapshot-"), "{said:?}");
    assert_eq!(stored(&stage).len(), 1);
    let one_more = |name: &str| {
        let before = stored(&stage).len();
        run(&stage, "quorate-backup", name);
        assert_eq!(stored(&stage).len(), before + 1);
    };
    // Whichever node somebody is about to work on.
    for node in ["k1", "k2", "k3"] {
        stage.kubectl(["cordon", node]);
        one_more(&format!("backup-without-{node}"));
        stage.kubectl(["uncordon", node]);
    }
    // The one that took the last is off, and the API takes it for Ready still.
    let (_, newest) = stored(&stage).pop().unwrap();
    stage.machine(&newest).crash().unwrap();
    one_more("backup-while-one-is-off");
    stage.machine(&newest).start().unwrap();
    stage.whole();

    // The newest is restored into an etcd of its own on the node where it is, compared, and thrown away.
    let (manifest, node) = stored(&stage).pop().unwrap();
    stage.apply(include_str!("../../../kustomize/components/drill/cronjob.yaml"));
    let patch = serde_json::json!([
        {"op": "test", "path": "/spec/jobTemplate/spec/template/spec/volumes/2/name", "value": "backup"},
        {"op": "replace", "path": "/spec/jobTemplate/spec/template/spec/volumes/2",
            "value": {"name": "backup", "hostPath": {"path": FOLDER}}},
        {"op": "add", "path": "/spec/jobTemplate/spec/template/spec/nodeName", "value": node},
    ]);
    stage.kubectl(["-n", "quorate", "patch", "cronjob", "quorate-drill", "--type=json", "-p", &patch.to_string()]);
    run(&stage, "quorate-drill", "drill");
    let said = stage.kubectl(["-n", "quorate", "logs", "job/drill", "-c", "quorate"]);
    assert!(said.contains(manifest.trim_end_matches(".json")), "{said}");

    // With what a snapshot does not hold, which only an encrypted backup takes: the account of that component reads one object more.
    let folder = overlay_of("overlays/lab", "backup-node");
    stage.kubectl(["apply", "-k", folder.path().to_str().unwrap()]);
    stage.configure(&format!("backup: {{directory: /backup, compression: none, recipients: [{}]}}", KEYS[0].0));
    one_more("backup-with-the-nodes-files");
    stage.keep_what_was_asked();
    Lab::down().unwrap();
}

/// Runs a Job of this template to its end.
fn run(stage: &Stage, template: &str, name: &str) {
    stage.kubectl(["-n", "quorate", "create", "job", &format!("--from=cronjob/{template}"), name]);
    assert!(ended(stage, name), "{}", stage.get(["job", name, "-n", "quorate"]));
}

/// Waits for a Job's end. Gives whether it is done.
pub(super) fn ended(stage: &Stage, name: &str) -> bool {
    let mut done = false;
    until(&format!("{name} to be over"), || {
        let job = stage.try_get(["job", name, "-n", "quorate"]).ok_or("no answer")?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| conditions.iter().any(|it| it["type"] == kind && it["status"] == "True");
        // It is complete once its last pod is gone, which one on a dead node is when that is back.
        done = is("Complete") || is("SuccessCriteriaMet");
        if done || is("Failed") { Ok(()) } else { Err(job["status"].to_string()) }
    });
    done
}
