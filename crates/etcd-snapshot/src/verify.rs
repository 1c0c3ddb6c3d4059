//! The whole of it: trailer, meta pages, trees, free pages, contents.

use std::hash::DefaultHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::contents::{self, Contents};
use crate::error::{Error, Fault, unread};
use crate::freelist;
use crate::live::LiveKeys;
use crate::meta::{META, Meta, Metas};
use crate::snapshot::{PageUse, Snapshot, Trailer};
use crate::source::ReadAt;
use crate::stream::Streamed;
use crate::trailer::{self, Layout};
use crate::tree::Trees;

/// Bytes that one place of the table of keys takes.
const PLACE: usize = 8;
/// The least that a record takes in a file: the header of its element, a revision, a KeyValue with a key of one byte.
const LEAST_RECORD: u64 = 36;

/// What a verification may take, beside some 9 MiB at most for a hostile file and a few hundred KiB for a real one.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes for the table with which keys are counted. 8 are enough for 7/8 of a key; with more keys than that the records are read
    /// again, so often as it takes. A power of two.
    pub key_table: usize,
    /// How often records are read at most. When that is not enough, the number of keys is not told.
    pub passes: u64,
}

impl Default for Limits {
    /// 16 MiB: 1.8 million keys at once, 14 million in 8 passes.
    fn default() -> Self {
        Self { key_table: 16 * 1024 * 1024, passes: 8 }
    }
}

impl Limits {
    /// With another table of keys, in bytes.
    #[must_use]
    pub fn with_key_table(self, bytes: usize) -> Self {
        Self { key_table: bytes, ..self }
    }

    /// With another number of passes.
    #[must_use]
    pub fn with_passes(self, passes: u64) -> Self {
        Self { passes, ..self }
    }
}

/// Verifies a file and tells what it holds. Two threads read it, one for the checksum and one for everything else.
///
/// # Errors
/// With the first thing that is wrong: what is wrong inside comes before a checksum that does not match, since it says where.
pub fn verify(source: &(impl ReadAt + ?Sized)) -> Result<Snapshot, Error> {
    verify_within(source, Limits::default())
}

/// [`verify`] with other limits.
///
/// # Errors
/// As [`verify`].
pub fn verify_within(source: &(impl ReadAt + ?Sized), limits: Limits) -> Result<Snapshot, Error> {
    all(&source, limits)
}

/// [`verify`] of a file into which a [`Stream`](crate::Stream) was written while it passed: everything but the checksum, which that has
/// seen match. That the file gives back what was written to it is left to its file system.
///
/// # Errors
/// As [`verify`], and when the file is not as long as the stream.
pub fn verify_streamed(source: &(impl ReadAt + ?Sized), streamed: &Streamed) -> Result<Snapshot, Error> {
    let source: &dyn ReadAt = &source;
    let file_size = source.size().map_err(unread(0))?;
    let layout = Layout::of(file_size)?;
    if !layout.has_trailer || file_size != streamed.size {
        return Err(Fault::Size(file_size).at(file_size));
    }
    let inside = inside(source, layout, Limits::default())?;
    Ok(inside.snapshot(file_size, layout, streamed.file_sha256))
}

/// Not generic, here and below: what is generic is compiled with whoever calls it, and not optimised as this crate is.
fn all(source: &dyn ReadAt, limits: Limits) -> Result<Snapshot, Error> {
    let file_size = source.size().map_err(unread(0))?;
    let layout = Layout::of(file_size)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sum = scope.spawn(|| trailer::sum(source, layout, &stop));
        let inside = inside(source, layout, limits);
        if inside.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        let sum = sum.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let inside = inside?;
        sum.map(|sum| inside.snapshot(file_size, layout, sum))
    })
}

/// What was found, but for the checksum.
struct Inside {
    pages: PageUse,
    keys: Option<u64>,
    found: Contents,
}

