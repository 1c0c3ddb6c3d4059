//! The walk through a B+ tree of pages: each page once, each key in its place.

use std::mem;

use crate::bytes::{le32, le64};
use crate::error::{Error, Fault, Order};
use crate::extent::{CHUNK, Extent, Window};
use crate::meta::{HEADER, Header, Meta};
use crate::pages::Pages;
use crate::source::ReadAt;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// Bytes of the header of an element, in a branch and in a leaf.
const ELEMENT: u64 = 16;
/// bbolt's MaxKeySize.
const MAX_KEY: u64 = 32768;
/// A page has two keys at least (bbolt MinKeysPerPage), so this many levels have more pages than a file of 8 TiB.
const MAX_DEPTH: usize = 32;
/// The first page after the meta pages.
const FIRST: u64 = 2;

/// One entry of a leaf.
pub(crate) struct Entry<'a> {
    /// The offset of its key in the file.
    pub(crate) at: u64,
    pub(crate) is_bucket: bool,
    pub(crate) key: &'a [u8],
    pub(crate) value: Value<'a>,
}

/// A value that is read in pieces.
pub(crate) struct Value<'a> {
    source: &'a dyn ReadAt,
    extent: &'a mut Extent,
    at: u64,
    left: u64,
    element: u16,
}

impl Value<'_> {
    /// The offset in the file of what comes next.
    pub(crate) fn offset(&self) -> u64 {
        self.extent.offset(self.at)
    }

    /// How many bytes are still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; none when there is no more.
    pub(crate) fn piece(&mut self) -> Result<Option<&[u8]>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let (at, size, element) = (self.at, self.left.min(CHUNK), self.element);
        self.at = self.at.saturating_add(size);
        self.left = self.left.saturating_sub(size);
        self.extent.get(self.source, Window::Data, at, size, || Fault::ElementOutside { element }).map(Some)
    }
}

/// What the pages of a file are used for, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) branch: u64,
    pub(crate) leaf: u64,
    pub(crate) overflow: u64,
}

/// Walks trees of one file and keeps account of the pages that they use.
pub(crate) struct Trees<'a> {
    source: &'a dyn ReadAt,
    meta: Meta,
    seen: Pages,
    used: Used,
    /// Two buffers of keys, of a leaf, and of branches, kept from one to the next.
    last: Vec<u8>,
    key: Vec<u8>,
    leaf: Extent,
    spare: Vec<Extent>,
}

/// A page that is to be visited, and where it is referred to.
struct Visit {
    page: u64,
    from: u64,
    bounds: Bounds,
}

/// What the parent page says of the keys of a page.
#[derive(Default)]
struct Bounds {
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Bounds {
    /// Whether a key is in order after `last`, which is empty before the first.
    fn allow(&self, key: &[u8], last: &[u8]) -> Result<(), Order> {
        if key < self.lower.as_slice() {
            return Err(Order::BelowParent);
        }
        if key <= last {
            return Err(Order::Previous);
        }
        if self.upper.as_deref().is_some_and(|upper| key >= upper) {
            return Err(Order::BeyondParent);
        }
        Ok(())
    }
}

/// A branch page whose children are being visited.
struct Branch {
    extent: Extent,
    page: u64,
    header: Header,
    bounds: Bounds,
    /// The next element, and where its key must begin.
    next: u16,
    data: u64,
    ahead: Option<Child>,
}

struct Child {
    page: u64,
    from: u64,
    key: Vec<u8>,
}

impl<'a> Trees<'a> {
    pub(crate) fn new(source: &'a dyn ReadAt, meta: Meta) -> Self {
        let mut seen = Pages::none_of(meta.pages);
        (0..FIRST).for_each(|page| {
            seen.insert(page);
        });
        Self {
            source,
            meta,
            seen,
            used: Used::default(),
            last: Vec::new(),
            key: Vec::new(),
            leaf: Extent::default(),
            spare: Vec::new(),
        }
    }

    pub(crate) fn used(&self) -> Used {
        self.used
    }

    pub(crate) fn seen(&mut self) -> &mut Pages {
        &mut self.seen
    }

