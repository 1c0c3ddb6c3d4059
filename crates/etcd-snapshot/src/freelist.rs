//! The list of free pages, in files that have one. etcd writes none: what its tree does not reach is free.

use crate::bytes::le64;
use crate::error::{Error, Fault, FreelistFault};
use crate::extent::{CHUNK, Extent, Window};
use crate::meta::{HEADER, Header, Meta};
use crate::pages::Pages;
use crate::source::ReadAt;

const FREELIST: u16 = 0x10;
/// A count that says that the real one is the first entry.
const COUNT_INSIDE: u16 = 0xffff;
const ID: u64 = 8;

/// Checks that each page is either used, as `seen` has it, or in the list at page `page`, and answers how many pages the list takes.
/// `from` is the offset at which the file refers to it.
pub(crate) fn check(source: &dyn ReadAt, meta: Meta, page: u64, from: u64, seen: &mut Pages) -> Result<u64, Error> {
    let mut extent = Extent::default();
    let at = page.saturating_mul(meta.page_size);
    let outside = |overflow| Fault::PageOutside { page, overflow, pages: meta.pages };
    if page >= meta.pages {
        return Err(outside(0).at(from));
    }
    extent.moved_to(at, meta.page_size);
    let bytes = extent.get(source, Window::Elements, 0, HEADER as u64, || outside(0))?;
    let header = Header::parse(bytes).ok_or_else(|| outside(0).at(at))?;
    if header.number != page {
        return Err(Fault::PageNumber { page, found: header.number }.at(at));
    }
    if header.flags != FREELIST {
        return Err(Fault::PageKind { page, flags: header.flags }.at(at));
    }
    let end = page.saturating_add(header.overflow.into());
    if end >= meta.pages {
        return Err(outside(header.overflow).at(at));
    }
    if let Some(twice) = (page..=end).find(|page| !seen.insert(*page)) {
        return Err(Fault::PageTwice(twice).at(at));
    }
    extent.grown_to(meta.page_size.saturating_mul(u64::from(header.overflow) + 1));

    let room = extent.len().saturating_sub(HEADER as u64);
    let mut place = HEADER as u64;
    let mut left = u64::from(header.count);
    if header.count == COUNT_INSIDE {
        let bytes = extent.get(source, Window::Elements, place, ID, || outside(header.overflow))?;
        left = le64(bytes, 0).ok_or_else(|| outside(header.overflow).at(at))?;
        place = place.saturating_add(ID);
    }
    let count = FreelistFault::Count { count: left, bytes: room };
    if left.checked_mul(ID).is_none_or(|size| size > extent.len().saturating_sub(place)) {
        return Err(count.at(at));
    }
    // What is not in the list before `next` has been found to be used.
    let mut next = 0;
    while left > 0 {
        let size = left.saturating_mul(ID).min(CHUNK);
        let offset = extent.offset(place);
        let bytes = extent.get(source, Window::Elements, place, size, || Fault::Freelist(count))?;
        for (id, offset) in bytes.chunks_exact(8).filter_map(|bytes| le64(bytes, 0)).zip((offset..).step_by(8)) {
            if id < next {
                return Err(FreelistFault::Order(id).at(offset));
            }
            if id >= meta.pages {
                return Err(FreelistFault::Outside(id).at(offset));
            }
            if seen.contains(id) {
                return Err(FreelistFault::Used(id).at(offset));
            }
            all_used(seen, next..id, meta)?;
            next = id.saturating_add(1);
        }
        place = place.saturating_add(size);
        left = left.saturating_sub(size / ID);
    }
    all_used(seen, next..meta.pages, meta)?;
    Ok(u64::from(header.overflow) + 1)
}

fn all_used(seen: &Pages, mut pages: std::ops::Range<u64>, meta: Meta) -> Result<(), Error> {
    pages
        .find(|page| !seen.contains(*page))
        .map_or(Ok(()), |lost| Err(Fault::PageLost(lost).at(lost.saturating_mul(meta.page_size))))
}
