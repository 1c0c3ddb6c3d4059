//! A snapshot in memory that is damaged on purpose, and sealed again so that only the damage shows.

use etcd_snapshot::{Error, Fault, Snapshot};
use sha2::{Digest as _, Sha256};

/// Bytes of a page of all kept snapshots.
pub(crate) const PAGE: usize = 4096;
const TRAILER: usize = 32;
const META: std::ops::Range<usize> = 16..72;

/// The kept snapshots, made by real etcd of three versions (tests/real/corpus.rs).
pub(crate) const KEPT: [(&str, &[u8]); 4] = [
    ("fresh-3.5", include_bytes!("../../fuzz/corpus/fresh-3.5.db")),
    ("used-3.5", include_bytes!("../../fuzz/corpus/used-3.5.db")),
    ("used-3.6", include_bytes!("../../fuzz/corpus/used-3.6.db")),
    ("used-3.7", include_bytes!("../../fuzz/corpus/used-3.7.db")),
];

/// A database with a list of free pages: used-3.6, rewritten by `bbolt compact --tx-max-size 2000` of bbolt 1.4.3 and cut to 24 pages,
/// of which it counts 20.
pub(crate) const COMPACTED: &[u8] = include_bytes!("../../fuzz/corpus/compacted-by-bbolt-1.4.db");

#[derive(Clone)]
pub(crate) struct Image(pub(crate) Vec<u8>);

/// Where an element of a page is, and what it says.
pub(crate) struct Element {
    pub(crate) at: usize,
    pub(crate) key: Vec<u8>,
    pub(crate) value_at: usize,
}

impl Image {
    pub(crate) fn kept(name: &str) -> Self {
        Self(KEPT.iter().find(|(kept, _)| *kept == name).unwrap().1.to_vec())
    }

    pub(crate) fn verify(&self) -> Result<Snapshot, Error> {
        etcd_snapshot::verify(&self.0)
    }

    /// What is wrong with it, and where.
    pub(crate) fn fault(&self) -> (u64, Fault) {
        let error = self.verify().expect_err("it is found sound");
        (error.at, error.fault)
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    pub(crate) fn u32(&self, at: usize) -> usize {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    pub(crate) fn put(&mut self, at: usize, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The page at the root of the tree of buckets.
    pub(crate) fn root(&self) -> usize {
        usize::try_from(self.u64(32)).unwrap() * PAGE
    }

    /// The elements of the page at `page`, a leaf.
    pub(crate) fn elements(&self, page: usize) -> Vec<Element> {
        (0..usize::from(self.u16(page + 10)))
            .map(|index| {
                let at = page + 16 + 16 * index;
                let key = at + self.u32(at + 4);
                let value_at = key + self.u32(at + 8);
                Element { at, key: self.0[key..value_at].to_vec(), value_at }
            })
            .collect()
    }

    /// The element of a bucket in the root page.
    pub(crate) fn bucket(&self, name: &str) -> Element {
        self.elements(self.root()).into_iter().find(|element| element.key == name.as_bytes()).unwrap()
    }

    /// The offset of the page at the root of bucket `key`: a branch.
    pub(crate) fn keys(&self) -> usize {
        usize::try_from(self.u64(self.bucket("key").value_at)).unwrap() * PAGE
    }

    /// The offset of child `index` of the branch at `page`.
    pub(crate) fn child(&self, page: usize, index: usize) -> usize {
        usize::try_from(self.u64(page + 16 + 16 * index + 8)).unwrap() * PAGE
    }

    /// Checksums of both meta pages and of the whole as if all had been written so.
    pub(crate) fn seal(&mut self) -> &mut Self {
        for meta in [0, PAGE] {
            let sum = self.0[meta..][META]
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
            self.put(meta + META.end, sum.to_le_bytes());
        }
        self.seal_trailer()
    }

    /// The checksum of the whole alone.
    pub(crate) fn seal_trailer(&mut self) -> &mut Self {
        let database = self.0.len() - TRAILER;
        let sum = Sha256::digest(&self.0[..database]);
        self.put(database, sum)
    }

    /// A page more at the end, and its number. Both meta pages count it.
    pub(crate) fn add_page(&mut self) -> u64 {
        let trailer = self.0.split_off(self.0.len() - TRAILER);
        let number = (self.0.len() / PAGE) as u64;
        self.0.resize(self.0.len() + PAGE, 0);
        self.0.extend(trailer);
        for meta in [0, PAGE] {
            self.put(meta + 56, (number + 1).to_le_bytes());
        }
        number
    }

    /// The header of a page.
    pub(crate) fn header(&mut self, number: u64, flags: u16, count: u16, overflow: u32) -> &mut Self {
        let at = usize::try_from(number).unwrap() * PAGE;
        self.put(at, number.to_le_bytes()).put(at + 8, flags.to_le_bytes()).put(at + 10, count.to_le_bytes());
        self.put(at + 12, overflow.to_le_bytes())
    }
}

/// Numbers out of a seed (xorshift), the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}
