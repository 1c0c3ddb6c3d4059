//! `quorate etcd verify`: proves that a snapshot on this disk is whole, and tells what it holds. Nothing is asked of any cluster.

use crate::cli::Global;
use crate::cli::etcd::Verify;
use crate::exit::{ExitStatus, UsageError};
use crate::output;
use etcd_snapshot::{Fault, Member, Snapshot, Trailer};
use serde::Serialize;
use std::fs::File;
use std::path::Path;

/// A file in which something is wrong. Exits with 21.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {error}")]
pub struct NotVerified {
    file: String,
    error: etcd_snapshot::Error,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Verified {
    file: String,
    #[serde(flatten)]
    snapshot: Snapshot,
}

/// Runs the command.
///
/// # Errors
/// When the file cannot be read, or something is wrong with it.
pub fn run(global: &Global, verify: &Verify) -> anyhow::Result<ExitStatus> {
    let file = verify.file.display().to_string();
    let snapshot = read(&verify.file)?;
    let verified = Verified { file, snapshot };
    output::answer(global.output, &verified, || render(&verified))?;
    Ok(match verified.snapshot.trailer {
        Trailer::Verified => ExitStatus::Ok,
        Trailer::Missing => ExitStatus::Unknown,
    })
}

fn read(path: &Path) -> anyhow::Result<Snapshot> {
    let file = path.display().to_string();
    let opened = File::open(path).and_then(|opened| Ok((opened.metadata()?.is_file(), opened)));
    let opened = match opened {
        Ok((true, opened)) => opened,
        Ok((false, _)) => return Err(UsageError(format!("{file}: is no file; expected a snapshot of etcd")).into()),
        Err(error) => return Err(UsageError(format!("{file}: {error}")).into()),
    };
    etcd_snapshot::verify(&opened).map_err(|error| match error.fault {
        // The disk, and not what is on it.
        Fault::Read(_) => anyhow::anyhow!("{file}: {error}"),
        _ => NotVerified { file, error }.into(),
    })
}

fn render(verified: &Verified) -> String {
    let Verified { file, snapshot } = verified;
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
