//! Carries a restore out on its node: each step is written down before it begins, and can be done again.

use super::gate::{self, Found};
use super::host::Host;
use super::journal::{Journal, copy, folder};
use super::prove::{NotProven, prove};
use super::step::Step;
use super::{harmless, tool};
use crate::access::Access;
use crate::cli::Global;
use crate::clock::Clock;
use crate::etcd::backup::open::sum;
use crate::etcd::backup::take::blocking;
use crate::node::command::{Deadline, Echo, run};
use crate::node::probe::Probe;
use crate::observe::etcd::ClientFiles;
use crate::report::{Outcome, Report};
use crate::{output, place};
use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the four may take to end: an apiserver whose watches hold it takes a minute.
const END: Duration = Duration::from_secs(300);
/// How long the kubelet may take to start one, and it to be ready: without an API it waits for the old pod's mirror for half a minute.
const START: Duration = Duration::from_secs(600);
/// How long the API is asked again.
const API: Duration = Duration::from_secs(180);
/// How long the kubelet's restart may take.
const KUBELET: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Those that act on the cluster, in the order in which they come back.
const CONTROLLERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// A restore under way.
pub(super) struct Work<'a> {
    pub(super) global: &'a Global,
    pub(super) host: Host<'a>,
    pub(super) journal: Journal,
    /// The snapshot, until it is copied.
    pub(super) snapshot: Option<File>,
    /// etcd's tool, where one was named.
    pub(super) etcdutl: Option<&'a Path>,
    /// What restarts the kubelet.
    pub(super) systemctl: &'a str,
    pub(super) clock: Clock,
    /// When it began, by the clock's time since boot.
    pub(super) began: Duration,
}

