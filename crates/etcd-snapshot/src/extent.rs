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
    /// How many of `bytes` are of the file: memory is made once and kept.
    len: u64,
    bytes: Vec<u8>,
}

impl Held {
    /// Whether it has bytes `at..end`.
    fn has(&self, at: u64, end: u64) -> bool {
        self.len > 0 && at >= self.at && end <= self.at.saturating_add(self.len)
    }

    /// Reads `size` bytes, which are at `at` of the extent and at `place` of the file.
    fn read(&mut self, source: &dyn ReadAt, at: u64, size: u64, place: u64) -> Result<(), Error> {
        let wanted = usize::try_from(size).unwrap_or_default();
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        self.len = 0;
        source.read_exact_at(self.bytes.get_mut(..wanted).unwrap_or_default(), place).map_err(unread(place))?;
        (self.at, self.len) = (at, size);
        Ok(())
    }
}

impl Extent {
    /// Another part of the file. Memory that it has is kept.
    pub(crate) fn moved_to(&mut self, base: u64, len: u64) {
        (self.base, self.len) = (base, len);
        (self.elements.len, self.data.len) = (0, 0);
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
        source: &dyn ReadAt,
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
        if !held.has(at, end) {
            held.read(source, from, self.len.saturating_sub(from).min(CHUNK), self.base.saturating_add(from))?;
        }
        let start = usize::try_from(at.saturating_sub(held.at)).unwrap_or(usize::MAX);
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        held.bytes.get(start..start.saturating_add(size)).ok_or_else(|| outside().at(offset))
    }
}
