//! The keys that are there at the snapshot's revision, each with its value, in bounded memory.

use std::hash::{DefaultHasher, Hasher as _};

use crate::contents;
use crate::error::{Error, Fault, unread};
use crate::live::{Last, LiveKeys};
use crate::record::{KeyValue, Parts};
use crate::source::ReadAt;
use crate::trailer::Layout;
use crate::tree::Trees;
use crate::verify::{Limits, metas, places};

/// Bytes that one place of the table of keys takes here: its fingerprint, and its last record.
const PLACE: usize = 16;
/// Bytes of a key: more than etcd takes in one request as it is delivered (1.5 MiB).
const MAX_KEY: usize = 2 * 1024 * 1024;

/// What of a key is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Its name, and the revision at which it was written last (`mod_revision`). Its value comes next.
    Key {
        /// Its name.
        key: &'a [u8],
        /// The revision.
        revision: i64,
    },
    /// The next piece of the value of the key that was shown last, 64 KiB at most; none of an empty value.
    Value(&'a [u8]),
}

/// Shows each key that is there at the snapshot's revision, with its last value, in the order of their revisions as far as they are shown in
/// one go: what was deleted, and what was written over, is not shown. Answers how many there are.
///
/// A record is the last of its key when none comes after it, so all are read twice: once to note the last record of each key in a table of
/// 16 bytes a key ([`Limits::key_table`]), once to show those. With more keys than the table has room for that is done for a share of them
/// at a time. None when it would take more than [`Limits::passes`] shares: then some keys may have been shown, and not all.
///
/// Only what it comes by is checked: [`verify`](crate::verify) the file before. Keys are told apart by fingerprints of 64 bits, drawn anew each
/// time; of ten million keys one is missed in one of 400,000 runs.
///
/// # Errors
/// When the file cannot be read, is not sound where it is read, or has a key of more than 2 MiB. What was shown before does not count then.
pub fn keys(
    source: &(impl ReadAt + ?Sized),
    limits: Limits,
    visit: &mut dyn FnMut(Part<'_>),
) -> Result<Option<u64>, Error> {
    shown(&source, limits, visit)
}

fn shown(source: &dyn ReadAt, limits: Limits, visit: &mut dyn FnMut(Part<'_>)) -> Result<Option<u64>, Error> {
    let layout = Layout::of(source.size().map_err(unread(0))?)?;
    let (_, meta_page, meta) = metas(source, layout)?;
    let mut live = LiveKeys::<Last>::new(places(layout.database, limits, PLACE));
    let hasher = live.hasher();
    let (mut count, mut shares) = (0, 0);
    loop {
        let mut note = |key: &DefaultHasher, number, is_deletion| live.record(key, number, is_deletion);
        contents::keys(&mut Trees::new(source, meta), meta, meta_page, &hasher, &mut note)?;
        shares += 1;
        if live.passes().max(shares) > limits.passes {
            return Ok(None);
        }
        let mut passing = Passing {
            live: &live,
            hasher: &hasher,
            visit: &mut *visit,
            key: Vec::new(),
            now: Now::new(&hasher),
            count: 0,
        };
        contents::records(&mut Trees::new(source, meta), meta, meta_page, &mut |number, revision, at, value| {
            passing.begin(number, revision.main);
            let wrong = |why| Fault::Record(why).at(at);
            let mut read = KeyValue::default();
            while passing.is_wanted()
                && let Some(piece) = value.piece()?
            {
                read.feed(piece, &mut passing).map_err(wrong)?;
                if read.key_is_read() {
                    passing.decide();
                }
            }
            // What `restore --bump-revision` adds is empty: a key of no bytes.
            passing.decide();
            passing.now.wrong.map_or(Ok(()), |why| Err(wrong(why)))
        })?;
        count += passing.count;
        if !live.next_pass() {
            return Ok(Some(count));
        }
    }
}

/// The record that passes.
struct Now {
    number: u64,
    revision: i64,
    key: DefaultHasher,
    /// Whether it is the last of its key; none as long as its key is not read.
    is_last: Option<bool>,
    wrong: Option<&'static str>,
}

impl Now {
    fn new(hasher: &DefaultHasher) -> Self {
        Self { number: 0, revision: 0, key: hasher.clone(), is_last: None, wrong: None }
    }
}

/// Shows what passes and is wanted.
struct Passing<'a> {
    live: &'a LiveKeys<Last>,
    hasher: &'a DefaultHasher,
    visit: &'a mut dyn FnMut(Part<'_>),
    /// Kept from one record to the next.
    key: Vec<u8>,
    now: Now,
    count: u64,
}

impl Passing<'_> {
    fn begin(&mut self, number: u64, revision: i64) {
        self.key.clear();
        self.now = Now { number, revision, ..Now::new(self.hasher) };
    }

    /// Whether the rest of it is to be read.
    fn is_wanted(&self) -> bool {
        self.now.is_last != Some(false) && self.now.wrong.is_none()
    }

    /// Its key is read.
    fn decide(&mut self) {
        if self.now.is_last.is_some() || self.now.wrong.is_some() {
            return;
        }
        let is_last = self.live.is_last(&self.now.key, self.now.number);
        self.now.is_last = Some(is_last);
        if is_last {
            self.count += 1;
            (self.visit)(Part::Key { key: &self.key, revision: self.now.revision });
        }
    }
}

impl Parts for Passing<'_> {
    fn key(&mut self, bytes: &[u8]) {
        if self.key.len().saturating_add(bytes.len()) > MAX_KEY {
            self.now.wrong = Some("has a key of more than 2 MiB");
        } else {
            self.key.extend_from_slice(bytes);
            self.now.key.write(bytes);
        }
    }

    fn value(&mut self, bytes: &[u8]) {
        // etcd writes the key first, and none that is empty.
        if self.key.is_empty() {
            self.now.wrong = Some("has its value before its key");
        }
        self.decide();
        if self.now.is_last == Some(true) && self.now.wrong.is_none() {
            (self.visit)(Part::Value(bytes));
        }
    }
}
