//! Defragmentation in the pods of Jobs, on real members of each version that it meets, under the locks of a real apiserver; and what strikes
//! in its middle. No kubelet runs: what one writes of nodes and pods is written by the test. What makes one Job after the other is seen on
//! machines (`machines/defrag.rs`).

mod aside;
mod cure;

use crate::members::ended;
use crate::members::job::{Stage, configure};
use crate::said::Said;
use anyhow::{Context, Result, anyhow};
use lab::etcd::EtcdVersion;
use lab::process::{Process, until};
use serde_json::{Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// What `etcd` logs when it begins to copy.
const BEGINS: &str = r#""msg":"defragmenting""#;

/// The stage of a defragmentation, k1's member leading.
struct Place {
    stage: Stage,
}

impl Place {
    /// With databases of so many MiB of which nearly all lie free.
    fn of(version: EtcdVersion, mebibytes: usize) -> Result<Self> {
        let place = Self { stage: Stage::of(version, "quorate-defrag")? };
        for node in 1..=3 {
            for attempt in 1..=3 {
                place.stage.pod(&format!("k{node}-{attempt}"), &format!("k{node}"))?;
            }
        }
        place.configure("auto")?;
        place.lead(1)?;
        place.fragment(mebibytes)?;
        Ok(place)
    }

    /// Thresholds that what is written here exceeds, short waits, and which kured is meant.
    fn configure(&self, kured: &str) -> Result<()> {
        let config = format!(
            "defrag: {{leastSize: 8388608, perGigabyte: 8s}}\ntimes: {{lease: 30s, renew: 10s}}\nkured: {kured}\n"
        );
        configure(&self.stage.api, &config)
    }

    fn etcd(&self, member: usize, path: &str, body: &Value) -> Result<Value> {
        self.stage.api.etcd().member(member)?.call(path, body)
    }

    fn lead(&self, member: usize) -> Result<()> {
        let id = self.stage.api.etcd().member(member)?.id().to_string();
        until("it leads", PATIENCE, || {
            let leader = self.stage.leader()?;
            if leader == member {
                return Ok(ControlFlow::Break(()));
            }
            let moved = self.etcd(leader, "/v3/maintenance/transfer-leadership", &json!({"targetID": id}));
            Ok(ControlFlow::Continue(anyhow!("{moved:?}")))
        })
    }

    /// Writes, deletes, compacts: then the room lies free, and etcd keeps it.
    fn fragment(&self, mebibytes: usize) -> Result<()> {
        // Both are base64 as they stand: four digits, and zeros of 384 KiB.
        let value = "A".repeat(512 << 10);
        for number in 0..mebibytes * 8 / 3 {
            let body = json!({"key": format!("{number:04}"), "value": value});
            self.etcd(1, "/v3/kv/put", &body).with_context(|| format!("value {number}"))?;
        }
        // From "0000" to beyond "9999", decoded: what the apiserver keeps begins with a slash.
        let gone = json!({"key": "0000", "range_end": "9999"});
        let deleted = self.etcd(1, "/v3/kv/deleterange", &gone)?;
        let revision = deleted.pointer("/header/revision").context("a revision")?;
        self.etcd(1, "/v3/kv/compaction", &json!({"revision": revision, "physical": true}))?;
        for member in 1..=3 {
            until("its room lies free", PATIENCE, || {
                let (size, in_use) = self.sizes(member)?;
                let free = in_use * 4 < size;
                Ok(if free { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{in_use} of {size}")) })
            })?;
        }
        Ok(())
    }

    /// The size of a member's database, and what is in use of it.
    fn sizes(&self, member: usize) -> Result<(u64, u64)> {
        let status = self.etcd(member, "/v3/maintenance/status", &json!({}))?;
        let of = |key: &str| -> Result<u64> { Ok(status[key].as_str().context("a size")?.parse()?) };
        Ok((of("dbSize")?, of("dbSizeInUse")?))
    }

    fn all_sizes(&self) -> Result<Vec<u64>> {
        (1..=3).map(|member| Ok(self.sizes(member)?.0)).collect()
    }

    fn words(&self, member: usize, attempt: usize, args: &[&str]) -> Result<Vec<String>> {
        let (pod, node) = (format!("k{member}-{attempt}"), format!("k{member}"));
        let data = format!("--data-dir={}/k{member}/etcd", self.stage.api.etcd().dir().display());
        self.stage.command_of(&pod, &node, &[&["etcd", "defrag", &data], args].concat())
    }

    /// The program with the arguments of a Job, in a pod on the node of that member.
    fn defrag(&self, member: usize, attempt: usize, args: &[&str]) -> Result<Said> {
        Ok(Command::new("/usr/bin/env").args(self.words(member, attempt, args)?).output()?.into())
    }

    /// The same in the background.
    fn begin(&self, member: usize, attempt: usize) -> Result<Process> {
        self.stage.begin_of(&format!("k{member}-{attempt}"), self.words(member, attempt, &[])?)
    }

    fn log(&self, member: usize, attempt: usize) -> Result<String> {
        Ok(fs::read_to_string(self.stage.log_of(&format!("k{member}-{attempt}")))?)
    }

    /// How often a member has begun to copy.
    fn begun(&self, member: usize) -> Result<usize> {
        let log = fs::read_to_string(self.stage.api.etcd().member(member)?.log_path())?;
        Ok(log.matches(BEGINS).count())
    }

    /// Waits until a member has begun to copy that often.
    fn begins(&self, member: usize, times: usize) -> Result<()> {
        until("it begins to copy", PATIENCE, || {
            let begun = self.begun(member)?;
            Ok(if begun == times { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{begun}")) })
        })
    }

    /// Somebody who takes a snapshot of this member, by hand and slower than slow: the member's copy cannot take the place of the database
    /// before that ends.
    fn snapshot(&self, member: usize) -> Result<Process> {
        let etcd = self.stage.api.etcd();
        let (pki, endpoint) = (etcd.pki_dir(), etcd.member(member)?.endpoint());
        let to = etcd.dir().join(format!("stalled-{member}"));
        let path = |name: &str| pki.join(name).display().to_string();
        let mut args: Vec<String> =
            ["--silent", "--http1.1", "--limit-rate", "1", "--data", "{}"].map(str::to_owned).to_vec();
        args.extend(["--cacert".to_owned(), path("ca.crt"), "--cert".to_owned(), path("healthcheck-client.crt")]);
        args.extend([
            "--key".to_owned(),
            path("healthcheck-client.key"),
            "--output".to_owned(),
            to.display().to_string(),
        ]);
        args.push(format!("{endpoint}/v3/maintenance/snapshot"));
        let process = Process::new("curl", PathBuf::from("/usr/bin/curl"), args, etcd.dir().join("curl.log"));
        process.start()?;
        until("the snapshot has begun", PATIENCE, || {
            process.running()?;
            let there = fs::metadata(&to).map_or(0, |data| data.len());
            Ok(if there > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("nothing came")) })
        })?;
        Ok(process)
    }

    fn wait_healthy(&self) -> Result<()> {
        self.stage.api.etcd().wait_healthy(PATIENCE)
    }

    fn held(&self) -> Result<(String, String)> {
        Ok((self.stage.holder()?, self.stage.kureds_lock()?))
    }
}

fn ok(said: &Said) {
    assert_eq!((said.code, said.document()["outcome"].as_str()), (Some(0), Some("ok")), "{said:?}");
}

/// The members whose turn comes, by a look that changes nothing.
fn turns(place: &Place) -> Result<Vec<String>> {
    let said = place.defrag(2, 1, &["--dry-run"])?;
    assert_eq!(said.code, Some(0), "{said:?}");
    due(&said)
}

/// The same by somebody on the host of k1, to whom the manifest of its etcd says where that is.
fn turns_here(place: &Place) -> Result<Vec<String>> {
    let (api, folder) = (&place.stage.api, place.stage.api.etcd().dir());
    fs::create_dir_all(folder.join("manifests"))?;
    let manifest = format!("    - --advertise-client-urls={}\n", api.etcd().member(1)?.endpoint());
    fs::write(folder.join("manifests/etcd.yaml"), manifest)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["etcd", "defrag", "--dry-run", "--here", "-ojson"]).arg("--kubernetes-dir").arg(folder);
    command.arg("--kubeconfig").arg(api.kubeconfig()?).env_remove("KUBERNETES_SERVICE_HOST");
    let said: Said = command.output()?.into();
    assert_eq!(said.code, Some(0), "{said:?}");
    due(&said)
}

fn due(said: &Said) -> Result<Vec<String>> {
    let plan = said.document();
    assert_eq!(plan["kind"], "EtcdDefragPlan", "{said:?}");
    let rows = plan["members"].as_array().context("no members")?;
    let due = rows.iter().filter(|row| row["turn"].is_u64());
    Ok(due.map(|row| row["node"]["known"].as_str().unwrap_or_default().to_owned()).collect())
}

/// In the order that a look gives: followers, then the leader, which hands over; each gives its room back, and what does not pay is let alone.
fn a_fragmented_database_shrinks_on_each_member(version: EtcdVersion) -> Result<()> {
    let place = Place::of(version, 16)?;
    let before = place.all_sizes()?;
    assert_eq!(turns(&place)?, ["k2", "k3", "k1"]);
    assert_eq!(turns_here(&place)?, ["k2", "k3", "k1"]);
    assert_eq!((place.all_sizes()?, place.held()?), (before, Default::default()));
    for member in [2, 3, 1] {
        assert_eq!(place.stage.leader()?, 1);
        let said = place.defrag(member, 1, &[])?;
        ok(&said);
        assert_eq!(place.held()?, Default::default(), "{said:?}");
        let (size, _) = place.sizes(member)?;
        assert!(size < 8 * MIB, "{size}: {said:?}");
        assert_eq!(
            (1..=3).map(|member| place.begun(member)).collect::<Result<Vec<_>>>()?.iter().sum::<usize>(),
            [0, 3, 1, 2][member]
        );
    }
    assert_ne!(place.stage.leader()?, 1);
    assert_eq!(turns(&place)?, Vec::<String>::new());
    ok(&place.defrag(2, 1, &[])?);
    assert_eq!(place.begun(2)?, 1, "it does not pay any more");
    Ok(())
}

#[test]
fn a_fragmented_database_of_etcd_3_5_shrinks_on_each_member() -> Result<()> {
    a_fragmented_database_shrinks_on_each_member(EtcdVersion::V3_5)
}

#[test]
fn a_fragmented_database_of_etcd_3_7_shrinks_on_each_member() -> Result<()> {
    a_fragmented_database_shrinks_on_each_member(EtcdVersion::V3_7)
}

/// What is refused changes nothing: beside a snapshot, with a voter down, from another node, without room.
fn is_refused_and_changes_nothing(place: &Place) -> Result<()> {
    let before = place.all_sizes()?;
    let snapshot = json!({"identity": "they-1", "operation": "backup", "target": "k3", "actor": "a test", "node": "k3", "bootId": "boot-1",
        "step": {"name": "acquired", "touched": false}, "since": 1, "stepSince": 1});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "etcd-snapshot", "namespace": "quorate", "annotations": {"quorate.dev/holder": snapshot.to_string()}},
        "spec": {"holderIdentity": "they-1", "leaseDurationSeconds": 60}});
    place.stage.api.apply(&lease.to_string())?;
    let said = place.defrag(2, 1, &["--wait=1s"])?;
    assert_eq!((said.code, said.codes()), (Some(0), vec!["Q077".to_owned()]), "{said:?}");
    assert_eq!(said.document()["outcome"], "held", "{said:?}");
    place.stage.api.kubectl(["delete", "lease", "etcd-snapshot", "-n", "quorate"])?;

    // Another member's data: the room beside it says nothing.
    let other = format!("--data-dir={}", place.stage.api.etcd().pki_dir().display());
    let words = place.stage.command_of("k2-1", "k2", &["etcd", "defrag", &other])?;
    let said: Said = Command::new("/usr/bin/env").args(words).output()?.into();
    assert!(said.document()["outcome"] == "held" && said.out.contains("the room for it"), "{said:?}");

    place.stage.api.etcd().member(3)?.kill()?;
    let said = place.defrag(2, 1, &["--wait=1s"])?;
    assert_eq!(said.document()["outcome"], "refused", "{said:?}");
    assert!(said.codes().contains(&"Q030".to_owned()) && said.out.contains("k3 does not"), "{said:?}");
    place.stage.api.etcd().member(3)?.restart()?;
    place.wait_healthy()?;
    assert_eq!((place.all_sizes()?, place.held()?), (before, Default::default()));
    assert_eq!((1..=3).map(|member| place.begun(member)).collect::<Result<Vec<_>>>()?, [0, 0, 0]);
    Ok(())
}

