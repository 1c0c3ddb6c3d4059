//! A restore that is killed at each of its steps, in a cluster whose snapshot was taken in the middle of an upgrade.

use super::*;
use quorate::etcd::restore::step::Step;
use quorum_safety::lock::Record;
use quorum_safety::{NodeName, UnixSeconds};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/quorate/leases/control-plane-disruption";
const HOLDER: &str = "upgrade-v1.36.3/k9/0123abcd";

/// What an upgrade leaves in the API in its middle: its Job with its pod, its Lease, kured's lock, a cordon.
fn upgrade_under_way(place: &Place) -> Result<()> {
    let api = &place.api;
    api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")])?;
    let record = Record {
        identity: HOLDER.to_owned(),
        operation: "upgrade-v1.36.3".to_owned(),
        target: "k9".into(),
        actor: "step control-plane".to_owned(),
        pod: None,
        node: NodeName("k8".to_owned()),
        boot_id: "boot-1".to_owned(),
        step: quorum_safety::lock::Step::touching("node-step"),
        since: UnixSeconds(1_795_348_800),
        step_since: UnixSeconds(1_795_348_800),
    };
    let holder = serde_json::to_string(&record)?;
    let cordon = json!({"operation": "upgrade-v1.36.3", "owner": HOLDER, "since": "2026-11-27T00:00:00Z", "priorUnschedulable": false});
    let kured = json!({"nodeID": "quorate/upgrade-v1.36.3", "quorateHolder": HOLDER, "created": "2026-11-27T00:00:00Z", "TTL": 0});
    let pod = json!({"restartPolicy": "Never", "nodeName": "k9", "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "control-plane-disruption", "namespace": "quorate", "annotations": {"quorate.dev/holder": holder}},
        "spec": {"holderIdentity": HOLDER}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "quorate-upgrade-step", "namespace": "quorate"},
        "spec": {"template": {"spec": pod}}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "k9", "annotations": {"quorate.dev/cordon": cordon.to_string()}},
        "spec": {"unschedulable": true}});
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "kured", "namespace": "kube-system", "annotations": {"weave.works/kured-node-lock": kured.to_string()}},
        "spec": {"selector": {"matchLabels": {"app": "kured"}}, "template": {"metadata": {"labels": {"app": "kured"}},
            "spec": {"nodeSelector": {"quorate.dev/test": "nowhere"}, "containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]}}}});
    for object in [&node, &lease, &job, &set] {
        api.apply(&object.to_string())?;
    }
    let pods = "/api/v1/namespaces/quorate/pods?labelSelector=batch.kubernetes.io/job-name%3Dquorate-upgrade-step";
    until("the Job has its pod", PATIENCE, || {
        let pods = api.request("GET", pods, None)?;
        let there = pods["items"].as_array().is_some_and(|items| !items.is_empty());
        Ok(if there { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{pods}")) })
    })
}

fn is_harmless(place: &Place) -> Result<()> {
    let get = |path: &str| place.api.request("GET", path, None);
    let switch = get("/api/v1/namespaces/quorate/configmaps/quorate-kill-switch")?;
    ensure!(switch["data"]["reason"].as_str().is_some_and(|why| why.starts_with("restored on k1 from ")), "{switch}");
    ensure!(switch["data"]["suspended"] == "quorate-reconcile", "{switch}");
    let cron_jobs = get("/apis/batch/v1/namespaces/quorate/cronjobs")?;
    let all = cron_jobs["items"].as_array().context("no CronJobs")?;
    ensure!(all.len() > 3 && all.iter().all(|it| it["spec"]["suspend"] == true), "{cron_jobs}");
    // A pod of a Job has a finalizer, which the controller-manager takes off when it is back.
    for what in ["/apis/batch/v1/namespaces/quorate/jobs", "/api/v1/namespaces/quorate/pods"] {
        until("no Job and no pod is left", PATIENCE, || {
            let list = get(what)?;
            let none = list["items"].as_array().is_some_and(Vec::is_empty);
            Ok(if none { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{list}")) })
        })?;
    }
    let lease = get(LEASES)?;
    ensure!(
        lease["spec"]["holderIdentity"].is_null() && lease["metadata"]["annotations"]["quorate.dev/holder"].is_null(),
        "{lease}"
    );
    let set = get("/apis/apps/v1/namespaces/kube-system/daemonsets/kured")?;
    ensure!(set["metadata"]["annotations"]["weave.works/kured-node-lock"].is_null(), "{set}");
    let node = get("/api/v1/nodes/k9")?;
    ensure!(
        node["spec"]["unschedulable"].is_null() && node["metadata"]["annotations"]["quorate.dev/cordon"].is_null(),
        "{node}"
    );
    Ok(())
}

#[test]
fn a_restore_that_is_killed_at_each_step_is_ended_by_the_same_command() -> Result<()> {
    let mut place = Place::new(EtcdVersion::V3_6, 1, true)?;
    upgrade_under_way(&place)?;
    let file = place.snapshot()?;
    place.map("after")?;
    // It has come to its end since: a restore begins beside no upgrade.
    place.api.kubectl(["delete", "lease", "-n", "quorate", "control-plane-disruption"])?;
    place.api.kubectl(["annotate", "daemonset", "-n", "kube-system", "kured", "weave.works/kured-node-lock-"])?;
    let id = |place: &Place| -> Result<Value> {
        let status = place.api.etcd().member(1)?.call("/v3/maintenance/status", &json!({}))?;
        Ok(status["header"]["cluster_id"].clone())
    };
    let before = id(&place)?;
    place.hand_over()?;
    place.served()?;
    // The last step is quick: it waits here until it was killed.
    let go = place.snapshots.path().join("go");
    let wait =
        format!("while [ ! -e {} ]; do sleep 0.1; done; echo \"$@\" >>{}", go.display(), place.restarts().display());
    place.script("systemctl", &wait)?;
    let args = place.run_args(&file, &["--yes=k1", "--although-quorum", "--because=a test"])?;
    let log = place.state.path().join("background.log");
    let mut killed = 0;
    for step in Step::ALL {
        let from = fs::metadata(&log).map_or(0, |data| usize::try_from(data.len()).unwrap());
        let process = Process::new("quorate", env!("CARGO_BIN_EXE_quorate").into(), args.clone(), log.clone());
        process.start()?;
        let begins = format!(" {}/{} {}\n", step.number(), Step::ALL.len(), step.title());
        until(&format!("step {} begins", step.number()), PATIENCE, || {
            let text = fs::read_to_string(&log)?;
            let new = text.get(from..).unwrap_or_default();
            if new.contains(&begins) {
                return Ok(ControlFlow::Break(()));
            }
            process.running().with_context(|| new.to_owned())?;
            Ok(ControlFlow::Continue(anyhow!("{new}")))
        })?;
        process.kill()?;
        killed += 1;
    }
    assert_eq!(killed, Step::ALL.len());
    // Another snapshot is not taken for this one.
    let other = place.snapshots.path().join("other.db");
    fs::copy(&file, &other)?;
    place.restore(&other, &["--yes=k1"])?.ended(11, "another restore is half done");
    fs::write(&go, "")?;
    Said::from(quorate(&args)?).ended(0, "k1 is restored from");
    place.is_restored()?;
    assert_ne!(id(&place)?, before);
    // Over: the same command would be another restore, and what this one has engaged stops it.
    Said::from(quorate(&args)?).ended(11, "Q075-kill-switch-engaged");
    is_harmless(&place)
}
