//! A page with its overflow, or a bucket inside of one, read in pieces of bounded size.

use crate::error::{Error, Fault, unread};
use crate::source::ReadAt;

/// The most that is read at once. Keys are smaller; what is larger is read in pieces.
pub(crate) const CHUNK: u64 = 64 * 1024;

/// Which of two windows a piece is looked for in: what is read in turn from two places is not read anew each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// Headers of elements, from the front.
    Elements,
    /// Keys and values, behind them.
    Data,
}

/// Bytes `base..base + len` of the file, seen through two windows.
#[derive(Default)]
pub(crate) struct Extent {
    base: u64,
    len: u64,
    elements: Held,
    data: Held,
}

#[derive(Default)]
struct Held {
    at: u64,
    bytes: Vec<u8>,
}

impl Extent {
    /// Another part of the file. Memory that it has is kept.
    pub(crate) fn moved_to(&mut self, base: u64, len: u64) {
        (self.base, self.len) = (base, len);
        self.elements.bytes.clear();
        self.data.bytes.clear();
    }

    /// More of the file from the same place.
    pub(crate) fn grown_to(&mut self, len: u64) {
        self.len = len;
    }

    /// The offset in the file of a place in it.
    pub(crate) fn offset(&self, at: u64) -> u64 {
        self.base.saturating_add(at)
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes `at..at + len`, [`CHUNK`] at most. Fault when they are not all inside.
    pub(crate) fn get(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        window: Window,
        at: u64,
        len: u64,
        outside: impl FnOnce() -> Fault,
    ) -> Result<&[u8], Error> {
        let offset = self.offset(at);
        let Some(end) = at.checked_add(len).filter(|end| *end <= self.len && len <= CHUNK) else {
            return Err(outside().at(offset));
        };
        // What fits is read whole, once.
        let (held, from) = match window {
            _ if self.len <= CHUNK => (&mut self.data, 0),
            Window::Elements => (&mut self.elements, at),
            Window::Data => (&mut self.data, at),
        };
        if at < held.at || end > held.at.saturating_add(held.bytes.len() as u64) || held.bytes.is_empty() {
            let size = self.len.saturating_sub(from).min(CHUNK);
            held.bytes.resize(usize::try_from(size).unwrap_or_default(), 0);
            held.at = from;
            let place = self.base.saturating_add(from);
            if let Err(error) = source.read_exact_at(&mut held.bytes, place) {
                held.bytes.clear();
                return Err(unread(place)(error));
            }
        }
        let start = usize::try_from(at.saturating_sub(held.at)).unwrap_or(usize::MAX);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        held.bytes.get(start..start.saturating_add(size)).ok_or_else(|| outside().at(offset))
    }
}
