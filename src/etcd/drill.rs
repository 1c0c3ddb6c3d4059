//! `quorate etcd drill`: what a restore would do, on scratch space, with a real etcd that is thrown away. Nobody knows that a backup can be
//! restored who has not restored it.

use super::backup::list::Inventory;
use super::backup::manifest::Facts;
use super::backup::open::{self, NotVerified, Opened};
use super::backup::store::Store;
use super::backup::take::blocking;
use super::host::lock;
use super::restore::prove::{Held, compare, get, look, raised};
use super::restore::tool::{self, Alone};
use super::restore::work::keep;
use super::restore::{Proven, room};
use super::verify;
use crate::access::Access;
use crate::cli::Global;
use crate::cli::etcd::drill::{Drill, Part};
use crate::cli::etcd::restore::From;
use crate::clock::Clock;
use crate::exit::{ExitStatus, UsageError};
use crate::observe::etcd::words;
use crate::report::{Outcome, Report};
use crate::{output, place};
use anyhow::Context;
use contents::{Contents, Served};
use etcd_client::{Client, GetOptions};
use quorum_safety::{ClusterId, NodeName};
use record::Good;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

mod contents;
mod record;

/// The lock of a scratch space, and the folder in it.
const LOCK: &str = "quorate-drill.lock";
const FOLDER: &str = "quorate-drill";
/// Where the etcd of a pod listens: the manifest of the drill says the same.
const IN_POD: &str = "http://127.0.0.1:23790";
/// The only member.
const NAME: &str = "drill";
/// How long etcd may take to serve what was restored.
const SERVES: Duration = Duration::from_secs(300);
/// Between two looks.
const POLL: Duration = Duration::from_millis(250);
/// How far the clocks of two nodes may be apart.
const APART: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// What is rehearsed; kept in the scratch space between the parts of a drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rehearsed {
    /// What it is called.
    from: String,
    /// What the snapshot says.
    facts: Facts,
    /// What is compared of its keys.
    contents: Contents,
    /// The cluster that it is of, where that is told.
    #[serde(default)]
    cluster: Option<ClusterId>,
    /// The version of the member that gave it, where that is told.
    #[serde(default)]
    etcd: Option<String>,
    /// When the drill began.
    began: jiff::Timestamp,
}

impl Rehearsed {
    fn of(from: String, opened: &Opened, facts: Facts, contents: Contents, began: jiff::Timestamp) -> Self {
        let manifest = opened.manifest.as_ref();
        let (cluster, etcd) = (manifest.map(|it| it.cluster_id), manifest.map(|it| it.etcd_version.clone()));
        Self { from, facts, contents, cluster, etcd, began }
    }
}

/// Runs the command.
///
/// # Errors
/// When it could not be begun, or the snapshot is not what it has to be.
pub(super) async fn run(global: &Global, drill: &Drill, clock: Clock) -> anyhow::Result<ExitStatus> {
    let scratch = drill.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let report = match drill.only {
        Some(Part::Fetch) => match fetch(global, drill, &scratch, clock).await? {
            Some(report) => report,
            None => return Ok(ExitStatus::Ok),
        },
        Some(Part::Compare) => {
            let text = fs::read(rehearsed(&scratch)).context("what was fetched")?;
            let rehearsed = serde_json::from_slice(&text)?;
            report(&rehearsed, judged(&rehearsed, IN_POD, clock).await, drill.record.as_deref())
        }
        None => whole(global, drill, &scratch, clock).await?,
    };
    if drill.in_job {
        let report = report.fitted();
        report.leave()?;
        // A drill that has proven nothing has not succeeded: its last success is what is looked at.
        return Ok(report.outcome.status());
    }
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(report.outcome.status())
}

fn snapshot(scratch: &Path) -> PathBuf {
    scratch.join("snapshot.db")
}

fn rehearsed(scratch: &Path) -> PathBuf {
    scratch.join("rehearsed.json")
}

