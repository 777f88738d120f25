//! Sets of pages, one bit each.

use std::ops::Range;

/// Bytes of a guest page, and the unit of every [`PageSet`].
pub(crate) const PAGE_BYTES: u64 = 4096;

/// A set of page numbers below a fixed bound, kept as words of 64 so that joining and walking sets
/// costs a few instructions per 256 KiB of guest RAM.
///
/// Pages are numbered from the start of a RAM block. Bits at and above [`PageSet::bound`] are
/// always clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    bound: u64,
}

impl PageSet {
    /// The empty set of pages below `bound`.
    pub fn new(bound: u64) -> PageSet {
        PageSet { words: vec![0; words_for(bound)], bound }
    }

    /// Every page below `bound`.
    pub(crate) fn full(bound: u64) -> PageSet {
        PageSet::from_words(vec![u64::MAX; words_for(bound)], bound)
    }

    /// A set from words whose lowest bit is the lowest page. Bits past `bound` are dropped, missing
    /// words are empty.
    pub(crate) fn from_words(mut words: Vec<u64>, bound: u64) -> PageSet {
        words.resize(words_for(bound), 0);
        let mut set = PageSet { words, bound };
        set.trim();
        set
    }

    /// One past the highest page that could be a member.
    pub(crate) fn bound(&self) -> u64 {
        self.bound
    }

    /// The words; bit `b` of word `w` is page `64 * w + b`.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many pages are members. Walks all words.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// False for pages past the bound.
    pub fn contains(&self, page: u64) -> bool {
        page < self.bound && self.words[(page / 64) as usize] & bit(page) != 0
    }

    /// True if `page` was not a member before.
    ///
    /// # Panics
    /// If `page` is not below the bound.
    pub fn insert(&mut self, page: u64) -> bool {
        assert!(page < self.bound, "page {page} in a set of {}", self.bound);
        let word = &mut self.words[(page / 64) as usize];
        let fresh = *word & bit(page) == 0;
        *word |= bit(page);
        fresh
    }

    /// True if `page` was a member.
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) fn remove(&mut self, page: u64) -> bool {
        if page >= self.bound {
            return false;
        }
        let word = &mut self.words[(page / 64) as usize];
        let found = *word & bit(page) != 0;
        *word &= !bit(page);
        found
    }

    /// Adds every page of `pages`; the part past the bound is ignored.
    pub(crate) fn insert_range(&mut self, pages: Range<u64>) {
        self.for_words(pages, |word, mask| *word |= mask);
    }

    /// Removes every page of `pages`.
    pub(crate) fn remove_range(&mut self, pages: Range<u64>) {
        self.for_words(pages, |word, mask| *word &= !mask);
    }

    /// Adds the members of `other`.
    ///
    /// # Panics
    /// If the bounds differ: silently dropping a tail would lose pages.
    pub(crate) fn union_with(&mut self, other: &PageSet) {
        assert_eq!(self.bound, other.bound, "sets of different blocks joined");
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }

    /// Removes the members of `other`.
    ///
    /// # Panics
    /// If the bounds differ.
    pub(crate) fn subtract(&mut self, other: &PageSet) {
        assert_eq!(self.bound, other.bound, "sets of different blocks subtracted");
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a &= !b;
        }
    }

    /// Adds the pages of `word`, the members 64·`index` to 64·`index`+63. Bits past the bound are
    /// dropped.
    pub(crate) fn union_word(&mut self, index: usize, word: u64) {
        if let Some(w) = self.words.get_mut(index) {
            *w |= word;
        }
        self.trim();
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The lowest member at or above `from`.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = self.words.get(index)? & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The lowest page at or above `from` that is not a member, at most the bound.
    pub(crate) fn next_absent(&self, from: u64) -> u64 {
        let mut index = (from / 64) as usize;
        let Some(&first) = self.words.get(index) else { return self.bound };
        let mut word = !first & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            match self.words.get(index) {
                Some(w) => word = !w,
                None => return self.bound,
            }
        }
        (index as u64 * 64 + u64::from(word.trailing_zeros())).min(self.bound)
    }

    /// Members in ascending order.
    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter { words: &self.words, index: 0, word: self.words.first().copied().unwrap_or(0) }
    }

    /// Maximal runs of members in ascending order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at)?;
            at = self.next_absent(start);
            Some(start..at)
        })
    }

    fn for_words(&mut self, pages: Range<u64>, f: impl Fn(&mut u64, u64)) {
        let (start, end) = (pages.start, pages.end.min(self.bound));
        if start >= end {
            return;
        }
        let (first, last) = ((start / 64) as usize, ((end - 1) / 64) as usize);
        for index in first..=last {
            let low = if index == first { u64::MAX << (start % 64) } else { u64::MAX };
            let high = if index == last { u64::MAX >> (63 - (end - 1) % 64) } else { u64::MAX };
            f(&mut self.words[index], low & high);
        }
    }

    fn trim(&mut self) {
        if !self.bound.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= u64::MAX >> (64 - self.bound % 64);
        }
    }
}

impl<'a> IntoIterator for &'a PageSet {
    type Item = u64;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Members of a [`PageSet`] in ascending order.
pub struct Iter<'a> {
    words: &'a [u64],
    index: usize,
    word: u64,
}

impl Iterator for Iter<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.word == 0 {
            self.index += 1;
            self.word = *self.words.get(self.index)?;
        }
        let page = self.index as u64 * 64 + u64::from(self.word.trailing_zeros());
        self.word &= self.word - 1;
        Some(page)
    }
}

fn words_for(pages: u64) -> usize {
    pages.div_ceil(64) as usize
}

fn bit(page: u64) -> u64 {
    1 << (page % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn last_word_holds_nothing_past_the_bound() {
        let set = PageSet::full(70);
        assert_eq!(set.count(), 70);
        assert_eq!(set.words()[1], 0x3f);
        assert_eq!(set.iter().last(), Some(69));
        assert_eq!(set.next_absent(0), 70);
        assert_eq!(set.next(70), None);
        let mut other = PageSet::new(70);
        other.union_word(1, u64::MAX);
        assert_eq!(other.count(), 6);
    }

    #[test]
    fn empty_bound_is_harmless() {
        let set = PageSet::full(0);
        assert!(set.count() == 0 && set.iter().next().is_none() && set.ranges().next().is_none());
        assert_eq!(set.next_absent(0), 0);
    }

    proptest! {
        #[test]
        fn behaves_as_an_ordered_set(ops in prop::collection::vec((0u8..4, 0u64..300, 0u64..300), 0..60)) {
            let mut set = PageSet::new(300);
            let mut model = BTreeSet::new();
            for (op, a, b) in ops {
                match op {
                    0 => prop_assert_eq!(set.insert(a), model.insert(a)),
                    1 => prop_assert_eq!(set.remove(a), model.remove(&a)),
                    2 => { set.insert_range(a..b); model.extend(a..b); }
                    _ => { set.remove_range(a..b); model.retain(|p| !(a..b).contains(p)); }
                }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.ranges().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), model.len() as u64);
        }
    }
}
