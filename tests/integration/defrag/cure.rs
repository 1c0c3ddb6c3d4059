//! NOSPACE, on real members of each version with a small quota, with the API away: cured on the hosts one after the other; killed at each step
//! and gone on with; what is refused changes nothing; what comes again is told.

use crate::members::ended;
use crate::members::job::Stage;
use crate::said::Said;
use anyhow::{Context, Result, anyhow, ensure};
use lab::etcd::{Cluster, Etcd, EtcdVersion, NOWHERE, Spec};
use lab::process::{Process, until};
use quorate::etcd::defrag::Step;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// Under it the database of a cluster without an apiserver is nearly nothing.
const QUOTA: u64 = 16 * MIB;
const COMMAND: &str = "quorate etcd defrag --cure-nospace --here --without-api --because …";

/// Real members, and the host of each as kubeadm lays it out.
struct Hosts {
    of: Of,
    folder: TempDir,
}

/// Whether there is more than etcd.
enum Of {
    /// No admin.conf leads anywhere.
    Etcd(Box<Cluster>),
    /// Apiservers run, and everything is as it should.
    Api(Box<Stage>),
}

impl Hosts {
    fn of(version: EtcdVersion) -> Result<Self> {
        let cluster = Etcd::start(Spec { extra_args: vec![quota()], ..Spec::new(version, 3) })?;
        Self::lay_out(Of::Etcd(Box::new(cluster)))
    }

    fn lay_out(of: Of) -> Result<Self> {
        let hosts = Self { of, folder: TempDir::new()? };
        // A second in which it does not come again is enough where nobody writes.
        fs::write(hosts.config(), "times: {stable: 1s}\n")?;
        for (number, member) in (1..).zip(hosts.cluster().members()) {
            let folder = hosts.host(number);
            fs::create_dir_all(folder.join("manifests"))?;
            fs::create_dir(folder.join("pki"))?;
            symlink(hosts.cluster().pki_dir(), folder.join("pki/etcd"))?;
            let manifest = format!(
                "    - --advertise-client-urls={}\n    - --data-dir={}/k{number}/etcd\n    - --quota-backend-bytes={QUOTA}\n",
                member.endpoint(),
                hosts.cluster().dir().display()
            );
            fs::write(folder.join("manifests/etcd.yaml"), manifest)?;
            fs::write(folder.join("admin.conf"), hosts.admin()?)?;
        }
        Ok(hosts)
    }

    fn cluster(&self) -> &Cluster {
        match &self.of {
            Of::Etcd(cluster) => cluster,
            Of::Api(stage) => stage.api.etcd(),
        }
    }

    /// What is in admin.conf.
    fn admin(&self) -> Result<String> {
        match &self.of {
            Of::Etcd(cluster) => Ok(cluster.kubeconfig_to(NOWHERE)),
            Of::Api(stage) => Ok(fs::read_to_string(stage.api.kubeconfig()?)?),
        }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    fn host(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("k{number}"))
    }

    /// What this host keeps.
    fn kept(&self, number: usize, name: &str) -> PathBuf {
        self.host(number).join("state").join(name)
    }

    fn args(&self, number: usize, more: &[&str]) -> Vec<String> {
        let cure = ["etcd", "defrag", "--cure-nospace", "--here", "--without-api", "--because=a test", "-ojson"];
        let host = self.host(number);
        let folders = [
            format!("--config={}", self.config().display()),
            format!("--kubernetes-dir={}", host.display()),
            format!("--state-dir={}", host.join("state").display()),
        ];
        cure.into_iter().chain(more.iter().copied()).map(str::to_owned).chain(folders).collect()
    }