impl Work<'_> {
    /// Does what is left to do, from this step on.
    pub(super) async fn run(mut self, first: Step) -> Report {
        for step in first.onwards() {
            let state = self.host.state;
            let done = match self.journal.begin(state, step) {
                Ok(()) => {
                    self.say(&format!("{}/{} {}", step.number(), Step::ALL.len(), step.title()));
                    self.step(step).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return self.stopped(step, &error);
            }
        }
        match self.journal.end(self.host.state) {
            Ok(()) => self.done(),
            Err(error) => self.stopped(Step::Kubelet, &error),
        }
    }

    /// A line of progress, with the time since it began.
    fn say(&self, text: &str) {
        let seconds = self.clock.boottime().saturating_sub(self.began).as_secs();
        output::progress(&format!("{:>2}:{:02} {text}", seconds / 60, seconds % 60));
    }

    fn stopped(&self, step: Step, error: &anyhow::Error) -> Report {
        let node = &self.journal.node.name;
        let what = vec![format!("step {} of {}, {}: {error:#}", step.number(), Step::ALL.len(), step.title())];
        if !step.touches_nothing() {
            let summary = format!(
                "the restore of {node} is half done; the same command goes on with it; `quorate etcd restore plan` says how to turn back \
                 (TIME is {})",
                self.journal.id
            );
            return Report::with_blockers(Outcome::Midway, summary, &[], &what);
        }
        let report =
            |more: &str| Report::with_blockers(Outcome::Failed, format!("{node} is not restored{more}"), &[], &what);
        match Journal::forget(self.host.state) {
            Ok(()) => report("; nothing was changed"),
            Err(error) => report(&format!("; nothing was changed, but: {error:#}")),
        }
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Keep => self.keep().await,
            Step::Tool => Ok(tool::put(self.host.state, self.etcdutl, &self.journal.node).await?),
            Step::Stop => self.stop().await,
            Step::Aside => {
                self.nothing_runs()?;
                self.host.data_aside(&self.journal)
            }
            Step::Restore => self.restore().await,
            Step::Etcd => self.etcd().await,
            Step::Apiserver => self.apiserver().await,
            Step::Harmless => self.harmless().await,
            Step::Controllers => self.controllers().await,
            Step::Kubelet => {
                let said = run(self.systemctl, &["restart", "kubelet"], KUBELET, Echo::Nothing).await;
                said.map(drop).map_err(|error| anyhow::anyhow!("{error}: {}", error.last_lines().join(" / ")))
            }
        }
    }

    /// A copy on this disk: where it came from may be away later, or be what is restored.
    async fn keep(&mut self) -> anyhow::Result<()> {
        let from = self.snapshot.take().context("the snapshot is not open")?;
        keep(from, copy(self.host.state), self.journal.snapshot.sha256.clone()).await
    }

    fn nothing_runs(&self) -> anyhow::Result<()> {
        let running = self.host.running(&self.journal.node)?;
        anyhow::ensure!(running.is_empty(), "{} run again although they were stopped", running.join(", "));
        Ok(())
    }

    async fn stop(&self) -> anyhow::Result<()> {
        self.host.stop(&self.journal)?;
        self.until(END, async || {
            let running = self.host.running(&self.journal.node)?;
            Ok(if running.is_empty() {
                Ok(())
            } else {
                Err(format!("still running: {}; the kubelet ends them, if it runs", running.join(", ")))
            })
        })
        .await
    }

    async fn restore(&self) -> anyhow::Result<()> {
        self.nothing_runs()?;
        let journal = &self.journal;
        if self.host.data_in_place(journal, false)? {
            return Ok(());
        }
        let data_dir = &journal.node.data_dir;
        if !data_dir.exists() {
            // Its disk was lost.
            fs::create_dir_all(data_dir).with_context(|| format!("make {}", data_dir.display()))?;
        }
        self.host.remove_half_made(journal)?;
        let token = format!("quorate-{}-{}", journal.id, journal.snapshot.hash);
        let (state, new, node) = (self.host.state, journal.new_data(), &journal.node);
        let alone = tool::Alone { name: &node.name, peer_url: &node.peer_url, token: &token };
        let made = tool::restore(&tool::path(state), &copy(state), &alone, &new).await;
        made.map_err(|error| anyhow::anyhow!("{error}: {}", error.last_lines().join(" / ")))?;
        anyhow::ensure!(self.host.data_in_place(journal, true)?, "{} is not in place", new.display());
        Ok(())
    }

    async fn etcd(&self) -> anyhow::Result<()> {
        // They were stopped when it began, which may be long ago.
        for other in &self.journal.others {
            if let Found::Runs(port) = gate::ask(&other.address, gate::CONTROL_PLANE).await {
                anyhow::bail!("{} runs again: port {port} of {} answers; stop it first", other.name, other.address);
            }
        }
        self.host.start_etcd_alone(&self.journal)?;
        let files = self.files();
        self.until(START, async || match prove(&self.journal, &files).await {
            Ok(held) => {
                self.say(&format!(
                    "etcd holds the snapshot: revision {}, {} keys, cluster {}",
                    held.revision, held.keys, held.cluster
                ));
                Ok(Ok(()))
            }
            Err(NotProven::Unanswered(why)) => Ok(Err(format!("etcd is not back: {why}"))),
            Err(wrong @ NotProven::Wrong(_)) => Err(wrong.into()),
        })
        .await
    }

    fn files(&self) -> ClientFiles {
        ClientFiles::in_folder(self.host.kubernetes.join("pki/etcd"))
    }

    /// Ready, by a process that was started since: the old one was seen to be gone, and one that is still ending answers that it is ready.
    async fn apiserver(&self) -> anyhow::Result<()> {
        self.host.start(&self.journal, "kube-apiserver")?;
        let node = &self.journal.node;
        let (probe, address) =
            (Probe::with(self.host.kubernetes.join("pki")), SocketAddr::new(node.address, node.port));
        self.until(START, async || {
            if !self.host.runs(node, "kube-apiserver")? {
                return Ok(Err("the kubelet has not started the apiserver yet".to_owned()));
            }
            Ok(probe.ready(address).await.map_err(|why| format!("the apiserver is not ready: {why}")))
        })
        .await
    }

    /// The API through this node's own apiserver: nobody else's is of this cluster.
    async fn access(&self) -> anyhow::Result<Access> {
        let admin: PathBuf = self.host.kubernetes.join("admin.conf");
        let path = self.global.kubeconfig.as_deref().unwrap_or(&admin);
        let access = Access::from_file(path, &self.global.namespace).await?;
        Ok(access.only_at(&self.journal.node.address.to_string())?)
    }

    async fn harmless(&self) -> anyhow::Result<()> {
        let access = self.access().await?;
        let why = format!(
            "restored on {} from {} ({}): see what the snapshot held, then delete this ConfigMap",
            self.journal.node.name, self.journal.from, self.journal.id
        );
        self.until(API, async || {
            let made = async {
                let config = place::configuration(self.global, &access).await?;
                harmless::make(&access, &config, &why, self.clock).await
            };
            Ok(match made.await {
                Ok(told) => {
                    told.iter().for_each(|line| self.say(line));
                    Ok(())
                }
                Err(error) => Err(format!("{error:#}")),
            })
        })
        .await
    }

    /// They act again: each renews the Lease of its leader.
    async fn controllers(&self) -> anyhow::Result<()> {
        let access = self.access().await?;
        for component in CONTROLLERS.into_iter().filter(|it| self.host.has_aside(&self.journal, it)) {
            let before = renewed(&access, component).await;
            self.host.start(&self.journal, component)?;
            self.until(START, async || {
                Ok(match (&before, renewed(&access, component).await) {
                    (Ok(before), Ok(now)) if now.is_some() && now != *before => Ok(()),
                    // Not known before: that it runs has to do.
                    (Err(_), Ok(Some(_))) if self.host.runs(&self.journal.node, component)? => Ok(()),
                    (_, Err(why)) => Err(format!("{component}: {why}")),
                    (_, Ok(_)) => Err(format!("{component} does not lead yet")),
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Looks until it is so, or never will be, or the time is over. What is waited for is said once each.
    async fn until(
        &self,
        limit: Duration,
        look: impl AsyncFn() -> anyhow::Result<Result<(), String>>,
    ) -> anyhow::Result<()> {
        let (until, mut said) = (Deadline::after(limit), String::new());
        loop {
            let why = match look().await? {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            anyhow::ensure!(!until.passed(), "not within {} s: {why}", limit.as_secs());
            // Without figures: of what changes often it is only those.
            let kind: String = why.chars().filter(|letter| !letter.is_ascii_digit()).collect();
            if said != kind {
                self.say(&format!("waiting: {why}"));
                said = kind;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn done(&self) -> Report {
        let Journal { node, others, snapshot, id, .. } = &self.journal;
        let mut next: Vec<String> = others
            .iter()
            .map(|other| format!("then, once each before the next: `quorate etcd restore join {} --here`", other.name))
            .collect();
        next.push(
            "on every other node, too: `systemctl restart kubelet`; and restart what watches the API by itself, the network plugin first, \
             so that nobody goes on with what is gone"
                .to_owned(),
        );
        let namespace = &self.global.namespace;
        next.push(format!(
            "quorate does nothing until `kubectl -n {namespace} delete configmap quorate-kill-switch`; its key `{}` names the CronJobs that \
             were suspended",
            harmless::SUSPENDED
        ));
        next.push(format!(
            "kept: {} and {}; {} may be deleted",
            self.journal.manifests(self.host.state).display(),
            self.journal.data().display(),
            folder(self.host.state).display()
        ));
        let summary = format!(
            "{} is restored from {}, as a cluster of one member: what was written after revision {} is lost (restore {id})",
            node.name, self.journal.from, snapshot.revision
        );
        Report::with_blockers(Outcome::Ok, summary, &[], &next)
    }
}

/// Copies a snapshot that is open into a file, which is whole or not there.
///
/// # Errors
/// When it cannot be copied, or the copy is another than what was proven.
pub(in crate::etcd) async fn keep(mut from: File, to: PathBuf, sha256: String) -> anyhow::Result<()> {
    let copied = blocking(move || -> anyhow::Result<()> {
        let new = to.with_extension("new");
        from.seek(SeekFrom::Start(0))?;
        let options = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new);
        let mut file = options.with_context(|| format!("open {}", new.display()))?;
        std::io::copy(&mut from, &mut file).with_context(|| format!("write {}", new.display()))?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
        let found = sum(&file)?.sha256;
        anyhow::ensure!(found == sha256, "the copy has SHA-256 {found}, and the snapshot {sha256}");
        fs::rename(&new, &to).with_context(|| format!("rename {}", new.display()))
    })
    .await;
    copied.map_err(|error| anyhow::anyhow!(error))?
}

/// When the leader of a component was last heard of.
async fn renewed(access: &Access, component: &str) -> Result<Option<jiff::Timestamp>, String> {
    let read = access
        .read(&[], |client| async move { Api::<Lease>::namespaced(client, "kube-system").get_opt(component).await });
    let lease = read.await.map_err(|error| error.to_string())?;
    Ok(lease.and_then(|lease| lease.spec?.renew_time).map(|time| time.0))
}