/// Its process is killed; whoever goes on meets a member that is frozen in the middle, and stops with the lock in its hand; nobody else
/// begins; when the member goes on, so does the same command.
fn a_frozen_member_keeps_the_lock(place: &Place) -> Result<()> {
    let stalled = place.snapshot(2)?;
    let first = place.begin(2, 1)?;
    place.begins(2, 1)?;
    first.kill()?;
    place.stage.pod_ended("k2-1")?;
    place.stage.api.etcd().member(2)?.pause()?;
    stalled.kill()?;
    let said = place.defrag(2, 2, &[])?;
    assert_eq!((said.code, said.document()["outcome"].as_str()), (Some(20), Some("midway")), "{said:?}");
    let id = place.stage.id(2)?;
    for part in [format!("member {id} does not serve again in 16 s"), "to go on: `quorate etcd defrag`".to_owned()] {
        assert!(said.out.contains(&part), "{part}: {said:?}");
    }
    let (lease, kured) = place.held()?;
    assert!(
        lease.starts_with(&format!("defrag-{id}/k2/")) && kured.contains(&format!("quorate/defrag-{id}")),
        "{lease} {kured}"
    );
    place.stage.pod_ended("k2-2")?;
    let said = place.defrag(3, 1, &["--wait=1s"])?;
    assert!(said.codes().contains(&"Q070".to_owned()) && said.out.contains("half done"), "{said:?}");
    assert_eq!(place.begun(3)?, 0);
    place.stage.api.etcd().member(2)?.resume()?;
    let said = place.defrag(2, 3, &[])?;
    ok(&said);
    assert!(said.err.contains("going on with what was begun before"), "{said:?}");
    assert_eq!((place.begun(2)?, place.held()?), (1, Default::default()), "{said:?}");
    assert!(place.sizes(2)?.0 < 8 * MIB);
    Ok(())
}

