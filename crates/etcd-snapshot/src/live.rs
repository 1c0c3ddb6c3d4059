//! How many keys there are: those whose last record is no deletion. In bounded memory, whatever the file holds.

use std::hash::{BuildHasher as _, DefaultHasher, Hasher as _, RandomState};

/// A share of all keys: those whose fingerprint ends in these bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    bits: u32,
    ending: u64,
}

impl Share {
    fn has(self, fingerprint: u64) -> bool {
        fingerprint & ((1 << self.bits) - 1) == self.ending
    }

    /// Its two halves.
    fn halves(self) -> (Self, Self) {
        let bits = self.bits + 1;
        (Self { bits, ..self }, Self { bits, ending: self.ending | 1 << self.bits })
    }
}

/// What stands for a key in the table.
pub(crate) trait Place: Copy + Default + PartialEq {
    /// The fingerprint of the key; 0, that of the default, is an empty place.
    fn fingerprint(self) -> u64;
}

/// Enough to count keys.
impl Place for u64 {
    fn fingerprint(self) -> u64 {
        self
    }
}

/// A key with the last record that it was seen in, counted from the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    fingerprint: u64,
    record: u64,
}

impl Place for Last {
    fn fingerprint(self) -> u64 {
        self.fingerprint
    }
}

/// Counts keys as records pass in the order of their revisions. Fingerprints of 64 bits, by a hash that is drawn anew each time, stand
/// for keys. When they are too many for the table, it goes on with half of the keys and wants another pass for the other half.
pub(crate) struct LiveKeys<P = u64> {
    hash: RandomState,
    table: Table<P>,
    share: Share,
    /// Shares that want a pass of their own.
    open: Vec<Share>,
    counted: u64,
}

impl<P: Place> LiveKeys<P> {
    /// With a table of `slots` places.
    pub(crate) fn new(slots: usize) -> Self {
        let share = Share { bits: 0, ending: 0 };
        Self { hash: RandomState::new(), table: Table::new(slots), share, open: Vec::new(), counted: 0 }
    }

    /// For the fingerprint of a key, which may come in pieces.
    pub(crate) fn hasher(&self) -> DefaultHasher {
        self.hash.build_hasher()
    }

    /// A record has passed of the key that `place` stands for.
    fn passed(&mut self, place: P, is_deletion: bool) {
        let fingerprint = place.fingerprint();
        if !self.share.has(fingerprint) {
            return;
        }
        if is_deletion {
            return self.table.remove(fingerprint);
        }
        while !self.table.insert(place) {
            let (kept, other) = self.share.halves();
            self.share = kept;
            self.open.push(other);
            self.table.retain(|fingerprint| kept.has(fingerprint));
            if !kept.has(fingerprint) {
                return;
            }
        }
    }

    /// All records have passed. True when they have to pass once more.
    pub(crate) fn next_pass(&mut self) -> bool {
        self.counted += self.table.len as u64;
        self.table.clear();
        match self.open.pop() {
            Some(share) => {
                self.share = share;
                true
            }
            None => false,
        }
    }

    /// How many passes it takes in all, if the keys are spread evenly.
    pub(crate) fn passes(&self) -> u64 {
        1_u64.checked_shl(self.share.bits).unwrap_or(u64::MAX)
    }

    /// The number of keys, when no other pass is wanted.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }
}

/// The fingerprint of a key. 0 stands for an empty place.
fn fingerprint(key: &DefaultHasher) -> u64 {
    key.finish().max(1)
}

impl LiveKeys {
    /// A record of a key has passed.
    pub(crate) fn record(&mut self, key: &DefaultHasher, is_deletion: bool) {
        self.passed(fingerprint(key), is_deletion);
    }
}

impl LiveKeys<Last> {
    /// Record number `record`, of a key, has passed.
    pub(crate) fn record(&mut self, key: &DefaultHasher, record: u64, is_deletion: bool) {
        self.passed(Last { fingerprint: fingerprint(key), record }, is_deletion);
    }

    /// When all have passed: whether that was the last record of this key, which is of the share that this pass was for.
    pub(crate) fn is_last(&self, key: &DefaultHasher, record: u64) -> bool {
        let last = Last { fingerprint: fingerprint(key), record };
        self.share.has(last.fingerprint) && self.table.find(last.fingerprint).1 == last
    }
}

/// A set of keys, by their fingerprints, in one piece of memory that never grows: open addressing, linear probing.
struct Table<P> {
    places: Vec<P>,
    len: usize,
}

impl<P: Place> Table<P> {
    /// With `slots` places or a little more: a power of two.
    fn new(slots: usize) -> Self {
        Self { places: vec![P::default(); slots.max(8).next_power_of_two()], len: 0 }
    }

    fn clear(&mut self) {
        self.places.fill(P::default());
        self.len = 0;
    }

    fn mask(&self) -> usize {
        self.places.len().wrapping_sub(1)
    }

    /// Where a fingerprint would be. Its low bits are its share and the same for all.
    fn home(&self, fingerprint: u64) -> usize {
        usize::try_from(fingerprint >> 32).unwrap_or_default() & self.mask()
    }

