//! What etcd stores: the buckets, each read for what it tells. All are hashed as `etcdutl snapshot status` does.

use std::hash::DefaultHasher;

use crate::bytes::{be64, le64};
use crate::error::{Error, Fault};
use crate::extent::CHUNK;
use crate::live::LiveKeys;
use crate::meta::Meta;
use crate::record::{KeyValue, Revision};
use crate::snapshot::{Bucket, ConfState, Member};
use crate::tree::{Entry, Trees, Value};

/// etcd has ten (server/storage/schema/bucket.go).
const MAX_BUCKETS: usize = 64;
/// Bytes of a bucket's name.
const MAX_NAME: usize = 255;
/// Bytes of all entries that are told, most of them members and those that were removed, which etcd remembers for ever: room for 20,000.
const MAX_TOLD: u64 = 512 * 1024;
/// Bytes of a bucket's header in its entry: root page (8), sequence (8).
const BUCKET_HEADER: u64 = 16;
/// The name of the bucket of records.
const KEY: &str = "key";

/// What was found in the buckets.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) hash: u32,
    pub(crate) revision: i64,
    pub(crate) entries: u64,
    pub(crate) scheduled_compaction: Option<i64>,
    pub(crate) finished_compaction: Option<i64>,
    pub(crate) storage_version: Option<String>,
    pub(crate) cluster_version: Option<String>,
    pub(crate) consistent_index: Option<u64>,
    pub(crate) term: Option<u64>,
    pub(crate) conf_state: Option<ConfState>,
    pub(crate) members: Vec<Member>,
    pub(crate) removed: Vec<u64>,
    pub(crate) auth_enabled: bool,
    pub(crate) buckets: Vec<Bucket>,
    told: u64,
}

/// Where a bucket's tree is.
enum Place {
    /// The root page, and the offset at which the file names it.
    Tree { root: u64, from: u64 },
    /// In the entry of the bucket itself.
    Inline { at: u64, len: u64 },
}

struct Found {
    name: String,
    place: Place,
}

/// Reads all buckets, and counts the keys once.
pub(crate) fn read(trees: &mut Trees<'_>, meta: Meta, meta_page: u64, live: &mut LiveKeys) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    for Found { name, place } in buckets(trees, meta, meta_page)? {
        contents.hash = crc32c::crc32c_append(contents.hash, name.as_bytes());
        let mut entries = 0_u64;
        walk(trees, &place, &mut |entry| {
            entries += 1;
            contents.hash = crc32c::crc32c_append(contents.hash, entry.key);
            if name == KEY { contents.record(entry, live) } else { contents.other(&name, entry) }
        })?;
        contents.entries += entries;
        contents.buckets.push(Bucket { name, entries });
    }
    Ok(contents)
}

/// Goes through the records once more, for their keys alone: each with the number of its record, and whether that is a deletion.
pub(crate) fn keys(
    trees: &mut Trees<'_>,
    meta: Meta,
    meta_page: u64,
    hasher: &DefaultHasher,
    each: &mut dyn FnMut(&DefaultHasher, u64, bool),
) -> Result<(), Error> {
    records(trees, meta, meta_page, &mut |number, revision, at, value| {
        let mut key = hasher.clone();
        let mut read = KeyValue::default();
        while !read.key_is_read()
            && let Some(piece) = value.piece()?
        {
            read.feed(piece, &mut key).map_err(|why| Fault::Record(why).at(at))?;
        }
        each(&key, number, revision.is_deletion);
        Ok(())
    })
}

/// What is done with a record: its number, its revision, where it is, and what is stored under it.
type EachRecord<'a> = dyn FnMut(u64, Revision, u64, &mut Value<'_>) -> Result<(), Error> + 'a;