    /// The command on the host of a member, to its end.
    fn cure(&self, number: usize, more: &[&str]) -> Result<Said> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(self.args(number, more)).env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG");
        Ok(command.output()?.into())
    }

    /// The same, killed as soon as it says that this step begins.
    fn killed_at(&self, number: usize, step: Step) -> Result<()> {
        let log = self.host(number).join("background.log");
        let from = fs::metadata(&log).map_or(0, |data| usize::try_from(data.len()).unwrap());
        let process =
            Process::new("quorate", env!("CARGO_BIN_EXE_quorate").into(), self.args(number, &[]), log.clone());
        process.start()?;
        until(&format!("{step:?} begins"), PATIENCE, || {
            let text = fs::read_to_string(&log)?;
            let new = text.get(from..).unwrap_or_default();
            if new.contains(step.title()) {
                return Ok(ControlFlow::Break(()));
            }
            process.running().with_context(|| new.to_owned())?;
            Ok(ControlFlow::Continue(anyhow!("{new}")))
        })?;
        process.kill()?;
        ended(&process)?;
        let mark: Value = serde_json::from_str(&fs::read_to_string(self.kept(number, "nospace.begun"))?)?;
        assert_eq!(mark["step"], serde_json::to_value(step)?);
        Ok(())
    }

    fn call(&self, member: usize, path: &str, body: &Value) -> Result<Value> {
        self.cluster().member(member)?.call(path, body)
    }

    /// A value of so many times three bytes under a key of three bytes; both are base64 as they stand.
    fn put(&self, member: usize, key: usize, size: usize) -> Result<Value> {
        let body = json!({"key": format!("{key:04}"), "value": "AAAA".repeat(size)});
        self.call(member, "/v3/kv/put", &body)
    }

    /// Writes until there is no space, to so many keys; answers how often.
    fn fill(&self, keys: usize) -> Result<usize> {
        for number in 0..1_000 {
            // Small enough for all members to be as full: each writes them in transactions of its own.
            match self.put(1, number % keys, 32 << 10) {
                Ok(_) => {}
                Err(why) if format!("{why:#}").contains("database space exceeded") => return Ok(number),
                Err(why) => return Err(why),
            }
        }
        Err(anyhow!("it is never full"))
    }

    /// The alarms as this member has them: who and what.
    fn alarms(&self, member: usize) -> Result<BTreeSet<String>> {
        let answer = self.call(member, "/v3/maintenance/alarm", &json!({"action": "GET"}))?;
        Ok(answer["alarms"].as_array().into_iter().flatten().map(ToString::to_string).collect())
    }

    fn size(&self, member: usize) -> Result<u64> {
        let status = self.call(member, "/v3/maintenance/status", &json!({}))?;
        Ok(status["dbSize"].as_str().context("a size")?.parse()?)
    }

    /// Members in the order in which they are cured: followers by name, then the leader.
    fn order(&self) -> Result<Vec<usize>> {
        let leader = until("somebody leads", PATIENCE, || {
            let status = self.call(1, "/v3/maintenance/status", &json!({}))?;
            let named = status["leader"].as_str().and_then(|id| id.parse::<u64>().ok());
            let at = named.and_then(|id| self.cluster().members().iter().position(|member| member.id() == id));
            Ok(at.map_or_else(|| ControlFlow::Continue(anyhow!("{status}")), |at| ControlFlow::Break(at + 1)))
        })?;
        Ok((1..=3).filter(|number| *number != leader).chain([leader]).collect())
    }

    /// How often each member has begun to copy.
    fn begun(&self) -> Result<Vec<usize>> {
        self.logged(super::BEGINS)
    }

    fn logged(&self, words: &str) -> Result<Vec<usize>> {
        let count = |member: &lab::etcd::Member| Ok(fs::read_to_string(member.log_path())?.matches(words).count());
        self.cluster().members().iter().map(count).collect()
    }

    /// Nothing was done on this host, and none of it to etcd.
    fn untouched(&self, number: usize) -> Result<()> {
        ensure!(!self.kept(number, "overrides.jsonl").exists() && !self.kept(number, "nospace.begun").exists());
        ensure!(self.begun()? == [0, 0, 0] && self.logged("finished scheduled compaction")? == [0, 0, 0]);
        Ok(())
    }

    /// It is over: no alarm, room, nothing half done, and each member takes writes.
    fn cured(&self) -> Result<()> {
        for number in 1..=3 {
            assert_eq!(self.alarms(number)?, BTreeSet::new());
            assert!(self.size(number)? < QUOTA / 4, "{}", self.size(number)?);
            assert!(!self.kept(number, "nospace.begun").exists());
            self.put(number, 0, 1)?;
        }
        Ok(())
    }
}

fn quota() -> String {
    format!("--quota-backend-bytes={QUOTA}")
}

/// It ended with this code and says so.
fn says(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, Some(code), "{said:?}");
    for part in words {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
}

fn next(number: usize) -> String {
    format!("next, on the node of k{number} (")
}

