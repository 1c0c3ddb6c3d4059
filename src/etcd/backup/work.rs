//! One backup, from the look at the cluster to what retention removes: the locks are held by whoever calls.

use super::choose::{Chosen, choose};
use super::list::Inventory;
use super::manifest::{FORMAT, Facts, From, Manifest, Node, Stored};
use super::retain::{self, Retention};
use super::seal::{Seal, Sum};
use super::store::{self, Staged, Store, Writer};
use super::take::{Source, Spool, TakeError, Taken, blocking, progress};
use super::{name, node};
use crate::clock::Clock;
use crate::config::Config;
use crate::lock::Guard;
use crate::observe::Sources;
use crate::output;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use quorum_safety::{Code, Component, Fact, Mine, Observation, Policy, Reason};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A backup that was asked for.
pub(super) struct Work<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) config: &'a Config,
    pub(super) policy: Policy,
    pub(super) clock: Clock,
    pub(super) mine: Mine,
    pub(super) store: &'a Store,
    pub(super) seal: Seal,
    /// Where the snapshot is kept until it is stored.
    pub(super) spool: &'a Path,
    /// kubeadm's folder, for the archive of the node.
    pub(super) kubernetes: &'a Path,
    pub(super) dry_run: bool,
}

/// Why it ended before its end: how, and what it says.
struct Stopped(Report);

type Step<T> = Result<T, Stopped>;

impl Stopped {
    fn failed(why: impl std::fmt::Display) -> Self {
        Self(Report::new(Outcome::Failed, format!("{why}; nothing was stored"), &[]))
    }
}

impl std::convert::From<TakeError> for Stopped {
    fn from(error: TakeError) -> Self {
        let outcome = match error {
            TakeError::NotSound { .. } => Outcome::NotVerified,
            TakeError::Member { .. } | TakeError::Spool { .. } => Outcome::Failed,
        };
        Self(Report::new(outcome, format!("{error}; nothing was stored"), &[]))
    }
}