/// The first part, in a pod; what is said where it ends there.
async fn fetch(global: &Global, drill: &Drill, scratch: &Path, clock: Clock) -> anyhow::Result<Option<Report>> {
    let began = clock.now();
    let (from, proven) = proven(global, drill, scratch, clock).await?;
    let Proven { opened, facts, .. } = proven;
    if let Some(report) = lacks_room(scratch, &facts)? {
        return Ok(Some(report));
    }
    let (contents, file) = contents(opened.file.try_clone()?).await?;
    keep(file, snapshot(scratch), facts.sha256.clone()).await?;
    let text = serde_json::to_vec(&Rehearsed::of(from, &opened, facts, contents, began))?;
    fs::write(rehearsed(scratch), text).context("keep what was fetched")?;
    Ok(None)
}

/// What is compared of the keys in a snapshot that was proven.
async fn contents(file: fs::File) -> anyhow::Result<(Contents, fs::File)> {
    let read = blocking(move || Contents::of(&file).map(|contents| (contents, file))).await;
    read.map_err(|error| anyhow::anyhow!(error))?.context("read the keys of the snapshot")
}

/// The snapshot: the one that is named, or the newest of the store.
async fn proven(global: &Global, drill: &Drill, spool: &Path, clock: Clock) -> anyhow::Result<(String, Proven)> {
    if let Some(file) = &drill.file {
        let from = From { file: file.clone(), identity: drill.identity.clone() };
        return Ok((file.clone(), Proven::of(&from, spool, clock).await?));
    }
    let config = match &global.config {
        Some(path) => place::from_file(path)?,
        None => place::configuration(global, &Access::new(global).await?).await?,
    };
    let store = Store::configured(&config.backup, clock).map_err(UsageError)?;
    let store = store.ok_or_else(|| {
        UsageError("the configuration has neither `backup.directory` nor `backup.s3`: say which snapshot".to_owned())
    })?;
    let found = Inventory::of(&store).await?;
    // By the clock of the day it was taken: what is of the future is not the newest, whatever it is.
    let now = clock.now().saturating_add(APART)?;
    let (future, past): (Vec<_>, Vec<_>) = found.backups.into_iter().partition(|backup| backup.taken_at > now);
    for backup in &future {
        output::progress(&format!("passed over: {} is dated in the future", backup.name));
    }
    for strange in &found.strange {
        output::progress(&format!("passed over, it is not whole: {strange}"));
    }
    let Some(newest) = past.last().cloned() else {
        let (strange, future) = (found.strange.len(), future.len());
        let why =
            format!("there is no backup that is whole; {strange} files are strange, {future} backups of the future");
        return Err(NotVerified { file: found.store, why }.into());
    };
    let name = newest.stored.file.clone();
    let opened = open::of_store(&store, newest, verify::identities(&drill.identity)?, spool).await?;
    Ok((name.clone(), Proven::opened(name, opened).await?))
}

