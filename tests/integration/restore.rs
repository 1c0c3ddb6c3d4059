//! Restores by the program itself, of real etcd under real apiservers. Nobody but a kubelet reads manifests, so `kubelet` plays one: it runs
//! what lies in the folder of manifests as plain processes, with the very command lines that are in them.

mod killed;
mod kubelet;
mod refused;
mod three;

use crate::said::Said;
use anyhow::{Context, Result, anyhow, ensure};
use kubelet::{COMPONENTS, Kubelet};
use lab::api::{Api, Spec};
use lab::etcd::EtcdVersion;
use lab::process::{Process, until};
use serde_json::{Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(180);

/// A control plane on the host of k1, whose static pods a kubelet runs; and our folder on that host.
struct Place {
    // Dropped first: it would start again what is killed.
    kubelet: Option<Kubelet>,
    api: Api,
    version: EtcdVersion,
    state: TempDir,
    snapshots: TempDir,
}

impl Place {
    /// Started by the lab, as one does that was never restored.
    fn new(version: EtcdVersion, members: u8, controllers: bool) -> Result<Self> {
        let api = Api::start(Spec { etcd: version, etcd_members: members, controllers, ..Spec::default() })?;
        let place = Self { kubelet: None, api, version, state: TempDir::new()?, snapshots: TempDir::new()? };
        fs::create_dir(place.kubernetes().join("manifests"))?;
        fs::copy(place.api.kubeconfig()?, place.kubernetes().join("admin.conf"))?;
        place.script("systemctl", &format!("echo \"$@\" >>{}", place.restarts().display()))?;
        place.map("before")?;
        Ok(place)
    }

    /// kubeadm's folder.
    fn kubernetes(&self) -> &Path {
        self.api.etcd().dir()
    }

    fn data_dir(&self) -> PathBuf {
        self.kubernetes().join("k1/etcd")
    }

    fn restarts(&self) -> PathBuf {
        self.state.path().join("restarts")
    }

    fn script(&self, name: &str, text: &str) -> Result<()> {
        let path = self.snapshots.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// An object by which a state is told.
    fn map(&self, name: &str) -> Result<()> {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
        self.api.apply(&map.to_string()).map(drop)
    }

    fn has_map(&self, name: &str) -> Result<bool> {
        let names = self.api.kubectl(["get", "configmap", "-n", "default", "-o", "name"])?;
        Ok(names.lines().any(|line| line == format!("configmap/{name}")))
    }

    /// What etcd's own tool saves, from k1.
    fn snapshot(&self) -> Result<PathBuf> {
        let (path, pki) = (self.snapshots.path().join("etcd.db"), self.kubernetes().join("pki/etcd"));
        let member = self.api.etcd().member(1)?;
        let saved = Command::new(lab::binaries::etcdctl()?)
            .arg(format!("--endpoints={}", member.endpoint()))
            .arg(format!("--cacert={}", pki.join("ca.crt").display()))
            .arg(format!("--cert={}", pki.join("healthcheck-client.crt").display()))
            .arg(format!("--key={}", pki.join("healthcheck-client.key").display()))
            .args(["snapshot", "save"])
            .arg(&path)
            .output()?;
        ensure!(saved.status.success(), "{saved:?}");
        Ok(path)
    }

    /// From the lab to a kubelet: what runs on k1 is written down as manifests, and run by them.
    fn hand_over(&mut self) -> Result<()> {
        let mut processes: Vec<(&str, &Process)> =
            vec![("kube-apiserver", self.api.apiserver(1)?), ("etcd", self.api.etcd().member(1)?.process())];
        if let (Ok(manager), Ok(scheduler)) = (self.api.controller_manager(), self.api.scheduler()) {
            processes.insert(0, ("kube-controller-manager", manager));
            processes.insert(0, ("kube-scheduler", scheduler));
        }
        for (name, process) in processes {
            let pid = process.pid().context("it does not run")?;
            let words = fs::read(format!("/proc/{pid}/cmdline"))?;
            let words: Vec<String> =
                words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let words: String =
                words.iter().filter(|word| !word.is_empty()).map(|word| format!("    - {word}\n")).collect();
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: kube-system\nspec:\n  containers:\n  - name: {name}\n    image: \
                 registry.k8s.io/{name}:lab\n    command:\n{words}"
            );
            process.kill()?;
            fs::write(self.kubernetes().join("manifests").join(format!("{name}.yaml")), pod)?;
        }
        self.kubelet = Some(Kubelet::start(self.kubernetes().to_owned()));
        self.api.etcd().member(1)?.health().or_else(|_| self.healthy())
    }

    fn healthy(&self) -> Result<()> {
        let member = self.api.etcd().member(1)?;
        until("etcd of k1 is healthy", PATIENCE, || {
            Ok(member.health().map_or_else(ControlFlow::Continue, |()| ControlFlow::Break(())))
        })
    }

    /// Waits until the API answers.
    fn served(&self) -> Result<()> {
        until("the API answers", PATIENCE, || {
            let asked = self.api.request("GET", "/readyz?verbose", None).map(drop);
            let asked = asked.or_else(|_| self.api.kubectl(["get", "namespace", "default"]).map(drop));
            Ok(asked.map_or_else(ControlFlow::Continue, ControlFlow::Break))
        })
    }

    fn args(&self, words: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = ["etcd", "restore"].iter().chain(words).map(ToString::to_string).collect();
        args.push(format!("--kubernetes-dir={}", self.kubernetes().display()));
        args.push(format!("--state-dir={}", self.state.path().display()));
        args.push("-ojson".to_owned());
        args
    }

    /// The arguments of a restore of this host, confirmed.
    fn run_args(&self, file: &Path, more: &[&str]) -> Result<Vec<String>> {
        let file = file.display().to_string();
        let mut args = self.args(&[&["run", &file, "--here"], more].concat());
        args.push(format!("--etcdutl={}", lab::binaries::etcdutl(self.version)?.display()));
        args.push(format!("--systemctl={}", self.snapshots.path().join("systemctl").display()));
        Ok(args)
    }

    fn restore(&self, file: &Path, more: &[&str]) -> Result<Said> {
        Ok(quorate(&self.run_args(file, more)?)?.into())
    }

    /// A look at etcd's data and the kubelet's folder: what nobody has touched.
    fn untouched(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in [self.kubernetes().join("manifests"), self.data_dir()] {
            for entry in fs::read_dir(folder)? {
                names.push(entry?.path().display().to_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What is so after every restore.
    fn is_restored(&self) -> Result<()> {
        self.served()?;
        ensure!(self.has_map("before")? && !self.has_map("after")?, "{}", self.api.kubectl(["get", "cm", "-A"])?);
        let status = self.api.etcd().member(1)?.call("/v3/maintenance/status", &json!({}))?;
        let revision: i64 = status["header"]["revision"].as_str().context("no revision")?.parse()?;
        ensure!(revision > 1_000_000_000, "{status}");
        // What it was raised over is compacted: a client that has seen a revision of before is told, and lists anew.
        let old =
            json!({"key": "AA==", "range_end": "AA==", "limit": "1", "keys_only": true, "revision": "1000000000"});
        let Err(said) = self.api.etcd().member(1)?.call("/v3/kv/range", &old) else {
            return Err(anyhow!("it serves old revisions"));
        };
        ensure!(format!("{said:#}").contains("required revision has been compacted"), "{said:#}");
        // The kubelet was told, the data of before is there still, and so are the manifests.
        ensure!(fs::read_to_string(self.restarts())?.contains("restart kubelet"));
        let kept: Vec<String> = self.untouched()?.into_iter().filter(|name| name.contains("member-before-")).collect();
        ensure!(kept.len() == 1 && Path::new(&kept[0]).join("wal").is_dir(), "{kept:?}");
        let aside = fs::read_dir(self.state.path().join("aside"))?.next().context("nothing aside")??.path();
        for component in COMPONENTS {
            let there = self.kubernetes().join("manifests").join(format!("{component}.yaml")).exists();
            ensure!(aside.join(format!("{component}.yaml")).exists() == there, "{component}");
        }
        ensure!(!self.state.path().join("restore.begun").exists() && self.state.path().join("restore.done").exists());
        Ok(())
    }
}

fn quorate(args: &[String]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(args).env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG");
    Ok(command.output()?)
}

/// Of each version that it meets; 3.6 is the one that is killed at each step.
fn one_member_is_restored(version: EtcdVersion) -> Result<()> {
    let mut place = Place::new(version, 1, false)?;
    let file = place.snapshot()?;
    place.map("after")?;
    place.hand_over()?;
    place.served()?;
    // Of its one member: it has quorum, until it is said that this does not matter.
    place.restore(&file, &["--yes=k1"])?.ended(10, "Q038-restore-over-quorum");
    let why = ["--yes=k1", "--although-quorum", "--because=a test throws it away"];
    let said = place.restore(&file, &why)?.ended(0, "k1 is restored from");
    assert!(said.err.contains("etcd holds the snapshot: revision 1000000"), "{said:?}");
    let recorded = fs::read_to_string(place.state.path().join("overrides.jsonl"))?;
    assert!(recorded.contains("a test throws it away") && recorded.contains("Q038-restore-over-quorum"), "{recorded}");
    place.is_restored()
}

#[test]
fn one_member_of_etcd_3_5_is_restored() -> Result<()> {
    one_member_is_restored(EtcdVersion::V3_5)
}

#[test]
fn one_member_of_etcd_3_7_is_restored() -> Result<()> {
    one_member_is_restored(EtcdVersion::V3_7)
}