fn a_full_database_is_cured_on_one_host_after_the_other(version: EtcdVersion) -> Result<()> {
    let hosts = Hosts::of(version)?;
    let written = hosts.fill(1)?;
    let order = hosts.order()?;
    let [first, second, leader] = order[..] else { return Err(anyhow!("{order:?}")) };
    says(&hosts.cure(leader, &[])?, 11, &[&next(first), COMMAND, "nothing was changed"]);
    hosts.untouched(leader)?;
    says(&hosts.cure(first, &[])?, 20, &[&next(second), " before, "]);
    // Not before all have room, and not twice.
    assert!(!hosts.alarms(1)?.is_empty());
    says(&hosts.cure(first, &[])?, 11, &[&next(second), "nothing was changed"]);
    says(&hosts.cure(second, &[])?, 20, &[&next(leader)]);
    let said = hosts.cure(leader, &[])?;
    says(&said, 0, &["NOSPACE is over"]);
    assert!(said.err.contains(Step::HandOver.title()), "{said:?}");
    assert_eq!(hosts.begun()?, [1, 1, 1]);
    hosts.cured()?;
    assert_ne!(hosts.order()?[2], leader);
    // What was kept is kept: the key, and how often it was written.
    let kept = hosts.call(2, "/v3/kv/range", &json!({"key": "0000", "keys_only": true}))?;
    // The write that raises the alarm is done, and answered as if it was not.
    let version: usize = kept["kvs"][0]["version"].as_str().context("a version")?.parse()?;
    assert!((written + 3..=written + 4).contains(&version), "{version}, {written} before");
    let recorded = fs::read_to_string(hosts.kept(leader, "overrides.jsonl"))?;
    assert!(recorded.contains("--cure-nospace") && recorded.contains("a test"), "{recorded}");
    says(&hosts.cure(first, &[])?, 0, &["no member has the alarm NOSPACE; nothing was changed"]);
    Ok(())
}

#[test]
fn a_full_database_of_etcd_3_5_is_cured_on_one_host_after_the_other() -> Result<()> {
    a_full_database_is_cured_on_one_host_after_the_other(EtcdVersion::V3_5)
}

#[test]
fn a_full_database_of_etcd_3_7_is_cured_on_one_host_after_the_other() -> Result<()> {
    a_full_database_is_cured_on_one_host_after_the_other(EtcdVersion::V3_7)
}

/// It is frozen: its own host waits for it and stops with the mark, though nobody else is known there; another host begins nothing.
fn is_waited_for_while_it_is_away(hosts: &Hosts, number: usize, other: usize) -> Result<()> {
    hosts.cluster().member(number)?.pause()?;
    let begun = hosts.begun()?;
    fs::write(hosts.config(), "times: {stable: 1s, answer: 1s}\ndefrag: {perGigabyte: 1s}\n")?;
    let said = hosts.cure(number, &["--wait=1s"])?;
    says(&said, 20, &["the member of this host does not serve again in 2 s", "goes on with the same command here"]);
    let said = hosts.cure(other, &["--wait=1s"])?;
    assert!(matches!(said.code, Some(10..=12)) && said.out.contains("nothing was changed"), "{said:?}");
    assert!(hosts.kept(number, "nospace.begun").exists() && !hosts.kept(other, "overrides.jsonl").exists());
    assert_eq!(hosts.begun()?, begun);
    hosts.cluster().member(number)?.resume()?;
    Ok(())
}

/// Each step where it is taken: the last two, and leadership, on the leader's host.
#[test]
fn a_cure_that_is_killed_at_each_step_is_ended_by_the_same_command() -> Result<()> {
    let hosts = Hosts::of(EtcdVersion::V3_6)?;
    hosts.fill(1)?;
    let order = hosts.order()?;
    let [first, second, leader] = order[..] else { return Err(anyhow!("{order:?}")) };
    let mut left: BTreeSet<Step> = Step::ALL.into();
    for (host, steps, code, word) in [
        (first, &[Step::Compact, Step::Defragment][..], 20, next(second)),
        (second, &[Step::Defragment], 20, next(leader)),
        (leader, &[Step::HandOver, Step::Defragment, Step::Disarm], 0, "NOSPACE is over".to_owned()),
    ] {
        for step in steps {
            hosts.killed_at(host, *step)?;
            left.remove(step);
        }
        if host == second {
            is_waited_for_while_it_is_away(&hosts, second, leader)?;
        }
        let said = hosts.cure(host, &[])?;
        // Killed once it had copied, its member has room and another one is next: it is not asked again.
        says(&said, code, &[&word]);
        assert!(said.err.contains("going on with what was begun before"), "{said:?}");
    }
    assert_eq!(left, BTreeSet::new());
    hosts.cured()
}