/// All of it, on this host.
async fn whole(global: &Global, drill: &Drill, scratch: &Path, clock: Clock) -> anyhow::Result<Report> {
    let (Some(etcd), Some(etcdutl)) = (&drill.etcd, &drill.etcdutl) else {
        return Err(UsageError("--etcd and --etcdutl are wanted".to_owned()).into());
    };
    let Some(_lock) = lock(scratch, LOCK)? else {
        return Ok(Report::new(Outcome::Held, format!("another drill uses {}", scratch.display()), &[]));
    };
    let folder = Folder::new(scratch.join(FOLDER))?;
    let began = clock.now();
    let (from, proven) = proven(global, drill, &folder.0, clock).await?;
    let Proven { opened, facts, .. } = proven;
    if let Some(report) = lacks_room(&folder.0, &facts)? {
        return Ok(report);
    }
    tool::check(etcdutl, etcdutl.display().to_string()).await?;
    let path = snapshot(&folder.0);
    let (contents, file) = contents(opened.file.try_clone()?).await?;
    keep(file, path.clone(), facts.sha256.clone()).await?;
    let [client, peer] = free_ports()?.map(|port| format!("http://127.0.0.1:{port}"));
    let (data, name) = (folder.0.join("data"), NodeName(NAME.to_owned()));
    let token = format!("quorate-drill-{}", facts.hash);
    let made = tool::restore(etcdutl, &path, &Alone { name: &name, peer_url: &peer, token: &token }, &data).await;
    made.map_err(|error| anyhow::anyhow!("{error}: {}", error.last_lines().join(" / ")))?;
    let mut server = Server::start(etcd, &data, &client, &peer)?;
    let rehearsed = Rehearsed::of(from, &opened, facts, contents, began);
    let judged = tokio::select! {
        judged = judged(&rehearsed, &client, clock) => judged,
        ended = server.0.wait() => {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(format!("etcd ended by itself: {how}"))
        }
    };
    server.0.kill().await.context("end the etcd of the drill")?;
    Ok(report(&rehearsed, judged, drill.record.as_deref()))
}

/// What is said where the scratch space has no room for the snapshot and what etcd makes of it.
fn lacks_room(scratch: &Path, facts: &Facts) -> anyhow::Result<Option<Report>> {
    let (_, free) = room(scratch)?;
    let needed = facts.bytes.saturating_add(facts.total_size).saturating_add(super::restore::BESIDE);
    let words = || format!("{} MiB are free at {}, and {} MiB are needed", free >> 20, scratch.display(), needed >> 20);
    Ok((free < needed).then(|| Report::new(Outcome::Held, words(), &[])))
}

/// Whether the etcd of the drill is of the cluster's minor version, which a restore would be made with.
fn is_the_clusters(drills: &str, clusters: Option<&str>) -> Result<(), String> {
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    match clusters {
        Some(clusters) if minor(drills).is_none() || minor(drills) != minor(clusters) => Err(format!(
            "etcd of the drill is {drills}, and the cluster's was {clusters}: a restore would be made with another one; expected the image of the \
             cluster's version"
        )),
        Some(_) | None => Ok(()),
    }
}

/// What is said of it. A good one is put down, where that is wanted; of one that is not, the last good one is told.
fn report(of: &Rehearsed, judged: Result<Good, String>, record: Option<&Path>) -> Report {
    let good = match judged {
        Ok(good) => good,
        Err(why) => {
            let summary = format!("a restore of {} does not work: {why}", of.from);
            let told: Vec<String> = record.map(|path| Good::text(&Good::last(path))).into_iter().collect();
            return Report::with_blockers(Outcome::NotVerified, summary, &[], &told);
        }
    };
    let Good { from, revision, keys, prefixes, compared, etcd, seconds, .. } = &good;
    let summary = format!(
        "a restore of {from} works: revision {revision}, {keys} keys, as many below each of {prefixes} prefixes, and {compared} of them with the \
         values that they have in the snapshot, in {seconds:.1} s from the store to an etcd {etcd} that serves it"
    );
    match record.map_or(Ok(()), |path| good.keep(path)) {
        Ok(()) => Report::new(Outcome::Ok, summary, &[]),
        Err(why) => Report::new(Outcome::Failed, format!("{summary}; but that could not be put down: {why}"), &[]),
    }
}

/// Waits until it is served, and compares.
async fn judged(of: &Rehearsed, endpoint: &str, clock: Clock) -> Result<Good, String> {
    let (held, mut client) = served(&of.facts, endpoint, clock).await?;
    compare(&of.facts, of.cluster, &NodeName(NAME.to_owned()), &held)?;
    let etcd = client.status().await.map_err(|error| words(&error))?.version().to_owned();
    is_the_clusters(&etcd, of.etcd.as_deref())?;
    let at = clock.now();
    let seconds = at.duration_since(of.began).as_secs_f64();
    let same = same(&mut client, of).await;
    same.map_err(|why| format!("what was restored is not the snapshot: {why}"))?;
    Ok(Good {
        at,
        from: of.from.clone(),
        revision: of.facts.revision,
        keys: held.keys,
        prefixes: of.contents.prefixes.len(),
        compared: of.contents.sample.len(),
        etcd,
        seconds,
    })
}