    /// Where it is, or the empty place that ends the search. One place in eight is always empty.
    fn find(&self, fingerprint: u64) -> (usize, P) {
        let mut at = self.home(fingerprint);
        loop {
            let there = self.places.get(at).copied().unwrap_or_default();
            if there.fingerprint() == fingerprint || there == P::default() {
                return (at, there);
            }
            at = at.wrapping_add(1) & self.mask();
        }
    }

    fn set(&mut self, at: usize, to: P) {
        if let Some(place) = self.places.get_mut(at) {
            *place = to;
        }
    }

    /// In the place of the same key, if it is there. False when it is full and does not have it.
    fn insert(&mut self, place: P) -> bool {
        let (at, there) = self.find(place.fingerprint());
        if there != P::default() {
            self.set(at, place);
            return true;
        }
        if self.len >= self.places.len() / 8 * 7 {
            return false;
        }
        self.set(at, place);
        self.len += 1;
        true
    }

    fn remove(&mut self, fingerprint: u64) {
        let (at, there) = self.find(fingerprint);
        if there != P::default() {
            self.empty(at);
        }
    }

    /// Empties a place, and moves up what a search would no longer reach.
    fn empty(&mut self, mut gap: usize) {
        self.len = self.len.saturating_sub(1);
        self.set(gap, P::default());
        let mut at = gap;
        loop {
            at = at.wrapping_add(1) & self.mask();
            let there = self.places.get(at).copied().unwrap_or_default();
            if there == P::default() {
                return;
            }
            // Whether the gap lies between its home and its place, in a circle.
            let from_home = at.wrapping_sub(self.home(there.fingerprint())) & self.mask();
            if from_home >= at.wrapping_sub(gap) & self.mask() {
                self.set(gap, there);
                self.set(at, P::default());
                gap = at;
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        for at in 0..self.places.len() {
            // Another may have moved to where one was taken away.
            while self.places.get(at).is_some_and(|there| *there != P::default() && !keep(there.fingerprint())) {
                self.empty(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// A small generator (xorshift), so that no run differs from another.
    fn numbers(seed: u64) -> impl Iterator<Item = u64> {
        std::iter::successors(Some(seed), |last| {
            let a = last ^ (last << 13);
            let b = a ^ (a >> 7);
            Some(b ^ (b << 17))
        })
    }

    fn count(slots: usize, records: &[(u64, bool)]) -> (u64, u64) {
        let mut live = LiveKeys::<u64>::new(slots);
        let mut passes = 0;
        loop {
            passes += 1;
            for (key, is_deletion) in records {
                let mut hasher = live.hasher();
                hasher.write(&key.to_le_bytes());
                live.record(&hasher, *is_deletion);
            }
            if !live.next_pass() {
                return (live.counted(), passes);
            }
        }
    }

    #[test]
    fn keys_are_counted_in_one_pass_or_in_many() {
        let records: Vec<_> = numbers(7).take(20_000).map(|n| (n % 3_000, n % 5 == 0)).collect();
        let mut oracle = HashSet::new();
        for (key, is_deletion) in &records {
            if *is_deletion {
                oracle.remove(key)
            } else {
                oracle.insert(*key)
            };
        }
        let wanted = oracle.len() as u64;
        assert_eq!(count(1 << 14, &records), (wanted, 1));
        for slots in [2048, 256, 16] {
            let (counted, passes) = count(slots, &records);
            assert_eq!(counted, wanted, "{slots}");
            assert!(passes > 1, "{slots}");
        }
    }

    #[test]
    fn the_last_record_of_each_key_is_known_in_one_pass_or_in_many() {
        let records: Vec<_> = numbers(9).take(20_000).map(|n| (n % 3_000, n % 5 == 0)).collect();
        let mut oracle = HashMap::new();
        for ((key, is_deletion), number) in records.iter().zip(0_u64..) {
            if *is_deletion {
                oracle.remove(key)
            } else {
                oracle.insert(*key, number)
            };
        }
        for slots in [1 << 14, 2048, 16] {
            let (mut live, mut found) = (LiveKeys::<Last>::new(slots), HashMap::new());
            let hashed = |live: &LiveKeys<Last>, key: u64| {
                let mut hasher = live.hasher();
                hasher.write(&key.to_le_bytes());
                hasher
            };
            loop {
                for ((key, is_deletion), number) in records.iter().zip(0..) {
                    let hasher = hashed(&live, *key);
                    live.record(&hasher, number, *is_deletion);
                }
                for ((key, _), number) in records.iter().zip(0..) {
                    if live.is_last(&hashed(&live, *key), number) {
                        assert_eq!(found.insert(*key, number), None, "{slots}");
                    }
                }
                if !live.next_pass() {
                    break;
                }
            }
            assert_eq!(found, oracle, "{slots}");
        }
    }

    #[test]
    fn a_key_in_pieces_has_the_fingerprint_of_the_whole() {
        let live = LiveKeys::<u64>::new(8);
        let text: Vec<u8> = (0..=255).collect();
        let (mut whole, mut pieces) = (live.hasher(), live.hasher());
        whole.write(&text);
        for piece in [&text[..1], &text[1..10], &text[10..11], &text[11..]] {
            pieces.write(piece);
        }
        assert_eq!(whole.finish(), pieces.finish());
    }
}
