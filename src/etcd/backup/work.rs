//! One backup, from the look at the cluster to what retention removes: the locks are held by whoever calls.

use super::choose::{Beside, Chosen, choose};
use super::list::Inventory;
use super::manifest::{Compression, FORMAT, Facts, From, Manifest, Node, Stored};
use super::name;
use super::node::{Archive, NoArchive};
use super::progress::Progress;
use super::retain::{self, Dated, Retention};
use super::seal::{Seal, Sum, Summed, hex};
use super::store::{self, Staged, Store, Writer};
use super::take::{Source, Spool, TakeError, Taken, blocking};
use crate::clock::Clock;
use crate::config::Config;
use crate::lock::Guard;
use crate::observe::Sources;
use crate::output;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use futures::future::Either;
use quorum_safety::lock::TooLate;
use quorum_safety::{Code, Component, Fact, Mine, Observation, Policy, Reason};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// What is left free: a disk that is full hurts whoever shares it, etcd itself where the spool is on its node.
const RESERVE: u64 = 256 * 1024 * 1024;

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
    pub(super) beside: Beside,
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

/// What all comes to that may be ended at any time.
enum Prepared {
    /// Of a dry run: what would be done.
    Preview(Report),
    /// All of it lies in the store, but for its names.
    Ready(Box<Ready>),
}

/// What lies in the store, but for its names.
struct Stage {
    manifest: Manifest,
    files: Vec<Staged>,
    of_node: Told,
}

/// A backup that lies in the store, but for its names.
struct Ready {
    seen: Seen,
    stage: Stage,
}

/// What became of the archive of the node.
struct Told {
    line: String,
    /// Whether there is none although it was wanted.
    failed: bool,
}