/// Compares prefixes and keys, at the revision to which the snapshot was raised: what etcd itself does later, such as when leases end, does not
/// count.
async fn same(client: &mut Client, of: &Rehearsed) -> Result<(), String> {
    let at = || GetOptions::new().with_revision(raised(&of.facts));
    for prefix in &of.contents.prefixes {
        let count = get(client, prefix.prefix.clone(), at().with_prefix().with_count_only()).await?.count();
        prefix.compare(count)?;
    }
    for sampled in &of.contents.sample {
        let answer = get(client, sampled.key.clone(), at()).await?;
        let found = answer.kvs().first().map(|found| Served::of(found.mod_revision(), found.value()));
        sampled.compare(found.as_ref())?;
    }
    Ok(())
}

async fn served(facts: &Facts, endpoint: &str, clock: Clock) -> Result<(Held, Client), String> {
    let until = clock.boottime().saturating_add(SERVES);
    loop {
        let asked = async {
            let mut client = Client::connect([endpoint], None).await.map_err(|error| words(&error))?;
            look(&mut client, facts).await.map(|held| (held, client))
        };
        match asked.await {
            Ok(held) => return Ok(held),
            Err(why) if clock.boottime() >= until => {
                return Err(format!("not served within {} s: {why}", SERVES.as_secs()));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Two ports on which nobody listens. None of those that the kernel gives to outgoing connections, or Kubernetes to Services: one that is free
/// now could be taken until etcd has been restored. Another drill begins elsewhere.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    const PORTS: std::ops::Range<u16> = 20_000..30_000;
    let pairs = u32::from(PORTS.end - PORTS.start) / 2;
    let begin = usize::try_from(std::process::id() % pairs)? * 2;
    let all = PORTS.skip(begin).chain(PORTS.take(begin));
    let mut free = all.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    let two = free.next().zip(free.next());
    two.map(|(one, other)| [one, other]).with_context(|| format!("no two of the ports {PORTS:?} are free"))
}

/// The scratch space of one drill; what a killed one has left is removed before, and everything afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> anyhow::Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "The scratch space of a drill is not removed");
        }
    }
}

/// The etcd of a drill; killed when it is over.
struct Server(Child);

impl Server {
    fn start(etcd: &Path, data: &Path, client: &str, peer: &str) -> anyhow::Result<Self> {
        let log = fs::File::create(data.with_extension("log")).context("make its log")?;
        let mut command = Command::new(etcd);
        command.args([
            format!("--name={NAME}"),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={NAME}={peer}"),
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {}", etcd.display()))?;
        Ok(Self(child))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_made_with_an_etcd_of_the_clusters_minor_version() {
        for (drills, clusters, wanted) in [
            ("3.6.15", Some("3.6.15"), true),
            ("3.6.8", Some("3.6.15"), true),
            ("3.5.21", Some("3.6.15"), false),
            ("3.60.0", Some("3.6.15"), false),
            ("", Some("3.6.15"), false),
            ("3.6.8", Some("of today"), false),
            ("3.6.8", None, true),
        ] {
            assert_eq!(is_the_clusters(drills, clusters).is_ok(), wanted, "{drills} {clusters:?}");
        }
    }

    #[test]
    fn a_drill_takes_two_ports_that_no_outgoing_connection_gets() {
        let [one, other] = free_ports().unwrap();
        assert!(one != other && [one, other].iter().all(|port| (20_000..30_000).contains(port)), "{one} {other}");
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, one)).unwrap();
        assert!(!free_ports().unwrap().contains(&one), "somebody listens there");
    }
}