/// A client that hears nothing more has not seen an end: the same run waits for the member.
fn a_client_that_is_not_answered_is_no_end(place: &Place) -> Result<()> {
    let stalled = place.snapshot(3)?;
    let run = place.begin(3, 2)?;
    until("it is not answered", PATIENCE, || {
        run.running()?;
        let log = place.log(3, 2)?;
        let waits = log.contains("that is no end");
        Ok(if waits { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!(log)) })
    })?;
    assert!(place.held()?.0.starts_with(&format!("defrag-{}/k3/", place.stage.id(3)?)));
    stalled.kill()?;
    ended(&run)?;
    let log = place.log(3, 2)?;
    assert!(log.contains(r#""outcome":"ok""#) && log.contains("no answer in 10 s"), "{log}");
    assert_eq!((place.begun(3)?, place.held()?), (1, Default::default()), "{log}");
    assert!(place.sizes(3)?.0 < 8 * MIB, "{log}");
    Ok(())
}

/// The leader hands over; then it dies in the middle, comes back with its old database, and is asked again.
fn a_member_that_dies_is_asked_again(place: &Place) -> Result<()> {
    let stalled = place.snapshot(1)?;
    let run = place.begin(1, 1)?;
    place.begins(1, 1)?;
    place.stage.api.etcd().member(1)?.restart()?;
    stalled.kill()?;
    ended(&run)?;
    let log = place.log(1, 1)?;
    assert!(log.contains(r#""outcome":"ok""#) && log.contains("leadership goes to member"), "{log}");
    assert_eq!((place.begun(1)?, place.held()?), (2, Default::default()), "{log}");
    assert!(place.sizes(1)?.0 < 8 * MIB, "{log}");
    assert_ne!(place.stage.leader()?, 1);
    Ok(())
}

#[test]
fn what_strikes_in_the_middle_of_a_defragmentation_takes_nobody_else_down() -> Result<()> {
    let place = Place::of(EtcdVersion::V3_6, 48)?;
    is_refused_and_changes_nothing(&place)?;
    a_frozen_member_keeps_the_lock(&place)?;
    place.configure("kube-system/kured")?;
    a_client_that_is_not_answered_is_no_end(&place)?;
    a_member_that_dies_is_asked_again(&place)?;

    // The account: nothing was denied to it.
    let events = place.stage.api.audit_events()?;
    let own = "system:serviceaccount:quorate:quorate-defrag";
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["user"]["username"] == own && event["responseStatus"]["code"] == 403)
        .collect();
    assert!(denied.is_empty(), "{denied:#?}");
    Ok(())
}
