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

/// Counts keys as records pass in the order of their revisions. Fingerprints of 64 bits, by a hash that is drawn anew each time, stand
/// for keys. When they are too many for the table, it goes on with half of the keys and wants another pass for the other half.
pub(crate) struct LiveKeys {
    hash: RandomState,
    table: Table,
    share: Share,
    /// Shares that want a pass of their own.
    open: Vec<Share>,
    counted: u64,
}

impl LiveKeys {
    /// With a table of `slots` places.
    pub(crate) fn new(slots: usize) -> Self {
        let share = Share { bits: 0, ending: 0 };
        Self { hash: RandomState::new(), table: Table::new(slots), share, open: Vec::new(), counted: 0 }
    }

    /// For the fingerprint of a key, which may come in pieces.
    pub(crate) fn hasher(&self) -> DefaultHasher {
        self.hash.build_hasher()
    }

    /// A record of a key has passed.
    pub(crate) fn record(&mut self, key: &DefaultHasher, is_deletion: bool) {
        // 0 stands for an empty place.
        let fingerprint = key.finish().max(1);
        if !self.share.has(fingerprint) {
            return;
        }
        if is_deletion {
            return self.table.remove(fingerprint);
        }
        while !self.table.insert(fingerprint) {
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

/// A set of fingerprints in one piece of memory that never grows: open addressing, linear probing.
struct Table {
    places: Vec<u64>,
    len: usize,
}

impl Table {
    /// With `slots` places or a little more: a power of two.
    fn new(slots: usize) -> Self {
        Self { places: vec![0; slots.max(8).next_power_of_two()], len: 0 }
    }

    fn clear(&mut self) {
        self.places.fill(0);
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
    fn find(&self, fingerprint: u64) -> (usize, u64) {
        let mut at = self.home(fingerprint);
        loop {
            let there = self.places.get(at).copied().unwrap_or_default();
            if there == fingerprint || there == 0 {
                return (at, there);
            }
            at = at.wrapping_add(1) & self.mask();
        }
    }

    fn set(&mut self, at: usize, fingerprint: u64) {
        if let Some(place) = self.places.get_mut(at) {
            *place = fingerprint;
        }
    }

    /// False when it is full and does not have it.
    fn insert(&mut self, fingerprint: u64) -> bool {
        let (at, there) = self.find(fingerprint);
        if there != 0 {
            return true;
        }
        if self.len >= self.places.len() / 8 * 7 {
            return false;
        }
        self.set(at, fingerprint);
        self.len += 1;
        true
    }

    fn remove(&mut self, fingerprint: u64) {
        let (at, there) = self.find(fingerprint);
        if there != 0 {
            self.empty(at);
        }
    }

    /// Empties a place, and moves up what a search would no longer reach.
    fn empty(&mut self, mut gap: usize) {
        self.len = self.len.saturating_sub(1);
        self.set(gap, 0);
        let mut at = gap;
        loop {
            at = at.wrapping_add(1) & self.mask();
            let there = self.places.get(at).copied().unwrap_or_default();
            if there == 0 {
                return;
            }
            // Whether the gap lies between its home and its place, in a circle.
            let from_home = at.wrapping_sub(self.home(there)) & self.mask();
            if from_home >= at.wrapping_sub(gap) & self.mask() {
                self.set(gap, there);
                self.set(at, 0);
                gap = at;
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        for at in 0..self.places.len() {
            // Another may have moved to where one was taken away.
            while let Some(there) = self.places.get(at).copied().filter(|there| *there != 0 && !keep(*there)) {
                debug_assert!(there != 0);
                self.empty(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// A small generator (xorshift), so that no run differs from another.
    fn numbers(seed: u64) -> impl Iterator<Item = u64> {
        std::iter::successors(Some(seed), |last| {
            let a = last ^ (last << 13);
            let b = a ^ (a >> 7);
            Some(b ^ (b << 17))
        })
    }

    fn count(slots: usize, records: &[(u64, bool)]) -> (u64, u64) {
        let mut live = LiveKeys::new(slots);
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
    fn a_key_in_pieces_has_the_fingerprint_of_the_whole() {
        let live = LiveKeys::new(8);
        let text: Vec<u8> = (0..=255).collect();
        let (mut whole, mut pieces) = (live.hasher(), live.hasher());
        whole.write(&text);
        for piece in [&text[..1], &text[1..10], &text[10..11], &text[11..]] {
            pieces.write(piece);
        }
        assert_eq!(whole.finish(), pieces.finish());
    }
}