/// Goes through the records in the order of their revisions.
pub(crate) fn records(
    trees: &mut Trees<'_>,
    meta: Meta,
    meta_page: u64,
    each: &mut EachRecord<'_>,
) -> Result<(), Error> {
    for Found { place, .. } in buckets(trees, meta, meta_page)?.iter().filter(|bucket| bucket.name == KEY) {
        let mut number = 0_u64;
        walk(trees, place, &mut |entry| {
            let Entry { at, key, mut value, .. } = entry;
            let revision = Revision::parse(key).ok_or_else(|| Fault::Record("has no revision for a key").at(at))?;
            each(number, revision, at, &mut value)?;
            number += 1;
            Ok(())
        })?;
    }
    Ok(())
}

fn walk(
    trees: &mut Trees<'_>,
    place: &Place,
    visit: &mut dyn FnMut(Entry<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let visit = &mut |entry: Entry<'_>| {
        if entry.is_bucket {
            return Err(Fault::Bucket("lies in another; etcd makes none").at(entry.at));
        }
        visit(entry)
    };
    match *place {
        Place::Tree { root, from } => trees.walk(root, from, visit),
        Place::Inline { at, len } => trees.walk_inline(at, len, visit),
    }
}

/// The buckets at the top of the database.
fn buckets(trees: &mut Trees<'_>, meta: Meta, meta_page: u64) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    trees.walk(meta.root, meta.root_is_named_at(meta_page), &mut |entry| {
        let Entry { at, is_bucket, key, mut value } = entry;
        if !is_bucket {
            return Err(Fault::NotABucket.at(at));
        }
        if found.len() >= MAX_BUCKETS {
            return Err(Fault::Bucket("is one of more than 64; etcd has ten").at(at));
        }
        let name = str::from_utf8(key).ok().filter(|name| name.len() <= MAX_NAME);
        let name = name.ok_or_else(|| Fault::Bucket("has a name that is no text of at most 255 bytes").at(at))?;
        let (from, len) = (value.offset(), value.left());
        let short = || Fault::Bucket("has no room for its header").at(from);
        let root =
            value.piece()?.and_then(|bytes| le64(bytes, 0)).filter(|_| len >= BUCKET_HEADER).ok_or_else(short)?;
        let place = match (root, len.saturating_sub(BUCKET_HEADER)) {
            (0, len) => Place::Inline { at: from.saturating_add(BUCKET_HEADER), len },
            (root, 0) => Place::Tree { root, from },
            (_, _) => return Err(Fault::Bucket("has a root page, and more in its entry").at(from)),
        };
        found.push(Found { name: name.to_owned(), place });
        Ok(())
    })?;
    Ok(found)
}

impl Contents {
    /// A record of a key.
    fn record(&mut self, entry: Entry<'_>, live: &mut LiveKeys) -> Result<(), Error> {
        let Entry { at, key, mut value, .. } = entry;
        let revision = Revision::parse(key).ok_or_else(|| Fault::Record("has no revision for a key").at(at))?;
        let from = value.offset();
        let mut read = KeyValue::default();
        let mut hasher: DefaultHasher = live.hasher();
        while let Some(piece) = value.piece()? {
            self.hash = crc32c::crc32c_append(self.hash, piece);
            read.feed(piece, &mut hasher).map_err(|why| Fault::Record(why).at(from))?;
        }
        let says = read.finish().map_err(|why| Fault::Record(why).at(from))?;
        // A deletion holds its key only; what `restore --bump-revision` adds is empty.
        if says != 0 && says != revision.main {
            return Err(Fault::Record("says that it is of another revision than it is stored under").at(from));
        }
        live.record(&hasher, revision.is_deletion);
        self.revision = revision.main;
        Ok(())
    }

