//! What a drill compares beyond numbers: how many keys there are below each prefix, and a sample of keys with their values, of the snapshot and
//! of the etcd that was made of it.

use crate::etcd::backup::seal::hex;
use etcd_snapshot::{Limits, Part, ReadAt, keys};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// Keys whose values are compared, drawn anew for each drill.
const SAMPLE: usize = 128;
/// Prefixes that are counted, in the order of their first keys; a cluster has some hundreds.
const PREFIXES: usize = 4096;
/// Bytes of a key, and of a value, that is compared: a client of etcd takes answers of 4 MiB.
const MAX_KEY: usize = 4096;
const MAX_VALUE: u64 = 3 * 1024 * 1024;

/// What is compared of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Contents {
    /// How many keys there are below each prefix.
    pub(super) prefixes: Vec<Prefix>,
    /// Some keys.
    pub(super) sample: Vec<Sampled>,
}

/// The keys below a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Prefix {
    /// Such as `/registry/pods/`.
    pub(super) prefix: Vec<u8>,
    /// How many there are.
    pub(super) keys: u64,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Sampled {
    /// Its name.
    pub(super) key: Vec<u8>,
    /// The revision at which it was written last.
    pub(super) revision: i64,
    /// SHA-256 of its value, in hexadecimal.
    pub(super) sha256: String,
}

/// What the restored etcd has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// The revision at which it was written last.
    pub(super) revision: i64,
    /// SHA-256 of its value, in hexadecimal.
    pub(super) sha256: String,
}

impl Served {
    /// Of a value.
    pub(super) fn of(revision: i64, value: &[u8]) -> Self {
        Self { revision, sha256: hex(&Sha256::digest(value)) }
    }
}

impl Contents {
    /// Of a snapshot that was verified, however many keys it has.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn of(snapshot: &(impl ReadAt + ?Sized)) -> Result<Self, etcd_snapshot::Error> {
        let mut counting = Counting::default();
        keys(snapshot, Limits::default().with_passes(u64::MAX), &mut |part| match part {
            Part::Key { key, revision } => counting.key(key, revision),
            Part::Value(piece) => counting.value(piece),
        })?;
        Ok(counting.end())
    }
}

/// What all keys of a kind begin with, up to the second `/` behind the first byte: `/registry/pods/`. None of a key that has no such.
fn prefix_of(key: &[u8]) -> Option<&[u8]> {
    let slashes = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    let (second, _) = slashes.take(2).nth(1)?;
    key.get(..=second).filter(|prefix| prefix.len() <= MAX_KEY)
}

/// Counts, and draws a sample in which each key is as likely as any other (Vitter's algorithm R).
#[derive(Default)]
struct Counting {
    prefixes: BTreeMap<Vec<u8>, u64>,
    sample: Vec<Sampled>,
    seen: u64,
    random: RandomState,
    /// The place in the sample of the key that passes, where it has one.
    now: Option<Drawn>,
}

struct Drawn {
    place: usize,
    sha: Sha256,
    size: u64,
}

impl Counting {
    fn key(&mut self, key: &[u8], revision: i64) {
        self.close();
        if let Some(prefix) = prefix_of(key) {
            if let Some(keys) = self.prefixes.get_mut(prefix) {
                *keys += 1;
            } else if self.prefixes.len() < PREFIXES {
                self.prefixes.insert(prefix.to_owned(), 1);
            }
        }
        if key.is_empty() || key.len() > MAX_KEY {
            return;
        }
        self.seen += 1;
        let drawn = Sampled { key: key.to_owned(), revision, sha256: String::new() };
        let place = if self.sample.len() < SAMPLE {
            self.sample.push(drawn);
            self.sample.len() - 1
        } else {
            let place = usize::try_from(self.random.hash_one(self.seen) % self.seen).unwrap_or(usize::MAX);
            let Some(taken) = self.sample.get_mut(place) else { return };
            *taken = drawn;
            place
        };
        self.now = Some(Drawn { place, sha: Sha256::new(), size: 0 });
    }

    fn value(&mut self, piece: &[u8]) {
        if let Some(now) = &mut self.now {
            now.size = now.size.saturating_add(piece.len() as u64);
            now.sha.update(piece);
        }
    }

    /// The key has passed.
    fn close(&mut self) {
        let Some(Drawn { place, sha, size }) = self.now.take() else { return };
        if size > MAX_VALUE {
            self.sample.swap_remove(place);
        } else if let Some(sampled) = self.sample.get_mut(place) {
            sampled.sha256 = hex(&sha.finalize());
        }
    }

    fn end(mut self) -> Contents {
        self.close();
        let prefixes = self.prefixes.into_iter().map(|(prefix, keys)| Prefix { prefix, keys });
        Contents { prefixes: prefixes.collect(), sample: self.sample }
    }
}

