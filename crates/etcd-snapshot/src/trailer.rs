//! The checksum at the end of a snapshot: etcd sends the SHA-256 of the database after it.

use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Fault, unread};
use crate::source::ReadAt;

/// Bytes of the checksum.
pub(crate) const TRAILER: u64 = 32;
/// A database is whole pages, and a page is whole sectors of this size (etcdutl, hasChecksum).
const SECTOR: u64 = 512;
/// How much is read at once: what stays in a core's cache.
const BLOCK: u64 = 64 * 1024;

/// How a file is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the database, without checksum.
    pub(crate) database: u64,
    pub(crate) has_trailer: bool,
}

impl Layout {
    /// By the size of a file alone, as etcd tells them apart.
    pub(crate) fn of(size: u64) -> Result<Self, Error> {
        match size % SECTOR {
            0 => Ok(Self { database: size, has_trailer: false }),
            TRAILER => Ok(Self { database: size.saturating_sub(TRAILER), has_trailer: true }),
            _ => Err(Fault::Size(size).at(size)),
        }
    }
}

/// The SHA-256 of the whole file, whose last 32 bytes, if they are its checksum, are compared with what is before them. Ends early when
/// `stop` is set: then what it answers means nothing.
pub(crate) fn sum(source: &dyn ReadAt, layout: Layout, stop: &AtomicBool) -> Result<[u8; TRAILER as usize], Error> {
    let database = layout.database;
    let mut sha = Sha256::new();
    let mut block = vec![0; usize::try_from(database.min(BLOCK)).unwrap_or_default()];
    let mut at = 0;
    while at < database && !stop.load(Ordering::Relaxed) {
        let size = database.saturating_sub(at).min(BLOCK);
        let Some(bytes) = block.get_mut(..usize::try_from(size).unwrap_or_default()) else { break };
        source.read_exact_at(bytes, at).map_err(unread(at))?;
        sha.update(bytes);
        at = at.saturating_add(size);
    }
    if !layout.has_trailer {
        return Ok(sha.finalize().into());
    }
    let mut stored = [0; TRAILER as usize];
    source.read_exact_at(&mut stored, database).map_err(unread(database))?;
    let of_file = sha.clone().chain_update(stored).finalize().into();
    matches(stored, sha, database).map(|()| of_file)
}

pub(crate) fn matches(stored: [u8; TRAILER as usize], sha: Sha256, at: u64) -> Result<(), Error> {
    let computed: [u8; TRAILER as usize] = sha.finalize().into();
    if stored == computed { Ok(()) } else { Err(Fault::Trailer { stored, computed }.at(at)) }
}
