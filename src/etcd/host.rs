//! What stands in for a Lease on a host while the API is away.

use crate::clock::Clock;
use crate::output;
use anyhow::Context;
use quorum_safety::Code;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// The overrides that were used on this host, one a line.
const OVERRIDES: &str = "overrides.jsonl";

/// Takes the lock of that name in a folder, which is made; none while another process of this host has it. The kernel lets go of it when
/// the file is closed or the process ends, however it ends.
///
/// # Errors
/// When the folder cannot be used.
pub(super) fn lock(folder: &Path, name: &str) -> anyhow::Result<Option<File>> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(name);
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = open.with_context(|| format!("open {}", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// A line of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Override<'a> {
    at: String,
    command: &'a str,
    because: &'a str,
    lifted: &'a [Code],
}

/// Records that this host uses an override, and why.
///
/// # Errors
/// When it cannot be recorded: what is not recorded is not done.
pub(super) fn record(folder: &Path, command: &str, because: &str, lifted: &[Code], clock: Clock) -> anyhow::Result<()> {
    let path = folder.join(OVERRIDES);
    let line = serde_json::to_string(&Override { at: clock.now().to_string(), command, because, lifted })?;
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(file, "{line}")?;
        file.sync_all()
    };
    written().with_context(|| format!("write {}", path.display()))?;
    output::progress(&format!("recorded in {}: {because}", path.display()));
    Ok(())
}
