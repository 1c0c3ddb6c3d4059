//! What can be wrong with a file, and where.

use std::fmt;
use std::io;

/// Why a file is no sound snapshot.
#[derive(Debug, thiserror::Error)]
#[error("at byte {at}: {fault}")]
pub struct Error {
    /// The offset in the file, in bytes, of what is wrong.
    pub at: u64,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong. Page numbers count from 0; a page is as large as the file says, 4096 bytes mostly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// A snapshot is whole sectors of 512 bytes and a checksum of 32 bytes; a database file is whole sectors.
    #[error("the size, {0} bytes, is that of no snapshot: it was cut off, or is something else")]
    Size(u64),
    /// Less than two meta pages.
    #[error("{0} bytes have no room for a database")]
    Short(u64),
    /// The last 32 bytes are not the SHA-256 of all before them.
    #[error("the checksum of the file is {} and its contents have {}", Hex(.stored), Hex(.computed))]
    Trailer {
        /// The last 32 bytes.
        stored: [u8; 32],
        /// The SHA-256 of what is before them.
        computed: [u8; 32],
    },
    /// A meta page is not one.
    #[error("meta page {page}: {why}")]
    Meta {
        /// 0 or 1.
        page: u64,
        /// What is wrong with it.
        why: MetaFault,
    },
    /// A snapshot's two meta pages are written from one.
    #[error("the two meta pages of a snapshot differ")]
    MetasDiffer,
    /// The pages that the meta page counts are not the size of the file.
    #[error("the database has {pages} pages of {page_size} bytes, the file {bytes} bytes: it was cut off or added to")]
    HighWater {
        /// The number of pages.
        pages: u64,
        /// Of one page, in bytes.
        page_size: u64,
        /// Of the file, without its checksum.
        bytes: u64,
    },
    /// A reference to a page that is a meta page or beyond the end.
    #[error("page {page} with {overflow} more is outside the database, which has {pages} pages")]
    PageOutside {
        /// The page that is referred to.
        page: u64,
        /// How many more it says that it takes.
        overflow: u32,
        /// The number of pages.
        pages: u64,
    },
    /// Two references to one page: a cycle, or pages that overlap.
    #[error("page {0} is used twice")]
    PageTwice(u64),
    /// The page says that it is another.
    #[error("page {page} says that it is page {found}")]
    PageNumber {
        /// Where it is.
        page: u64,
        /// What it says.
        found: u64,
    },
    /// Neither a branch nor a leaf where one must be.
    #[error("page {page} is of a kind ({flags:#x}) that does not belong here")]
    PageKind {
        /// The page.
        page: u64,
        /// What it says.
        flags: u16,
    },
    /// A page without elements where it must have some.
    #[error("page {0} is empty")]
    PageEmpty(u64),
    /// What a page holds takes another number of pages than it says.
    #[error("page {page} says that it takes {overflow} more, and holds {used} bytes")]
    PageSize {
        /// The page.
        page: u64,
        /// How many more pages it says that it takes.
        overflow: u32,
        /// What its elements take.
        used: u64,
    },
    /// More levels than a tree of any size has.
    #[error("the tree has more than {0} levels")]
    Depth(usize),
    /// An element reaches beyond its page.
    #[error("element {element} reaches beyond the end of its page")]
    ElementOutside {
        /// Counted from 0.
        element: u16,
    },
    /// Elements lie one after the other without gaps.
    #[error("element {element} begins at {found} and not at {expected}, where the one before it ends")]
    ElementPosition {
        /// Counted from 0.
        element: u16,
        /// Where it must begin, in its page.
        expected: u64,
        /// Where it says that it begins.
        found: u64,
    },
    /// An element of a kind that does not exist.
    #[error("element {element} has unknown flags ({flags:#x})")]
    ElementFlags {
        /// Counted from 0.
        element: u16,
        /// What it says.
        flags: u32,
    },
    /// A key is 1 to 32768 bytes.
    #[error("element {element} has a key of {size} bytes")]
    KeySize {
        /// Counted from 0.
        element: u16,
        /// Of the key, in bytes.
        size: u64,
    },
    /// A key is not above the one before it, or not within what the parent page says.
    #[error("the key of element {element} {0}", .why)]
    KeyOrder {
        /// Counted from 0.
        element: u16,
        /// How.
        why: Order,
    },
    /// The list of free pages.
    #[error("the list of free pages {0}")]
    Freelist(FreelistFault),
    /// A page that is neither used nor free.
    #[error("page {0} is neither used nor in the list of free pages")]
    PageLost(u64),
    /// At the top of the database there are buckets only.
    #[error("an entry at the top of the database is no bucket")]
    NotABucket,
    /// The header of a bucket.
    #[error("a bucket {0}")]
    Bucket(&'static str),
    /// A revision or what is stored under it.
    #[error("a record in bucket `key` {0}")]
    Record(&'static str),
    /// What etcd stores beside the keys.
    #[error("{key} in bucket `{bucket}` {why}")]
    Entry {
        /// The name of the bucket.
        bucket: &'static str,
        /// The key, as text.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What is wrong with a meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaFault {
    /// The header of the page.
    #[error("its header is not that of a meta page")]
    Header,
    /// The first four bytes after the header.
    #[error("the magic number is {0:#010x} and not 0xed0cdaed: no bbolt database")]
    Magic(u32),
    /// Only version 2 exists.
    #[error("version {0} of bbolt's format; 2 is known")]
    Version(u32),
    /// FNV-1a of the fields before it.
    #[error("its checksum is {stored:#018x} and its contents have {computed:#018x}")]
    Checksum {
        /// What it says.
        stored: u64,
        /// What its fields have.
        computed: u64,
    },
    /// A power of two from 1 KiB to 16 MiB.
    #[error("a page size of {0} bytes")]
    PageSize(u32),
    /// It is of another page size than the other one, so it is not where it would be.
    #[error("it is not there")]
    Missing,
}

/// How a key is out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Order {
    /// Not above the key before it.
    #[error("is not above the one before it")]
    Previous,
    /// Below what the parent says of this page.
    #[error("is below the key that the parent page has for this page")]
    BelowParent,
    /// Not below what the parent says of the next page.
    #[error("is not below the key that the parent page has for the next page")]
    BeyondParent,
}

/// What is wrong with the list of free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreelistFault {
    /// More entries than it has room for.
    #[error("has {count} entries in {bytes} bytes")]
    Count {
        /// The number of entries.
        count: u64,
        /// The room for them.
        bytes: u64,
    },
    /// Not in order, or one twice.
    #[error("has page {0} out of order")]
    Order(u64),
    /// A page that does not exist.
    #[error("has page {0}, which is outside the database")]
    Outside(u64),
    /// A page that is used.
    #[error("has page {0}, which is used")]
    Used(u64),
}

impl Fault {
    pub(crate) fn at(self, at: u64) -> Error {
        Error { at, fault: self }
    }
}

impl FreelistFault {
    pub(crate) fn at(self, at: u64) -> Error {
        Fault::Freelist(self).at(at)
    }
}

pub(crate) fn unread(at: u64) -> impl FnOnce(io::Error) -> Error {
    move |error| Fault::Read(error).at(at)
}

/// Bytes as hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