impl Work<'_> {
    /// Does it. Until names are given it ends when the Lease is lost: then somebody else may change what a snapshot must not be beside.
    pub(super) async fn run(&self, guard: Option<&Guard>) -> Report {
        if !self.dry_run {
            self.store.tidy().await;
        }
        let done = match while_held(guard, self.prepare()).await {
            Ok(Ok(Prepared::Ready(ready))) => self.publish(guard, *ready).await,
            Ok(Ok(Prepared::Preview(report))) => Ok(report),
            Ok(Err(stopped)) => Err(stopped),
            Err(late) => Err(Stopped::failed(late)),
        };
        // What was begun in the store and did not get its name.
        if !self.dry_run {
            self.store.tidy().await;
        }
        match done {
            Ok(report) | Err(Stopped(report)) => report,
        }
    }

    async fn prepare(&self) -> Step<Prepared> {
        let seen = seen::look(&self.sources, self.config, self.mine.clone(), self.clock).await;
        let show = async {
            if let Ok(access) = &self.sources.access {
                seen.show(access).await;
            }
        };
        // Nobody waits for what is only told to people, least of all for an API that is away.
        let (prepared, ()) = tokio::join!(self.prepared(&seen), show);
        Ok(match prepared? {
            Either::Left(report) => Prepared::Preview(report),
            Either::Right(stage) => Prepared::Ready(Box::new(Ready { seen, stage })),
        })
    }

    /// After the look: of a dry run what would be done, else what lies in the store.
    async fn prepared(&self, seen: &Seen) -> Step<Either<Report, Stage>> {
        let chosen = choose(&seen.observation, &seen.in_flight, &self.policy, self.beside).map_err(|reasons| {
            let summary = "no member is fit to take a snapshot from; nothing was stored";
            let ways = ways(&reasons);
            Stopped(
                Report::with_blockers(Outcome::of_reasons(&reasons), summary, &reasons, &ways).on(&seen.observation),
            )
        })?;
        output::progress(&format!("taking the snapshot from {} ({})", chosen.member.name, chosen.member.id));
        for reason in &chosen.passed_over {
            output::progress(&format!("  not from another: {reason}"));
        }
        self.room(chosen.status.db_size)?;
        if self.dry_run {
            return self.preview(seen, &chosen).await.map(Either::Left);
        }
        self.stage_all(seen, &chosen).await.map(Either::Right)
    }

    /// Gives the names, then removes what is old. Giving names is never broken off: between two of them half a backup would stay.
    async fn publish(&self, guard: Option<&Guard>, ready: Ready) -> Step<Report> {
        let Ready { seen, stage: Stage { manifest, files, of_node } } = ready;
        if let Some(Err(late)) = guard.map(Guard::check) {
            return Err(Stopped::failed(lost(&late)));
        }
        self.store.publish(files).await.map_err(Stopped::failed)?;
        let Stored { file, bytes, .. } = &manifest.stored;
        output::progress(&format!("Backup done: {file} ({bytes} bytes)"));
        let Facts { revision, keys, .. } = &manifest.snapshot;
        let keys = keys.map_or_else(|| "too many keys to count".to_owned(), |keys| format!("{keys} keys"));
        let mut summary = format!(
            "Backup done: {file} ({bytes} bytes) in {}; revision {revision}, {keys}, from {}, in {:.1} s",
            self.store, manifest.member.name, manifest.seconds
        );
        let mut told = vec![of_node.line];
        // Those that have an archive do not go for one that lacks it; nor may those that lack it pile up until the disk is full.
        let (outcome, which) = if of_node.failed {
            summary.push_str(
                "; but the archive of the node, which is wanted, is not there, and nothing that has one was removed",
            );
            (Outcome::Midway, Which::WithoutNode)
        } else {
            (Outcome::Ok, Which::All)
        };
        let retained = while_held(guard, self.retain(&manifest, which)).await;
        told.extend(retained.unwrap_or_else(|late| vec![format!("not all that is old was removed: {late}")]));
        Ok(Report::with_blockers(outcome, summary, &[], &told).on(&seen.observation))
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
            if free < bytes.saturating_add(RESERVE) {
                let text = format!(
                    "{} has {free} bytes free; up to {bytes} are needed, and {RESERVE} are to stay free",
                    place.display()
                );
                let summary = format!("there is no room; nothing was stored: {text}");
                return Err(Stopped(Report::new(Outcome::Held, summary, &[])));
            }
        }
        Ok(())
    }

    async fn stage_all(&self, seen: &Seen, chosen: &Chosen) -> Step<Stage> {
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
            clock: self.clock,
        };
        let taken = source.take(self.spool(&file)?).await?;
        let facts = Facts::of(&taken.snapshot);
        let storage_version = taken.snapshot.storage_version.clone();
        let (staged, stored) = self.stage_snapshot(file, taken).await?;
        let (archive, node, of_node) = self.stage_node(&name).await;
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
        Ok(Stage { manifest, files, of_node })
    }

    /// What is stored as it is in a folder is written there at once.
    fn spool(&self, file: &str) -> Step<Spool> {
        match self.store {
            Store::Directory(directory) if self.seal.is_none() => {
                directory.begin(file).map(Spool::Partial).map_err(Stopped::failed)
            }
            Store::Directory(_) | Store::S3(_) => Spool::in_folder(self.spool)
                .map_err(|error| Stopped::failed(format!("{}: {error}", self.spool.display()))),
        }
    }

    async fn stage_snapshot(&self, file: String, taken: Taken) -> Step<(Staged, Stored)> {
        let Taken { spool, snapshot } = taken;
        let sha256 = hex(&snapshot.file_sha256);
        let (compression, encryption) = (self.seal.compression, self.seal.encryption());
        let (staged, sum) = match spool {
            Spool::Partial(partial) => {
                let staged = self.stage(Writer::File(partial)).await.map_err(Stopped::failed)?;
                (staged, Sum { bytes: snapshot.file_size, sha256 })
            }
            Spool::Anonymous(spool) => {
                let progress = Progress::new(snapshot.file_size, format!("storing {file}"), self.clock);
                let proven = Sum { bytes: snapshot.file_size, sha256 };
                let from = progress.of(FromStart { file: spool, at: 0 });
                let fill = move |out: &mut dyn Write| copy_proven(from, &proven, out);
                self.stage_sealed(&file, &self.seal, fill).await.map_err(Stopped::failed)?
            }
        };
        let Sum { bytes, sha256 } = sum;
        Ok((staged, Stored { file, bytes, sha256, compression, encryption }))
    }

    /// What a snapshot does not hold, encrypted or not at all. The snapshot is stored without it, too.
    async fn stage_node(&self, name: &str) -> (Option<Staged>, Node, Told) {
        let absent = |why: String, failed| {
            let line = format!("no archive of the node: {why}");
            (None, Node::Absent(why), Told { line, failed })
        };
        if self.seal.recipients.is_empty() {
            let why = "it holds private keys, and `backup.recipients` names nobody whose identity would open it";
            return absent(why.to_owned(), false);
        }
        let found = Archive::of(self.kubernetes, &self.sources, self.config.times.answer.get()).await;
        let Archive { tar, without_record } = match found {
            Ok(archive) => archive,
            Err(NoArchive::NotWanted(why)) => return absent(why, false),
            Err(NoArchive::Failed(why)) => return absent(why, true),
        };
        let seal = Seal { compression: Compression::Zstd, recipients: self.seal.recipients.clone() };
        let file = name::node(name);
        let (staged, sum) = match self.stage_sealed(&file, &seal, move |out| out.write_all(&tar)).await {
            Ok(staged) => staged,
            Err(why) => return absent(why, true),
        };
        let mut line = format!("archive of the node: {file} ({} bytes)", sum.bytes);
        if let Some(why) = without_record {
            line.push_str(&format!(", without kubeadm's own record, which the snapshot has as well: {why}"));
        }
        let (compression, encryption) = (seal.compression, seal.encryption());
        let stored = Stored { file, bytes: sum.bytes, sha256: sum.sha256, compression, encryption };
        (Some(staged), Node::Stored(stored), Told { line, failed: false })
    }

    async fn stage_bytes(&self, name: &str, bytes: Vec<u8>) -> Step<Staged> {
        let seal = Seal { compression: Compression::None, recipients: Vec::new() };
        let staged = self.stage_sealed(name, &seal, move |out| out.write_all(&bytes)).await;
        staged.map(|(staged, _)| staged).map_err(Stopped::failed)
    }

    async fn stage_sealed(
        &self,
        name: &str,
        seal: &Seal,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<(Staged, Sum), String> {
        let mut writer = self.store.begin(name).await.map_err(|error| error.to_string())?;
        let seal = seal.clone();
        let sealing = blocking(move || {
            let sum = seal.write(&mut writer, fill).map(|(_, sum)| sum);
            (writer, sum)
        });
        let (writer, sum) = sealing.await?;
        // Where the store has failed it says why, and the writing only that it could not go on.
        let staged = self.stage(writer).await.map_err(|error| error.to_string())?;
        let sum = sum.map_err(|error| format!("write {name}: {error}"))?;
        Ok((staged, sum))
    }

    async fn stage(&self, writer: Writer) -> Result<Staged, store::StoreError> {
        self.store.stage(writer).await
    }

    /// Removes what is old, after a backup that is proven and stored; what stands against it is told, and is no failure of the backup.
    async fn retain(&self, manifest: &Manifest, which: Which) -> Vec<String> {
        let (plan, mut told) = match self.plan(&manifest.into(), which).await {
            Ok(planned) => planned,
            Err(why) => return vec![format!("nothing old was removed: {why}")],
        };
        for backup in plan {
            match self.remove(&backup).await {
                Ok(()) => output::progress(&format!("removed: {}", backup.name)),
                Err(error) => told.push(format!("{} is not wholly removed: {error}", backup.name)),
            }
        }
        told
    }

    async fn remove(&self, backup: &Old) -> Result<(), store::StoreError> {
        for file in &backup.files {
            self.store.remove(file).await?;
        }
        Ok(())
    }

    /// What goes for `new`, and what people should know.
    async fn plan(&self, new: &Dated, which: Which) -> Result<(Vec<Old>, Vec<String>), store::StoreError> {
        let found = Inventory::of(self.store).await?;
        let config = &self.config.backup;
        let retention = Retention { keep: config.keep, minimum_age: config.minimum_age.get() };
        let counts = |backup: &Manifest| which == Which::All || matches!(backup.node, Node::Absent(_));
        let dated = |backup: &Manifest| Dated { counts: counts(backup), ..Dated::from(backup) };
        let mut all: Vec<Dated> = found.backups.iter().map(dated).collect();
        // Of a dry run it is not there yet.
        if !all.iter().any(|backup| backup.name == new.name) {
            all.push(new.clone());
        }
        let cluster = retain::Cluster { id: new.cluster_id, uid: new.cluster_uid.clone() };
        let plan = retain::plan(&all, &cluster, retention, new.taken_at);
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
        let taken_at = self.clock.now();
        let new = Dated {
            name: name::of(taken_at),
            taken_at,
            cluster_id: chosen.status.cluster_id,
            cluster_uid: seen.observation.cluster_uid.known().cloned(),
            counts: true,
            // It is going to be the newest, whatever is written until then.
            revision: i64::MAX,
        };
        let lines = match self.plan(&new, Which::All).await {
            Ok((old, told)) => {
                let lines = old.into_iter().map(|old| format!("would be removed after it: {}", old.name));
                lines.chain(told).collect()
            }
            Err(why) => vec![format!("nothing old would be removed: {why}")],
        };
        let summary = format!(
            "a snapshot of {} bytes at most would be taken from {} and stored in {}; nothing was stored or removed",
            chosen.status.db_size, chosen.member.name, self.store
        );
        Ok(Report::with_blockers(Outcome::Ok, summary, &[], &lines).on(&seen.observation))
    }
}