/// Everything but the checksum.
fn inside(source: &dyn ReadAt, layout: Layout, limits: Limits) -> Result<Inside, Error> {
    let (metas, meta_page, meta) = metas(source, layout)?;
    let mut trees = Trees::new(source, meta);
    let mut live = LiveKeys::new(places(layout.database, limits, PLACE));
    let found = contents::read(&mut trees, meta, meta_page, &mut live)?;
    let used = trees.used();
    let freelist = match meta.freelist {
        Some(page) => freelist::check(source, meta, page, meta.freelist_is_named_at(meta_page), trees.seen())?,
        None => 0,
    };
    let pages = PageUse {
        size: meta.page_size,
        total: meta.pages,
        meta: 2,
        branch: used.branch,
        leaf: used.leaf,
        overflow: used.overflow,
        freelist,
        free: meta.pages.saturating_sub(trees.seen().len()),
        sound_metas: metas.sound(),
    };
    let keys = keys(source, meta, meta_page, live, limits)?;
    Ok(Inside { pages, keys, found })
}

/// The meta pages, and the one that holds.
pub(crate) fn metas(source: &dyn ReadAt, layout: Layout) -> Result<(Metas, u64, Meta), Error> {
    let bytes = layout.database;
    if bytes < META as u64 {
        return Err(Fault::Short(bytes).at(0));
    }
    let metas = Metas::read(source, bytes)?;
    let (meta_page, meta) = if layout.has_trailer { (0, metas.of_snapshot()?) } else { metas.newest()? };
    fits(meta, meta_page, layout)?;
    Ok((metas, meta_page, meta))
}

/// The pages that the meta page counts are those of the file. etcd sends them and no more; bbolt makes its file larger ahead of need.
fn fits(meta: Meta, meta_page: u64, layout: Layout) -> Result<(), Error> {
    let there = layout.database / meta.page_size;
    let exact = there == meta.pages && there.saturating_mul(meta.page_size) == layout.database;
    if meta.pages < 3 || if layout.has_trailer { !exact } else { there < meta.pages } {
        let fault = Fault::HighWater { pages: meta.pages, page_size: meta.page_size, bytes: layout.database };
        return Err(fault.at(meta.pages_are_counted_at(meta_page)));
    }
    Ok(())
}

/// As many as the file can have keys, or what the limits allow; of `size` bytes each.
pub(crate) fn places(bytes: u64, limits: Limits, size: usize) -> usize {
    let most = limits.key_table / size;
    let wanted = usize::try_from(bytes / LEAST_RECORD).unwrap_or(usize::MAX);
    // Rounded up by the table: no more than the limit.
    let most = if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 };
    wanted.saturating_add(wanted / 7).saturating_add(1).min(most)
}

/// The number of keys, with as many further passes as it takes and may take.
fn keys(
    source: &dyn ReadAt,
    meta: Meta,
    meta_page: u64,
    mut live: LiveKeys,
    limits: Limits,
) -> Result<Option<u64>, Error> {
    if live.passes() > limits.passes {
        return Ok(None);
    }
    let mut passes = 1;
    while live.next_pass() {
        passes += 1;
        if passes > limits.passes {
            return Ok(None);
        }
        let hasher = live.hasher();
        let mut each = |key: &DefaultHasher, _, is_deletion| live.record(key, is_deletion);
        contents::keys(&mut Trees::new(source, meta), meta, meta_page, &hasher, &mut each)?;
    }
    Ok(Some(live.counted()))
}

impl Inside {
    fn snapshot(self, file_size: u64, layout: Layout, file_sha256: [u8; 32]) -> Snapshot {
        let Self { pages, keys, found } = self;
        Snapshot {
            file_size,
            file_sha256,
            trailer: if layout.has_trailer { Trailer::Verified } else { Trailer::Missing },
            total_size: pages.total.saturating_mul(pages.size),
            hash: found.hash,
            revision: found.revision,
            entries: found.entries,
            keys,
            scheduled_compaction: found.scheduled_compaction,
            finished_compaction: found.finished_compaction,
            storage_version: found.storage_version,
            cluster_version: found.cluster_version,
            consistent_index: found.consistent_index,
            term: found.term,
            conf_state: found.conf_state,
            members: found.members,
            removed_members: found.removed,
            auth_enabled: found.auth_enabled,
            buckets: found.buckets,
            pages,
        }
    }
}