    /// An entry of any other bucket.
    fn other(&mut self, name: &str, entry: Entry<'_>) -> Result<(), Error> {
        let Entry { at, key, mut value, .. } = entry;
        let wanted = match (name, key) {
            ("meta", b"consistent_index") => Wanted::ConsistentIndex,
            ("meta", b"term") => Wanted::Term,
            ("meta", b"confState") => Wanted::ConfState,
            ("meta", b"storageVersion") => Wanted::StorageVersion,
            ("meta", b"scheduledCompactRev") => Wanted::ScheduledCompaction,
            ("meta", b"finishedCompactRev") => Wanted::FinishedCompaction,
            ("cluster", b"clusterVersion") => Wanted::ClusterVersion,
            ("members", _) => Wanted::Member,
            ("members_removed", _) => Wanted::Removed,
            ("auth", b"authEnabled") => Wanted::AuthEnabled,
            _ => return self.hashed(&mut value),
        };
        let fault = |why: String| {
            let key = String::from_utf8_lossy(key).chars().take(64).collect();
            Fault::Entry { bucket: wanted.bucket(), key, why }.at(at)
        };
        let size = value.left();
        self.told = self.told.saturating_add(key.len() as u64).saturating_add(size);
        if size > CHUNK || self.told > MAX_TOLD {
            return Err(fault(format!("is {size} bytes, more than etcd writes with what came before")));
        }
        let bytes = value.piece()?.unwrap_or_default();
        self.hash = crc32c::crc32c_append(self.hash, bytes);
        self.take(wanted, key, bytes).map_err(fault)
    }

    fn hashed(&mut self, value: &mut Value<'_>) -> Result<(), Error> {
        while let Some(piece) = value.piece()? {
            self.hash = crc32c::crc32c_append(self.hash, piece);
        }
        Ok(())
    }

    fn take(&mut self, wanted: Wanted, key: &[u8], value: &[u8]) -> Result<(), String> {
        match wanted {
            Wanted::ConsistentIndex => self.consistent_index = Some(number(value)?),
            Wanted::Term => self.term = Some(number(value)?),
            Wanted::ConfState => self.conf_state = Some(json(value)?),
            Wanted::StorageVersion => self.storage_version = Some(version(value)?),
            Wanted::ScheduledCompaction => self.scheduled_compaction = Some(revision(value)?),
            Wanted::FinishedCompaction => self.finished_compaction = Some(revision(value)?),
            Wanted::ClusterVersion => self.cluster_version = Some(version(value)?),
            Wanted::Member => {
                let member: Member = json(value)?;
                if id(key)? != member.id {
                    return Err(format!("has a member with id {:x}", member.id));
                }
                self.members.push(member);
            }
            Wanted::Removed => self.removed.push(id(key)?),
            Wanted::AuthEnabled => self.auth_enabled = value == [1],
        }
        Ok(())
    }
}

/// What is told of other buckets.
#[derive(Clone, Copy)]
enum Wanted {
    ConsistentIndex,
    Term,
    ConfState,
    StorageVersion,
    ScheduledCompaction,
    FinishedCompaction,
    ClusterVersion,
    Member,
    Removed,
    AuthEnabled,
}

impl Wanted {
    fn bucket(self) -> &'static str {
        match self {
            Self::ConsistentIndex
            | Self::Term
            | Self::ConfState
            | Self::StorageVersion
            | Self::ScheduledCompaction
            | Self::FinishedCompaction => "meta",
            Self::ClusterVersion => "cluster",
            Self::Member => "members",
            Self::Removed => "members_removed",
            Self::AuthEnabled => "auth",
        }
    }
}

fn number(value: &[u8]) -> Result<u64, String> {
    be64(value, 0).filter(|_| value.len() == 8).ok_or_else(|| "is no number of 8 bytes".to_owned())
}

fn revision(value: &[u8]) -> Result<i64, String> {
    Revision::parse(value).map(|revision| revision.main).ok_or_else(|| "is no revision".to_owned())
}

fn version(value: &[u8]) -> Result<String, String> {
    let text = str::from_utf8(value).ok().filter(|text| text.starts_with(|first: char| first.is_ascii_digit()));
    text.map(str::to_owned).ok_or_else(|| "is no version".to_owned())
}

fn id(key: &[u8]) -> Result<u64, String> {
    let text = str::from_utf8(key).ok();
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(|| "is not the id of a member".to_owned())
}

fn json<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| format!("cannot be read: {error}"))
}