impl Prefix {
    /// Whether the restored etcd has as many.
    ///
    /// # Errors
    /// In words, when it has not.
    pub(super) fn compare(&self, served: i64) -> Result<(), String> {
        if u64::try_from(served) == Ok(self.keys) {
            return Ok(());
        }
        let prefix = shown(&self.prefix);
        Err(format!("it has {served} keys below {prefix}, and the snapshot {}", self.keys))
    }
}

impl Sampled {
    /// Whether the restored etcd has the same under this key.
    ///
    /// # Errors
    /// In words, when it has not.
    pub(super) fn compare(&self, served: Option<&Served>) -> Result<(), String> {
        let key = shown(&self.key);
        let Some(Served { revision, sha256 }) = served else {
            return Err(format!("it has no {key}, and the snapshot has"));
        };
        if *revision != self.revision {
            let wanted = self.revision;
            return Err(format!("its {key} was written at revision {revision}, and that of the snapshot at {wanted}"));
        }
        if *sha256 != self.sha256 {
            return Err(format!("its {key} has another value than that of the snapshot"));
        }
        Ok(())
    }
}

/// A key for people.
fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).chars().take(200).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_what_the_keys_of_a_resource_begin_with() {
        for (key, wanted) in [
            ("/registry/pods/kube-system/etcd-k1", Some("/registry/pods/")),
            ("/registry/ranges/serviceips", Some("/registry/ranges/")),
            ("/registry/apiregistration.k8s.io/apiservices/v1.", Some("/registry/apiregistration.k8s.io/")),
            ("registry/pods/a", Some("registry/pods/")),
            ("/registry/health", None),
            ("compact_rev_key", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(prefix_of(key.as_bytes()), wanted.map(str::as_bytes), "{key}");
        }
    }

    #[test]
    fn all_are_counted_and_some_are_drawn_with_the_values_that_they_have() {
        let mut counting = Counting::default();
        let value = |number: i64| format!("value of {number}");
        for number in 0..3000_i64 {
            let kind = if number % 3 == 0 { "pods" } else { "secrets" };
            counting.key(format!("/registry/{kind}/{number}").as_bytes(), number);
            let text = value(number);
            let (first, rest) = text.split_at(4);
            counting.value(first.as_bytes());
            counting.value(rest.as_bytes());
        }
        // One that no client would take, and one that is empty.
        counting.key(b"large", 3000);
        (0..4).for_each(|_| counting.value(&[0; 1024 * 1024]));
        counting.key(b"empty", 3001);
        let Contents { prefixes, sample } = counting.end();
        let counted: Vec<_> = prefixes.iter().map(|it| (shown(&it.prefix), it.keys)).collect();
        assert_eq!(counted, [("/registry/pods/".to_owned(), 1000), ("/registry/secrets/".to_owned(), 2000)]);
        assert!((SAMPLE - 1..=SAMPLE).contains(&sample.len()), "{}", sample.len());
        // Not the first ones: each is as likely as any other.
        assert!(sample.iter().filter(|it| it.revision >= 1500).count() > 20, "{sample:?}");
        for sampled in &sample {
            let value = if sampled.revision == 3001 { String::new() } else { value(sampled.revision) };
            sampled.compare(Some(&Served::of(sampled.revision, value.as_bytes()))).unwrap();
        }
    }

    #[test]
    fn each_difference_is_told() {
        let prefix = Prefix { prefix: b"/registry/pods/".to_vec(), keys: 2 };
        prefix.compare(2).unwrap();
        assert_eq!(prefix.compare(1).unwrap_err(), "it has 1 keys below /registry/pods/, and the snapshot 2");
        let Served { revision, sha256 } = Served::of(7, b"value");
        let sampled = Sampled { key: b"/registry/pods/a".to_vec(), revision, sha256 };
        sampled.compare(Some(&Served::of(7, b"value"))).unwrap();
        for (served, wanted) in [
            (None, "it has no /registry/pods/a, and the snapshot has"),
            (
                Some(Served::of(8, b"value")),
                "its /registry/pods/a was written at revision 8, and that of the snapshot at 7",
            ),
            (Some(Served::of(7, b"Value")), "its /registry/pods/a has another value than that of the snapshot"),
        ] {
            assert_eq!(sampled.compare(served.as_ref()).unwrap_err(), wanted);
        }
    }

    #[test]
    fn a_real_snapshot_of_etcd_is_read() {
        let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/etcd-snapshot/fuzz/corpus/used-3.6.db");
        let file = std::fs::File::open(kept).unwrap();
        let (contents, snapshot) = (Contents::of(&file).unwrap(), etcd_snapshot::verify(&file).unwrap());
        assert_eq!(Some(contents.sample.len() as u64), snapshot.keys.map(|keys| keys.min(SAMPLE as u64)));
        let text = serde_json::to_string(&contents).unwrap();
        assert_eq!(serde_json::from_str::<Contents>(&text).unwrap(), contents);
    }
}