impl Work<'_> {
    /// Does it. Ends early when the Lease is lost: then somebody else may change what a snapshot must not be beside.
    pub(super) async fn run(&self, guard: Option<&Guard>) -> Report {
        if !self.dry_run {
            self.store.tidy().await;
        }
        let work = self.backup();
        let done = match guard {
            None => work.await,
            Some(guard) => tokio::select! {
                done = work => done,
                late = guard.stopped() => Err(Stopped::failed(format!("Lease {}: {late}", crate::lock::SNAPSHOT))),
            },
        };
        // What was begun in the store and did not get its name.
        if !self.dry_run {
            self.store.tidy().await;
        }
        match done {
            Ok(report) | Err(Stopped(report)) => report,
        }
    }

    async fn backup(&self) -> Step<Report> {
        let seen = seen::look(&self.sources, self.config, self.mine.clone(), self.clock).await;
        if let Ok(access) = &self.sources.access {
            seen.show(access).await;
        }
        let chosen = choose(&seen.observation, &seen.in_flight, &self.policy).map_err(|reasons| {
            let summary = "no member is fit to take a snapshot from; nothing was stored";
            Stopped(Report::new(Outcome::of_reasons(&reasons), summary, &reasons).on(&seen.observation))
        })?;
        output::progress(&format!("taking the snapshot from {} ({})", chosen.member.name, chosen.member.id));
        for reason in &chosen.passed_over {
            output::progress(&format!("  not from another: {reason}"));
        }
        self.room(chosen.status.db_size)?;
        if self.dry_run {
            return self.preview(&seen, &chosen).await;
        }
        let manifest = self.store_one(&seen, &chosen).await?;
        let Stored { file, bytes, .. } = &manifest.stored;
        output::progress(&format!("Backup done: {file} ({bytes} bytes)"));
        let Facts { revision, keys, .. } = &manifest.snapshot;
        let keys = keys.map_or_else(|| "too many keys to count".to_owned(), |keys| format!("{keys} keys"));
        let summary = format!(
            "Backup done: {file} ({bytes} bytes) in {}; revision {revision}, {keys}, from {}, in {:.1} s",
            self.store, manifest.member.name, manifest.seconds
        );
        let mut told: Vec<String> = match &manifest.node {
            Node::Stored(stored) => vec![format!("archive of the node: {} ({} bytes)", stored.file, stored.bytes)],
            Node::Absent(why) => vec![format!("no archive of the node: {why}")],
        };
        told.extend(self.retain(&manifest).await);
        Ok(Report::with_blockers(Outcome::Ok, summary, &[], &told).on(&seen.observation))
    }

    /// Whether there is room, by what the member says of its database: asked before, since a disk that is full hurts others too.
    fn room(&self, size: u64) -> Step<()> {
        let stored = self.store.folder();
        // What is stored as it is has no spool; and compression may save nothing.
        let places = if self.seal.is_none() { [stored, None] } else { [Some(self.spool), stored] };
        let mut wanted: Vec<(&Path, u64)> = Vec::new();
        for place in places.into_iter().flatten() {
            let of = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
            match wanted.iter_mut().find(|(other, _)| of(other).is_some() && of(other) == of(place)) {
                Some((_, bytes)) => *bytes = bytes.saturating_add(size),
                None => wanted.push((place, size)),
            }
        }
        if stored.is_none() && self.seal.is_none() {
            wanted.push((self.spool, size));
        }
        for (place, bytes) in wanted {
            let free = store::free(place).map_err(|error| Stopped::failed(format!("{}: {error}", place.display())))?;
            if free < bytes {
                let text = format!("{} has {free} bytes free, and up to {bytes} are needed", place.display());
                let summary = format!("there is no room; nothing was stored: {text}");
                return Err(Stopped(Report::new(Outcome::Held, summary, &[])));
            }
        }
        Ok(())
    }

    async fn store_one(&self, seen: &Seen, chosen: &Chosen) -> Step<Manifest> {
        let (began, taken_at) = (self.clock.boottime(), self.clock.now());
        let name = name::of(taken_at);
        let file = name::snapshot(&name, self.seal.compression, !self.seal.recipients.is_empty());
        let source = Source {
            files: &self.sources.etcd,
            member: &chosen.member,
            cluster: chosen.status.cluster_id,
            size: chosen.status.db_size,
            answer: self.config.times.answer.get(),
            stall: self.config.backup.stall.get(),
        };
        let taken = source.take(self.spool(&name, &file)?).await?;
        let facts = Facts::of(&taken.snapshot, taken.sha256.clone());
        let storage_version = taken.snapshot.storage_version.clone();
        let (staged, stored) = self.stage_snapshot(file, taken).await?;
        let (archive, node) = self.stage_node(&name).await?;
        let manifest = Manifest {
            format: FORMAT,
            name,
            taken_at,
            seconds: self.clock.boottime().saturating_sub(began).as_secs_f64(),
            cluster_id: chosen.status.cluster_id,
            cluster_uid: seen.observation.cluster_uid.known().cloned(),
            member: From { name: chosen.member.name.clone(), id: chosen.member.id },
            etcd_version: chosen.status.version.clone(),
            storage_version,
            kubernetes_version: kubernetes_version(&seen.observation),
            snapshot: facts,
            stored,
            node,
        };
        // The manifest last: what lies beside one is whole.
        let text = serde_json::to_vec_pretty(&manifest).map_err(Stopped::failed)?;
        let said = self.stage_bytes(&name::manifest(&manifest.name), text).await?;
        let files = archive.into_iter().chain([staged, said]).collect();
        self.store.publish(files).await.map_err(Stopped::failed)?;
        Ok(manifest)
    }

    /// What is stored as it is in a folder is written there at once.
    fn spool(&self, name: &str, file: &str) -> Step<Spool> {
        match self.store {
            Store::Directory(directory) if self.seal.is_none() => {
                directory.begin(file).map(Spool::Partial).map_err(Stopped::failed)
            }
            Store::Directory(_) | Store::S3(_) => Spool::in_folder(self.spool, name)
                .map_err(|error| Stopped::failed(format!("{}: {error}", self.spool.display()))),
        }
    }

    async fn stage_snapshot(&self, file: String, taken: Taken) -> Step<(Staged, Stored)> {
        let Taken { spool, snapshot, sha256 } = taken;
        let (compression, encryption) = (self.seal.compression, self.seal.encryption());
        let (staged, sum) = match spool {
            Spool::Partial(partial) => {
                let staged = self.stage(Writer::File(partial)).await?;
                (staged, Sum { bytes: snapshot.file_size, sha256 })
            }
            Spool::Anonymous(spool) => {
                let bar = progress(snapshot.file_size, format!("storing {file}"));
                let shown = bar.clone();
                let fill = move |out: &mut dyn Write| {
                    let mut from = FromStart { file: spool, at: 0 };
                    io::copy(&mut shown.wrap_read(&mut from), out).map(drop)
                };
                let staged = self.stage_sealed(&file, &self.seal, fill).await;
                bar.finish_and_clear();
                staged?
            }
        };
        let Sum { bytes, sha256 } = sum;
        Ok((staged, Stored { file, bytes, sha256, compression, encryption }))
    }

    /// What a snapshot does not hold, encrypted or not at all.
    async fn stage_node(&self, name: &str) -> Step<(Option<Staged>, Node)> {
        if self.seal.recipients.is_empty() {
            let why = "it holds private keys, and `backup.recipients` names nobody whose identity would open it";
            return Ok((None, Node::Absent(why.to_owned())));
        }
        let found = match node::Archive::of(self.kubernetes, &self.sources, self.config.times.answer.get()).await {
            Ok(found) => found,
            Err(why) => return Ok((None, Node::Absent(why))),
        };
        let seal = Seal { compression: super::manifest::Compression::Zstd, recipients: self.seal.recipients.clone() };
        let file = name::node(name);
        let (staged, sum) = self.stage_sealed(&file, &seal, move |out| found.write(out)).await?;
        let (compression, encryption) = (seal.compression, seal.encryption());
        let stored = Stored { file, bytes: sum.bytes, sha256: sum.sha256, compression, encryption };
        Ok((Some(staged), Node::Stored(stored)))
    }

    async fn stage_bytes(&self, name: &str, bytes: Vec<u8>) -> Step<Staged> {
        let seal = Seal { compression: super::manifest::Compression::None, recipients: Vec::new() };
        self.stage_sealed(name, &seal, move |out| out.write_all(&bytes)).await.map(|(staged, _)| staged)
    }

    async fn stage_sealed(
        &self,
        name: &str,
        seal: &Seal,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Step<(Staged, Sum)> {
        let mut writer = self.store.begin(name).await.map_err(Stopped::failed)?;
        let seal = seal.clone();
        let sealing = blocking(move || {
            let sum = seal.write(&mut writer, fill).map(|(_, sum)| sum);
            (writer, sum)
        });
        let (writer, sum) = sealing.await.map_err(Stopped::failed)?;
        // Where the store has failed it says why, and the writing only that it could not go on.
        let staged = self.stage(writer).await?;
        let sum = sum.map_err(|error| Stopped::failed(format!("write {name}: {error}")))?;
        Ok((staged, sum))
    }

    async fn stage(&self, writer: Writer) -> Step<Staged> {
        self.store.stage(writer).await.map_err(Stopped::failed)
    }

    /// Removes what is old, after a backup that is proven and stored; what stands against it is told, and is no failure of the backup.
    async fn retain(&self, manifest: &Manifest) -> Vec<String> {
        let (plan, mut told) =
            match self.plan(manifest.cluster_id, manifest.cluster_uid.clone(), manifest.taken_at).await {
                Ok(planned) => planned,
                Err(why) => return vec![format!("nothing old was removed: {why}")],
            };
        for backup in plan {
            for file in &backup.files {
                if let Err(error) = self.store.remove(file).await {
                    told.push(format!("{} is not wholly removed: {error}", backup.name));
                    break;
                }
            }
            output::progress(&format!("removed: {}", backup.name));
        }
        told
    }

    async fn plan(
        &self,
        id: quorum_safety::ClusterId,
        uid: Option<String>,
        now: jiff::Timestamp,
    ) -> Result<(Vec<Old>, Vec<String>), store::StoreError> {
        let found = Inventory::of(self.store).await?;
        let config = &self.config.backup;
        let retention = Retention { keep: config.keep, minimum_age: config.minimum_age.get() };
        let plan = retain::plan(&found.backups, &retain::Cluster { id, uid }, retention, now);
        let old = |name: &String| {
            let backup = found.backups.iter().find(|backup| backup.name == *name)?;
            // The manifest last: what is half removed is still told as a backup that is not whole.
            let files = backup.files().map(|stored| stored.file.clone()).chain([name::manifest(name)]);
            Some(Old { name: name.clone(), files: files.collect() })
        };
        let told = plan.told.into_iter().chain(found.strange.iter().map(|what| format!("strange: {what}")));
        Ok((plan.remove.iter().filter_map(old).collect(), told.collect()))
    }

    async fn preview(&self, seen: &Seen, chosen: &Chosen) -> Step<Report> {
        let uid = seen.observation.cluster_uid.known().cloned();
        let planned = self.plan(chosen.status.cluster_id, uid, self.clock.now()).await;
        let lines = match planned {
            Ok((old, told)) => old
                .into_iter()
                .map(|old| format!("would be removed, if it were not for the new one: {}", old.name))
                .chain(told)
                .collect(),
            Err(why) => vec![format!("nothing old would be removed: {why}")],
        };
        let summary = format!(
            "a snapshot of {} bytes at most would be taken from {} and stored in {}; nothing was stored or removed",
            chosen.status.db_size, chosen.member.name, self.store
        );
        Ok(Report::with_blockers(Outcome::Ok, summary, &[], &lines).on(&seen.observation))
    }
}

