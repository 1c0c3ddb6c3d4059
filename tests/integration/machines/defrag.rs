//! Defragmentation on machines: a Job on each member's own node, one after the other, started by the CronJob of kustomize/components/defrag, beside
//! a prober that asks through the balancer.

use super::backup::ended;
use super::clients::probed;
use super::stage::{Stage, machines, stage, until};
use lab::prober::Class;
use lab::{Lab, Spec};
use serde_json::Value;

/// Writes so many values of 512 KiB. Keys and values are base64 as they stand.
const FILL: &str = r#"
cd "$1"; shift
etcd() { curl --silent --fail --cacert ca.crt --cert healthcheck-client.crt --key healthcheck-client.key --data @"$2" "https://10.10.0.11:2379/v3/$1"; }
value=$(head -c 699051 /dev/zero | tr '\0' A | head -c 699048)
for number in $(seq -w 0001 "$1"); do
  printf '{"key":"%s","value":"%s"}' "$number" "$value" >body
  etcd kv/put body >/dev/null
done
"#;
/// Deletes and compacts them.
const FREE: &str = r#"
printf '{"key":"0000","range_end":"9999"}' >body
revision=$(etcd kv/deleterange body | sed 's/.*"revision":"\([0-9]*\)".*/\1/')
printf '{"revision":"%s","physical":true}' "$revision" >body
etcd kv/compaction body >/dev/null
"#;

/// kustomize/components/defrag.
const COMPONENT: [&str; 3] = [
    include_str!("../../../kustomize/components/defrag/account.yaml"),
    include_str!("../../../kustomize/components/defrag/rbac.yaml"),
    include_str!("../../../kustomize/components/defrag/cronjob.yaml"),
];

/// Writes so many values of 512 KiB into etcd.
pub(super) fn fill(stage: &Stage, values: u32) {
    write(stage, values, FILL);
}

fn write(stage: &Stage, values: u32, script: &str) {
    let pki = tempfile::tempdir().unwrap();
    stage.lab.copy_etcd_client(pki.path()).unwrap();
    let values = format!("{values:04}");
    stage.lab.run_checked(["sh", "-ec", script, "sh", pki.path().to_str().unwrap(), &values]).unwrap();
}

/// The plan as a workstation is told it.
fn plan(stage: &Stage) -> Value {
    let said = stage.quorate(["etcd", "defrag", "--dry-run", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    said.document()
}

fn due(plan: &Value) -> Vec<&Value> {
    plan["members"].as_array().unwrap().iter().filter(|row| row["turn"].is_u64()).collect()
}

#[test]
#[ignore = "a cluster of its own: 10 minutes"]
fn fragmented_databases_shrink_under_load_and_no_request_fails() {
    let _alone = machines();
    let stage = stage(Spec { audit: true, ..Spec::default() });
    stage.whole();
    write(&stage, 600, &format!("{FILL}{FREE}"));
    // What is deleted lies free once the members have compacted.
    until("all three members to be worth it", || {
        let plan = plan(&stage);
        if due(&plan).len() == 3 { Ok(()) } else { Err(plan.to_string()) }
    });
    let before = plan(&stage);
    let order = due(&before);
    assert_eq!(order.iter().map(|row| row["leads"] == true).collect::<Vec<_>>(), [false, false, true], "{before}");
    stage.whole();
    for file in COMPONENT {
        stage.apply(file);
    }
    let (said, report) = probed(&stage, || {
        stage.kubectl(["-n", "quorate", "create", "job", "--from=cronjob/quorate-defrag-all", "now"]);
        let done = ended(&stage, "now");
        (done, stage.kubectl(["-n", "quorate", "logs", "job/now"]))
    });
    let (done, log) = said;
    assert!(done, "{log}");
    println!("{log}");
    let after = plan(&stage);
    assert!(due(&after).is_empty(), "{after}");
    for row in after["members"].as_array().unwrap() {
        assert!(row["database"]["known"]["size"].as_u64().unwrap() < 100 << 20, "{after}");
    }
    let lease = stage.get(["lease", "-n", "quorate", "control-plane-disruption"]);
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty(), "{lease}");
    for class in Class::ALL {
        assert!(report.classes[&class].requests > 20, "{report:?}");
        assert_eq!(report.failed(class), Some(0), "{class:?}: {:?}", report.failures);
    }
    stage.keep_what_was_asked();
    Lab::down().unwrap();
}