    /// Visits each entry below page `root` in order. `from` is the offset at which the file refers to it.
    pub(crate) fn walk(
        &mut self,
        root: u64,
        from: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.last.clear();
        let mut above: Vec<Branch> = Vec::new();
        let mut next = Some(Visit { page: root, from, bounds: Bounds::default() });
        loop {
            if let Some(Visit { page, from, bounds }) = next.take() {
                if above.len() >= MAX_DEPTH {
                    return Err(Fault::Depth(MAX_DEPTH).at(from));
                }
                // A branch keeps its windows while its children are read.
                let mut extent = mem::take(&mut self.leaf);
                let header = self.open(&mut extent, page, from)?;
                if header.count == 0 && (header.flags == BRANCH || !above.is_empty()) {
                    return Err(Fault::PageEmpty(page).at(extent.offset(0)));
                }
                if header.flags == LEAF {
                    self.used.leaf += 1;
                    let end = self.entries(&mut extent, header.count, &bounds, visit)?;
                    self.fits(&extent, page, header, end)?;
                    self.leaf = extent;
                } else {
                    self.used.branch += 1;
                    self.leaf = self.spare.pop().unwrap_or_default();
                    let data = elements_end(header.count);
                    let mut branch = Branch { extent, page, header, bounds, next: 0, data, ahead: None };
                    branch.ahead = branch.read(self.source, &[])?;
                    above.push(branch);
                }
            }
            let Some(branch) = above.last_mut() else { return Ok(()) };
            next = branch.step(self.source)?;
            if next.is_none()
                && let Some(done) = above.pop()
            {
                self.fits(&done.extent, done.page, done.header, done.data)?;
                self.spare.push(done.extent);
            }
        }
    }

    /// Visits each entry of a bucket that lies in a value, at `at` of the file.
    pub(crate) fn walk_inline(
        &mut self,
        at: u64,
        len: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.last.clear();
        let mut extent = mem::take(&mut self.leaf);
        extent.moved_to(at, len);
        let fault = || Fault::Bucket("that lies in its entry has the header of no leaf");
        let bytes = extent.get(self.source, Window::Elements, 0, HEADER as u64, fault)?;
        let header = Header::parse(bytes).ok_or_else(|| fault().at(at))?;
        if header != (Header { number: 0, flags: LEAF, count: header.count, overflow: 0 }) {
            return Err(fault().at(at));
        }
        let end = self.entries(&mut extent, header.count, &Bounds::default(), visit)?;
        if end != len {
            return Err(Fault::Bucket("that lies in its entry is not as long as what it holds").at(at));
        }
        self.leaf = extent;
        Ok(())
    }

    /// Goes to a page, which nobody may have been at before, and to what it has of overflow.
    fn open(&mut self, extent: &mut Extent, page: u64, from: u64) -> Result<Header, Error> {
        let outside = |overflow| Fault::PageOutside { page, overflow, pages: self.meta.pages };
        if page < FIRST || page >= self.meta.pages {
            return Err(outside(0).at(from));
        }
        if !self.seen.insert(page) {
            return Err(Fault::PageTwice(page).at(from));
        }
        let at = page.saturating_mul(self.meta.page_size);
        extent.moved_to(at, self.meta.page_size);
        let bytes = extent.get(self.source, Window::Elements, 0, HEADER as u64, || outside(0))?;
        let header = Header::parse(bytes).ok_or_else(|| outside(0).at(at))?;
        if header.number != page {
            return Err(Fault::PageNumber { page, found: header.number }.at(at));
        }
        if header.flags != BRANCH && header.flags != LEAF {
            return Err(Fault::PageKind { page, flags: header.flags }.at(at));
        }
        if header.overflow > 0 {
            let end = page.saturating_add(header.overflow.into());
            if end >= self.meta.pages {
                return Err(outside(header.overflow).at(at));
            }
            if let Some(twice) = (page + 1..=end).find(|page| !self.seen.insert(*page)) {
                return Err(Fault::PageTwice(twice).at(at));
            }
            self.used.overflow += u64::from(header.overflow);
            extent.grown_to(self.meta.page_size.saturating_mul(u64::from(header.overflow) + 1));
        }
        Ok(header)
    }

    /// A page takes as many pages as what it holds; older versions of bbolt took one more where it fills them.
    fn fits(&self, extent: &Extent, page: u64, header: Header, used: u64) -> Result<(), Error> {
        let pages = u64::from(header.overflow) + 1;
        let size = self.meta.page_size;
        if pages == used.div_ceil(size) || pages == used / size + 1 {
            return Ok(());
        }
        Err(Fault::PageSize { page, overflow: header.overflow, used }.at(extent.offset(0)))
    }

