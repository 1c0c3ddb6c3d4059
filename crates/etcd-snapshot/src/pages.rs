//! A set of pages: one bit each.

/// Which pages are used: 32 KiB for each GiB of pages of 4 KiB.
pub(crate) struct Pages {
    bits: Vec<u64>,
    used: u64,
}

impl Pages {
    /// None of `pages` pages. The caller has seen that the file is that large.
    pub(crate) fn none_of(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self { bits: vec![0; words], used: 0 }
    }

    /// Adds a page; false when it is there, or out of range.
    pub(crate) fn insert(&mut self, page: u64) -> bool {
        let Some((word, bit)) = place(page).and_then(|(word, bit)| Some((self.bits.get_mut(word)?, bit))) else {
            return false;
        };
        let new = *word & bit == 0;
        *word |= bit;
        self.used += u64::from(new);
        new
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        place(page).and_then(|(word, bit)| Some(self.bits.get(word)? & bit != 0)).unwrap_or(false)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.used
    }
}

fn place(page: u64) -> Option<(usize, u64)> {
    Some((usize::try_from(page / 64).ok()?, 1 << (page % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_added_once_and_only_where_there_is_one() {
        let mut pages = Pages::none_of(65);
        assert!(pages.insert(0) && pages.insert(64) && pages.insert(63));
        assert!(!pages.insert(64) && !pages.insert(128) && !pages.insert(u64::MAX));
        assert!(pages.contains(63) && !pages.contains(62) && !pages.contains(1000));
        assert_eq!(pages.len(), 3);
    }
}
