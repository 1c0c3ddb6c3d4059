//! A snapshot that is checked while it passes.

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Fault};
use crate::meta::{HEADER, Header, META, Meta, Metas};
use crate::trailer::{self, TRAILER};

/// Takes a snapshot in pieces of any size, as they come, and checks what can be told before all of it is there: its checksum, both meta
/// pages, that the pages they count come and no others, that the root page is one. What is wrong early is told early.
///
/// That a page lies where it says is checked of those that must: the meta pages and the root. Any other may be free, or lie inside of a
/// large value, and then may say anything; [`verify`](crate::verify) follows the tree when all is there.
#[derive(Debug, Default)]
pub struct Stream {
    sha: Sha256,
    /// The last bytes that came: they may be the checksum.
    held: Vec<u8>,
    /// Bytes that went into `sha`, and so are known to be of the database.
    passed: u64,
    /// The first bytes of the page that passes.
    page: Vec<u8>,
    first: Option<Meta>,
    both: bool,
    root: bool,
}

/// A snapshot that has passed and was sound as far as [`Stream`] can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Streamed {
    /// Bytes of all of it, the checksum with it.
    pub size: u64,
    /// The checksum: the SHA-256 of all before it.
    pub sha256: [u8; TRAILER as usize],
    /// The SHA-256 of the whole file, the checksum at its end with it: what `sha256sum` tells.
    pub file_sha256: [u8; TRAILER as usize],
    /// Bytes of a page.
    pub page_size: u64,
}

impl Stream {
    /// Before the first piece.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next piece.
    ///
    /// # Errors
    /// When what has come so far can be the beginning of no sound snapshot. Nothing that comes later mends that.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Error> {
        let trailer = usize::try_from(TRAILER).unwrap_or_default();
        // What is pushed out of the last 32 bytes by this piece: of those held, and then of the piece itself.
        let out_of_held = (self.held.len() + piece.len()).saturating_sub(trailer).min(self.held.len());
        let held: Vec<u8> = self.held.drain(..out_of_held).collect();
        let (passes, stays) = piece.split_at(piece.len().saturating_sub(trailer - self.held.len().min(trailer)));
        self.held.extend_from_slice(stays);
        self.pass(&held)?;
        self.pass(passes)
    }

    /// Bytes that are of the database.
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sha.update(bytes);
        self.look(bytes)?;
        self.passed = self.passed.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Looks at the beginnings of pages.
    fn look(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let mut at = self.passed;
        while !bytes.is_empty() {
            // Until the first meta page is read, that is all there is.
            let size = self.first.map_or(u64::MAX, |meta| meta.page_size);
            let (page, inside) = (at / size, at % size);
            if let Some(meta) = self.first
                && page >= meta.pages
            {
                return Err(Fault::HighWater { pages: meta.pages, page_size: size, bytes: at }.at(at));
            }
            let wanted = self.wanted(page).saturating_sub(inside);
            let take = if wanted > 0 { wanted } else { size.saturating_sub(inside) };
            let (these, rest) = bytes.split_at(usize::try_from(take).unwrap_or(usize::MAX).min(bytes.len()));
            if wanted > 0 {
                self.page.extend_from_slice(these);
                if these.len() as u64 == wanted {
                    let start = std::mem::take(&mut self.page);
                    self.begins(page, &start, at.saturating_sub(inside))?;
                }
            }
            at = at.saturating_add(these.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// How many bytes of the beginning of a page are looked at.
    fn wanted(&self, page: u64) -> u64 {
        match page {
            0 | 1 => META as u64,
            _ if self.first.is_some_and(|meta| meta.root == page) => HEADER as u64,
            _ => 0,
        }
    }

    fn begins(&mut self, page: u64, bytes: &[u8], at: u64) -> Result<(), Error> {
        match (page, self.first) {
            (0, _) => self.first = Some(Meta::parse(0, bytes).map_err(|why| Fault::Meta { page, why }.at(at))?),
            (1, Some(first)) => {
                let second = Meta::parse(1, bytes).map_err(|why| Fault::Meta { page, why }.at(at))?;
                Metas::twins(first, second)?;
                self.both = true;
            }
            (_, _) => {
                let found = Header::parse(bytes).map(|header| header.number);
                if found != Some(page) {
                    return Err(Fault::PageNumber { page, found: found.unwrap_or_default() }.at(at));
                }
                self.root = true;
            }
        }
        Ok(())
    }

    /// After the last piece.
    ///
    /// # Errors
    /// When it was cut off, or the checksum does not match.
    pub fn finish(self) -> Result<Streamed, Error> {
        let size = self.passed.saturating_add(self.held.len() as u64);
        let Some(meta) = self.first.filter(|_| self.both) else { return Err(Fault::Short(self.passed).at(size)) };
        if !self.root || meta.pages.checked_mul(meta.page_size) != Some(self.passed) {
            let fault = Fault::HighWater { pages: meta.pages, page_size: meta.page_size, bytes: self.passed };
            return Err(fault.at(size));
        }
        let stored: [u8; TRAILER as usize] = self.held.try_into().map_err(|_| Fault::Size(size).at(size))?;
        let file_sha256 = self.sha.clone().chain_update(stored).finalize().into();
        trailer::matches(stored, self.sha, self.passed)?;
        Ok(Streamed { size, sha256: stored, file_sha256, page_size: meta.page_size })
    }
}