    /// Visits the entries of a leaf and answers where the last one ends.
    fn entries(
        &mut self,
        extent: &mut Extent,
        count: u16,
        bounds: &Bounds,
        visit: &mut dyn FnMut(Entry<'_>) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut data = elements_end(count);
        for element in 0..count {
            let outside = || Fault::ElementOutside { element };
            let place = element_at(element);
            let offset = extent.offset(place);
            let bytes = extent.get(self.source, Window::Elements, place, ELEMENT, outside)?;
            let fields = (le32(bytes, 0), le32(bytes, 4), le32(bytes, 8), le32(bytes, 12));
            let (Some(flags), Some(position), Some(key_size), Some(value_size)) = fields else {
                return Err(outside().at(offset));
            };
            if flags > 1 {
                return Err(Fault::ElementFlags { element, flags }.at(offset));
            }
            read_key(self.source, extent, element, data, position, key_size, &mut self.key)?;
            let at = extent.offset(data);
            bounds.allow(&self.key, &self.last).map_err(|why| Fault::KeyOrder { element, why }.at(at))?;
            let value = data.saturating_add(key_size.into());
            data = value.saturating_add(value_size.into());
            if data > extent.len() {
                return Err(outside().at(offset));
            }
            let value = Value { source: self.source, extent, at: value, left: value_size.into(), element };
            visit(Entry { at, is_bucket: flags == 1, key: &self.key, value })?;
            mem::swap(&mut self.last, &mut self.key);
        }
        Ok(data)
    }
}

impl Branch {
    /// The next child to visit; none when there is no more.
    fn step(&mut self, source: &dyn ReadAt) -> Result<Option<Visit>, Error> {
        let Some(child) = self.ahead.take() else { return Ok(None) };
        self.ahead = self.read(source, &child.key)?;
        let upper = self.ahead.as_ref().map(|next| next.key.clone()).or_else(|| self.bounds.upper.clone());
        Ok(Some(Visit { page: child.page, from: child.from, bounds: Bounds { lower: child.key, upper } }))
    }

    /// The next element, whose key is above `last`.
    fn read(&mut self, source: &dyn ReadAt, last: &[u8]) -> Result<Option<Child>, Error> {
        let element = self.next;
        if element >= self.header.count {
            return Ok(None);
        }
        self.next = element.saturating_add(1);
        let outside = || Fault::ElementOutside { element };
        let place = element_at(element);
        let from = self.extent.offset(place);
        let bytes = self.extent.get(source, Window::Elements, place, ELEMENT, outside)?;
        let (Some(position), Some(key_size), Some(page)) = (le32(bytes, 0), le32(bytes, 4), le64(bytes, 8)) else {
            return Err(outside().at(from));
        };
        let mut key = Vec::new();
        read_key(source, &mut self.extent, element, self.data, position, key_size, &mut key)?;
        self.bounds
            .allow(&key, last)
            .map_err(|why| Fault::KeyOrder { element, why }.at(self.extent.offset(self.data)))?;
        self.data = self.data.saturating_add(key_size.into());
        Ok(Some(Child { page, from, key }))
    }
}

/// Where the header of an element is in its page.
fn element_at(element: u16) -> u64 {
    HEADER as u64 + u64::from(element) * ELEMENT
}

/// Where the headers of elements end and keys begin.
fn elements_end(count: u16) -> u64 {
    element_at(count)
}

/// Reads the key of an element. Its position counts from its header, and all versions of bbolt write the first key after the last
/// header and each further one after the value before it: what overlaps or leaves a gap is damaged.
fn read_key(
    source: &dyn ReadAt,
    extent: &mut Extent,
    element: u16,
    expected: u64,
    position: u32,
    size: u32,
    key: &mut Vec<u8>,
) -> Result<(), Error> {
    let place = element_at(element);
    let found = place.saturating_add(position.into());
    if found != expected {
        return Err(Fault::ElementPosition { element, expected, found }.at(extent.offset(place)));
    }
    let size = u64::from(size);
    if !(1..=MAX_KEY).contains(&size) {
        return Err(Fault::KeySize { element, size }.at(extent.offset(place)));
    }
    let bytes = extent.get(source, Window::Data, expected, size, || Fault::ElementOutside { element })?;
    key.clear();
    key.extend_from_slice(bytes);
    Ok(())
}
