//! The two meta pages: where the tree begins and how many pages there are.

use crate::bytes::{le16, le32, le64};
use crate::error::{Error, Fault, MetaFault, unread};
use crate::source::ReadAt;

/// Bytes of a page's header: number (8), kind (2), count (2), overflow (4).
pub(crate) const HEADER: usize = 16;
/// Bytes of a meta page that mean something.
pub(crate) const META: usize = HEADER + 64;
/// Where the checksum is in it: over what is between the header and here.
const CHECKSUM: usize = HEADER + 56;
/// Where the fields of interest are.
const ROOT: usize = HEADER + 16;
const FREELIST: usize = HEADER + 32;
const PAGES: usize = HEADER + 40;
/// What the flags of a meta page say.
const META_FLAG: u16 = 0x04;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// What etcd has instead of the page of a freelist: it keeps none in the file (NoFreelistSync).
const NO_FREELIST: u64 = u64::MAX;
/// bbolt looks for its second meta page at each of these sizes, too (db.go, getPageSizeFromSecondMeta).
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 10..=24;

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Bytes of a page: a power of two, 1 KiB to 16 MiB.
    pub(crate) page_size: u64,
    /// The page at the root of the tree of buckets.
    pub(crate) root: u64,
    /// The page of the list of free pages, if there is one.
    pub(crate) freelist: Option<u64>,
    /// The number of pages.
    pub(crate) pages: u64,
    /// The transaction that wrote it.
    pub(crate) txid: u64,
}

impl Meta {
    /// Reads meta page `page`, 0 or 1, from its first bytes.
    pub(crate) fn parse(page: u64, bytes: &[u8]) -> Result<Self, MetaFault> {
        let fields = Fields::of(bytes).ok_or(MetaFault::Missing)?;
        if fields.magic != MAGIC {
            return Err(MetaFault::Magic(fields.magic));
        }
        if fields.version != VERSION {
            return Err(MetaFault::Version(fields.version));
        }
        if fields.stored != fields.computed {
            return Err(MetaFault::Checksum { stored: fields.stored, computed: fields.computed });
        }
        // bbolt does not look at these, and never writes anything else.
        if fields.header != (Header { number: page, flags: META_FLAG, count: 0, overflow: 0 }) {
            return Err(MetaFault::Header);
        }
        if !fields.page_size.is_power_of_two() || !PAGE_SIZES.contains(&fields.page_size.trailing_zeros()) {
            return Err(MetaFault::PageSize(fields.page_size));
        }
        Ok(fields.meta)
    }

    /// The offset at which meta page `page` names the root.
    pub(crate) fn root_is_named_at(&self, page: u64) -> u64 {
        page.saturating_mul(self.page_size).saturating_add(ROOT as u64)
    }

    /// The offset at which meta page `page` names the list of free pages.
    pub(crate) fn freelist_is_named_at(&self, page: u64) -> u64 {
        page.saturating_mul(self.page_size).saturating_add(FREELIST as u64)
    }

    /// The offset at which meta page `page` has the number of pages.
    pub(crate) fn pages_are_counted_at(&self, page: u64) -> u64 {
        page.saturating_mul(self.page_size).saturating_add(PAGES as u64)
    }

    /// Whether both were written from one, as the two of a snapshot are (bbolt tx.go, WriteTo).
    fn is_twin_of(&self, second: &Self) -> bool {
        *self == Self { txid: self.txid, ..*second } && self.txid.wrapping_sub(1) == second.txid
    }
}

struct Fields {
    header: Header,
    magic: u32,
    version: u32,
    page_size: u32,
    meta: Meta,
    stored: u64,
    computed: u64,
}

impl Fields {
    /// None when they are too few bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        let page_size = le32(bytes, HEADER + 8)?;
        let freelist = le64(bytes, FREELIST)?;
        Some(Self {
            header: Header::parse(bytes)?,
            magic: le32(bytes, HEADER)?,
            version: le32(bytes, HEADER + 4)?,
            page_size,
            meta: Meta {
                page_size: page_size.into(),
                root: le64(bytes, ROOT)?,
                freelist: (freelist != NO_FREELIST).then_some(freelist),
                pages: le64(bytes, PAGES)?,
                txid: le64(bytes, HEADER + 48)?,
            },
            stored: le64(bytes, CHECKSUM)?,
            computed: fnv1a(bytes.get(HEADER..CHECKSUM)?),
        })
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The two meta pages as they are, each sound or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metas {
    first: Result<Meta, MetaFault>,
    second: Result<Meta, MetaFault>,
}

impl Metas {
    /// Reads both. Where the second is depends on the page size of the first; if that is unsound it is looked for at each size.
    pub(crate) fn read(source: &dyn ReadAt, bytes: u64) -> Result<Self, Error> {
        let at = |offset: u64| -> Result<Option<[u8; META]>, Error> {
            let mut page = [0; META];
            if offset.saturating_add(META as u64) > bytes {
                return Ok(None);
            }
            source.read_exact_at(&mut page, offset).map_err(unread(offset))?;
            Ok(Some(page))
        };
        let parse =
            |page: u64, bytes: Option<[u8; META]>| bytes.map_or(Err(MetaFault::Missing), |b| Meta::parse(page, &b));
        let first = parse(0, at(0)?);
        let second = match first {
            Ok(meta) => parse(1, at(meta.page_size)?),
            Err(_) => {
                let mut found = Err(MetaFault::Missing);
                for size in PAGE_SIZES.map(|bits| 1_u64 << bits) {
                    match parse(1, at(size)?) {
                        Ok(meta) if meta.page_size == size => {
                            found = Ok(meta);
                            break;
                        }
                        Ok(_) | Err(_) => {}
                    }
                }
                found
            }
        };
        Ok(Self { first, second })
    }

    /// The one that holds, as bbolt chooses (db.go, meta): the later of those that are sound.
    pub(crate) fn newest(&self) -> Result<(u64, Meta), Error> {
        match (self.first, self.second) {
            (Ok(first), Ok(second)) if second.txid > first.txid => Ok((1, second)),
            (Ok(first), _) => Ok((0, first)),
            (Err(_), Ok(second)) => Ok((1, second)),
            (Err(why), Err(_)) => Err(Fault::Meta { page: 0, why }.at(0)),
        }
    }

    /// The one that holds of a snapshot: both are sound, and written from one.
    pub(crate) fn of_snapshot(&self) -> Result<Meta, Error> {
        let first = self.first.map_err(|why| Fault::Meta { page: 0, why }.at(0))?;
        let second = self.second.map_err(|why| Fault::Meta { page: 1, why }.at(first.page_size))?;
        Self::twins(first, second)
    }

    pub(crate) fn twins(first: Meta, second: Meta) -> Result<Meta, Error> {
        if first.is_twin_of(&second) { Ok(first) } else { Err(Fault::MetasDiffer.at(first.page_size)) }
    }

    /// How many of the two are sound.
    pub(crate) fn sound(&self) -> u8 {
        u8::from(self.first.is_ok()) + u8::from(self.second.is_ok())
    }
}

/// The header of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) flags: u16,
    pub(crate) count: u16,
    pub(crate) overflow: u32,
}

impl Header {
    /// None when they are too few bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            number: le64(bytes, 0)?,
            flags: le16(bytes, 8)?,
            count: le16(bytes, 10)?,
            overflow: le32(bytes, 12)?,
        })
    }
}