/// What is done under a Lease, for as long as it is held.
async fn while_held<T>(guard: Option<&Guard>, work: impl Future<Output = T>) -> Result<T, String> {
    match guard {
        None => Ok(work.await),
        Some(guard) => tokio::select! {
            done = work => Ok(done),
            late = guard.stopped() => Err(lost(&late)),
        },
    }
}

fn lost(late: &TooLate) -> String {
    format!("Lease {}: {late}", crate::lock::SNAPSHOT)
}

/// Copies what was proven and nothing else: a spool that is no more what it was is told before anything has a name.
fn copy_proven(from: impl Read, proven: &Sum, out: &mut dyn Write) -> io::Result<()> {
    let mut from = Summed::new(from);
    io::copy(&mut from, out)?;
    let (_, found) = from.end();
    if found == *proven {
        return Ok(());
    }
    Err(io::Error::other(format!("what is in the spool is not what was proven: {found:?} and not {proven:?}")))
}

/// Which backups may go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// Those that have no archive of a node.
    WithoutNode,
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
    Report::with_blockers(Outcome::of_reasons(reasons), summary, reasons, &ways(reasons))
}

/// What may be done where nothing but a lock stands in the way.
fn ways(reasons: &[Reason]) -> Vec<String> {
    let of_lock = |reason: &Reason| matches!(reason.code, Code::LeaseHeld | Code::LeaseUnknown);
    let way = "where nobody is at it any more, or no Lease can be written: `quorate etcd backup --here --without-lease --because …` on a \
        control plane node";
    if reasons.iter().all(of_lock) { vec![way.to_owned()] } else { Vec::new() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn only_what_was_proven_is_stored() {
        let of =
            |bytes: &[u8]| Sum { bytes: bytes.len() as u64, sha256: super::super::seal::hex(&Sha256::digest(bytes)) };
        let copy =
            |spool: &[u8]| copy_proven(spool, &of(b"proven"), &mut Vec::new()).map_err(|error| error.to_string());
        assert_eq!(copy(b"proven"), Ok(()));
        for other in [b"Proven".as_slice(), b"prove", b"proven, and more", b""] {
            assert!(copy(other).unwrap_err().contains("not what was proven"));
        }
    }
}
