//! `quorate etcd verify`: proves that a snapshot is whole, wherever it lies and whatever was done to it, and tells what it holds. Nothing is
//! asked of any cluster.

use super::backup::manifest::Manifest;
use super::backup::name;
use super::backup::open::{self, Opened, OpenedArchive};
use super::backup::seal::Identity;
use crate::cli::Global;
use crate::cli::etcd::Verify;
use crate::clock::Clock;
use crate::exit::{ExitStatus, UsageError};
use crate::output;
use etcd_snapshot::{Fault, Member, Snapshot, Trailer};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use open::NotVerified;

/// The answer.
#[derive(Debug, Serialize)]
struct Verified {
    file: String,
    /// What lies beside it, and was compared with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<Manifest>,
    #[serde(flatten)]
    snapshot: Snapshot,
}

/// The answer about the archive of a node.
#[derive(Debug, Serialize)]
struct Archive {
    file: String,
    /// What lies beside it, and was compared with it.
    manifest: Manifest,
    /// The files in it, where an identity was given that opens it.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<Vec<PathBuf>>,
}

impl Archive {
    fn text(&self) -> String {
        let Self { file, manifest, holds } = self;
        let taken_at = manifest.taken_at.strftime("%Y-%m-%d %H:%M:%SZ");
        let mut lines = vec![format!("{file}: as its manifest says, taken {taken_at}")];
        match holds {
            Some(holds) => lines.extend(holds.iter().map(|path| format!("  {}", path.display()))),
            None => lines.push("  not opened: --identity names the file with the identity that opens it".to_owned()),
        }
        lines.join("\n")
    }
}

/// Runs the command.
///
/// # Errors
/// When the file cannot be read, or something is wrong with it.
pub async fn run(global: &Global, verify: &Verify, clock: Clock) -> anyhow::Result<ExitStatus> {
    let file = open::shown(&verify.file);
    let identities = identities(&verify.identity)?;
    let spool = verify.spool.clone().unwrap_or_else(std::env::temp_dir);
    if name::is_node(&file) {
        let OpenedArchive { manifest, holds } = open::archive(&verify.file, identities, &spool, clock).await?;
        let archive = Archive { file, manifest, holds };
        output::answer(global.output, &archive, || archive.text())?;
        return Ok(ExitStatus::Ok);
    }
    let opened = open::open(&verify.file, identities, &spool, clock).await?;
    let snapshot = proven(&file, &opened)?;
    let verified = Verified { file, manifest: opened.manifest, snapshot };
    output::answer(global.output, &verified, || render(&verified))?;
    Ok(match verified.snapshot.trailer {
        Trailer::Verified => ExitStatus::Ok,
        Trailer::Missing => ExitStatus::Unknown,
    })
}

/// The secret keys in some files.
///
/// # Errors
/// When one cannot be read, or holds none.
pub(super) fn identities(files: &[PathBuf]) -> Result<Vec<Identity>, UsageError> {
    let read: Result<Vec<Vec<Identity>>, String> = files.iter().map(|path| Identity::read(path)).collect();
    Ok(read.map_err(UsageError)?.into_iter().flatten().collect())
}

/// Everything in the file, and what its manifest says of it.
///
/// # Errors
/// When it cannot be read, or something is wrong with it.
pub(super) fn proven(file: &str, opened: &Opened) -> anyhow::Result<Snapshot> {
    let snapshot = sound(file, &opened.file)?;
    opened.is_as_its_manifest_says(&snapshot).map_err(|why| NotVerified { file: file.to_owned(), why })?;
    Ok(snapshot)
}

fn sound(file: &str, opened: &File) -> anyhow::Result<Snapshot> {
    etcd_snapshot::verify(opened).map_err(|error| match error.fault {
        // The disk, and not what is on it.
        Fault::Read(_) => anyhow::anyhow!("{file}: {error}"),
        _ => NotVerified { file: file.to_owned(), why: error.to_string() }.into(),
    })
}

/// Verifies a `.db` on this disk, by itself alone.
///
/// # Errors
/// When it cannot be read, or something is wrong with it.
pub fn read(path: &Path) -> anyhow::Result<Snapshot> {
    let (opened, _) = open::here(path)?;
    sound(&path.display().to_string(), &opened)
}

fn render(verified: &Verified) -> String {
    let Verified { file, manifest, snapshot } = verified;
    let pages = &snapshot.pages;
    let (verdict, checksum) = match snapshot.trailer {
        Trailer::Verified => ("whole", "matches"),
        Trailer::Missing => (
            "no fault found, not proven",
            "none: a database out of a data directory, or a snapshot that was cut exactly before its checksum",
        ),
    };
    let mut lines = vec![format!("{file}: {verdict}")];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<12}{text}"));
    line("checksum", checksum.to_owned());
    if let Some(Manifest { taken_at, member, cluster_id, .. }) = manifest {
        let taken_at = taken_at.strftime("%Y-%m-%d %H:%M:%SZ");
        line("manifest", format!("matches: taken {taken_at} from {} of cluster {cluster_id}", member.name));
    }
    line(
        "size",
        format!("{} bytes; {} pages of {} bytes, {} free", snapshot.file_size, pages.total, pages.size, pages.free),
    );
    line("revision", format!("{}{}", snapshot.revision, compacted(snapshot)));
    let keys = snapshot.keys.map_or_else(|| "too many to be counted".to_owned(), |keys| keys.to_string());
    line("keys", format!("{keys}; {} entries in all buckets", snapshot.entries));
    line("hash", snapshot.hash.to_string());
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "not told".to_owned());
    let (cluster, storage) = (version(&snapshot.cluster_version), version(&snapshot.storage_version));
    line("version", format!("cluster {cluster}, storage {storage}"));
    if let (Some(index), Some(term)) = (snapshot.consistent_index, snapshot.term) {
        line("raft", format!("index {index}, term {term}"));
    }
    line("auth", if snapshot.auth_enabled { "on" } else { "off" }.to_owned());
    for member in &snapshot.members {
        line("member", describe(member));
    }
    lines.join("\n")
}

fn compacted(snapshot: &Snapshot) -> String {
    match (snapshot.finished_compaction, snapshot.scheduled_compaction) {
        (Some(finished), Some(scheduled)) if finished < scheduled => {
            format!(", compacted up to {finished}, being compacted up to {scheduled}")
        }
        (Some(finished), _) => format!(", compacted up to {finished}"),
        (None, Some(scheduled)) => format!(", being compacted up to {scheduled}"),
        (None, None) => String::new(),
    }
}

fn describe(member: &Member) -> String {
    let name = if member.name.is_empty() { "(not started)" } else { &member.name };
    let role = if member.is_learner { "learner" } else { "voter" };
    format!("{name} {:x}, {role}, {}", member.id, member.peer_urls.join(" "))
}