/// The API is read, and takes no writes: whoever holds the Lease is seen, and cannot give it back. A deletion needs no room.
#[test]
fn beside_apiservers_that_take_no_writes_who_holds_the_lease_is_waited_for() -> Result<()> {
    let hosts = Hosts::lay_out(Of::Api(Box::new(Stage::with(EtcdVersion::V3_6, vec![quota()], "quorate-defrag")?)))?;
    let Of::Api(stage) = &hosts.of else { return Err(anyhow!("no apiserver")) };
    let holder = json!({"identity": "they-1", "operation": "upgrade-v1.36.1", "target": "k3", "actor": "a test", "node": "k2", "bootId": "boot-1",
        "step": {"name": "acquired", "touched": false}, "since": 1, "stepSince": 1});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "control-plane-disruption", "namespace": "quorate", "annotations": {"quorate.dev/holder": holder.to_string()}},
        "spec": {"holderIdentity": "they-1", "leaseDurationSeconds": 60}});
    stage.api.apply(&lease.to_string())?;
    hosts.fill(1)?;
    let map = ["create", "configmap", "after", "-n", "quorate"];
    let refused = stage.api.kubectl(map).err().context("it was written")?;
    assert!(format!("{refused:#}").contains("database space exceeded"), "{refused:#}");

    let order = hosts.order()?;
    let [first, second, leader] = order[..] else { return Err(anyhow!("{order:?}")) };
    let said = hosts.cure(first, &["--wait=1s"])?;
    says(&said, 11, &["nothing was changed", "kubectl delete lease -n quorate control-plane-disruption"]);
    assert_eq!(said.codes(), ["Q070"], "{said:?}");
    hosts.untouched(first)?;
    stage.api.kubectl(["delete", "lease", "-n", "quorate", "control-plane-disruption"])?;
    says(&hosts.cure(first, &[])?, 20, &[&next(second)]);
    says(&hosts.cure(second, &[])?, 20, &[&next(leader)]);
    says(&hosts.cure(leader, &[])?, 0, &["NOSPACE is over"]);
    stage.api.kubectl(map)?;
    hosts.cured()
}

/// Without an alarm, with a voter down, beside another alarm, where what is in use fills it: told, and nothing is done. Then it is cured,
/// while somebody writes on: that it comes again is told.
#[test]
fn what_is_refused_changes_nothing_and_what_comes_again_is_told() -> Result<()> {
    let hosts = Hosts::of(EtcdVersion::V3_6)?;
    let order = hosts.order()?;
    let [first, second, leader] = order[..] else { return Err(anyhow!("{order:?}")) };
    says(&hosts.cure(first, &[])?, 0, &["no member has the alarm NOSPACE; nothing was changed"]);
    hosts.fill(100)?;

    hosts.cluster().member(second)?.kill()?;
    let said = hosts.cure(first, &["--wait=1s"])?;
    says(&said, 10, &["nothing was changed", &format!("k{second} does not")]);
    assert!(said.codes().contains(&"Q030".to_owned()), "{said:?}");
    hosts.untouched(first)?;
    hosts.cluster().member(second)?.restart()?;
    // Its own health check says no under an alarm.
    until("it answers", PATIENCE, || {
        Ok(match hosts.call(second, "/v3/kv/range", &json!({"key": "0000", "keys_only": true})) {
            Ok(_) => ControlFlow::Break(()),
            Err(why) => ControlFlow::Continue(why),
        })
    })?;

    let id = hosts.cluster().member(second)?.id().to_string();
    let corrupt = |action: &str| {
        let alarm = json!({"action": action, "memberID": id, "alarm": "CORRUPT"});
        hosts.call(first, "/v3/maintenance/alarm", &alarm)
    };
    corrupt("ACTIVATE")?;
    let said = hosts.cure(first, &["--wait=1s"])?;
    assert!(matches!(said.code, Some(11 | 12)) && said.out.contains("nothing was changed"), "{said:?}");
    assert!(said.out.to_lowercase().contains("corrupt"), "{said:?}");
    hosts.untouched(first)?;
    corrupt("DEACTIVATE")?;

    // More than half of the quota is in use, and a copy is as large: no other is made.
    fs::write(hosts.config(), "times: {stable: 1s}\nrule: {databaseFill: 50}\n")?;
    let said = hosts.cure(first, &["--wait=1s"])?;
    says(&said, 11, &["what is in use fills the database"]);
    let copies: usize = hosts.begun()?.iter().sum();
    assert_eq!((said.codes(), copies), (vec!["Q025".to_owned()], 1), "{said:?}");
    // A deletion needs no room.
    hosts.call(1, "/v3/kv/deleterange", &json!({"key": "0000", "range_end": "9999"}))?;
    says(&hosts.cure(first, &[])?, 20, &[&next(second)]);
    says(&hosts.cure(second, &[])?, 20, &[&next(leader)]);
    fs::write(hosts.config(), "times: {stable: 10s}\n")?;
    let over = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // What is refused for want of room is tried again.
            while !over.load(Ordering::Relaxed) {
                drop(hosts.put(first, 0, 128 << 10));
            }
        });
        let said = hosts.cure(leader, &[]);
        over.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow!("the writer"))?;
        said
    })?;
    says(&said, 20, &["NOSPACE is there again", "find out what writes"]);
    assert!(!hosts.kept(leader, "nospace.begun").exists());
    Ok(())
}
