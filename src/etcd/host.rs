//! What stands in for a Lease on a host while the API is away.

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::path::Path;

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