/// A backup that goes, and its files.
struct Old {
    name: String,
    files: Vec<String>,
}

/// Reads a file from its beginning, wherever its own position is.
struct FromStart {
    file: std::fs::File,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

/// The version of an apiserver, by the tag of its image.
fn kubernetes_version(seen: &Observation) -> Option<String> {
    let pods = seen.nodes.known()?.iter().filter_map(|node| node.static_pods.known()).flatten();
    let mut images = pods.filter(|pod| pod.component == Component::Apiserver).map(|pod| pod.image.as_str());
    images.find_map(|image| Some(image.rsplit_once(':')?.1.to_owned()))
}

/// Why the Lease is not to be had, as a report.
pub(super) fn held(reasons: &[Reason]) -> Report {
    let summary = "the lock of snapshots is not to be had; nothing was stored";
    Report::new(Outcome::of_reasons(reasons), summary, reasons)
}

/// Why the Lease may not be asked for.
pub(super) fn no_lease(why: String) -> Report {
    held(&[Reason::new(Code::LeaseUnknown, why)])
}

/// How long to wait for another backup to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// What a look at a host would tell: nobody looks at one for a snapshot.
pub(super) async fn no_unit(_: quorum_safety::NodeName) -> Fact<bool> {
    Fact::Unknown("a backup looks at no host".to_owned())
}
