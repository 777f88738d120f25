//! Pages of a chunk as a set of bits.

use std::ops::Range;

use crate::memory::PageSet;

/// Pages of a chunk: the unit of clearing, of sharding, and of one read.
pub(crate) const CHUNK_PAGES: u64 = 256;

/// One bit per page of a chunk.
pub(crate) type ChunkMask = [u64; (CHUNK_PAGES / 64) as usize];

/// The members of a set in a chunk.
pub(crate) fn chunk_of(pages: &PageSet, chunk: u64) -> ChunkMask {
    let first = (chunk * (CHUNK_PAGES / 64)) as usize;
    std::array::from_fn(|word| pages.words().get(first + word).copied().unwrap_or(0))
}

pub(super) fn set_range(mask: &mut ChunkMask, pages: Range<u64>) {
    for (index, word) in mask.iter_mut().enumerate() {
        let base = index as u64 * 64;
        let (from, to) = (pages.start.max(base), pages.end.min(base + 64));
        if from < to {
            *word |= (u64::MAX >> (64 - (to - from))) << (from - base);
        }
    }
}

pub(super) fn mask_pages(mask: ChunkMask) -> impl Iterator<Item = u64> {
    mask.into_iter().enumerate().flat_map(|(index, word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            (left != 0).then(|| {
                let bit = u64::from(left.trailing_zeros());
                left &= left - 1;
                index as u64 * 64 + bit
            })
        })
    })
}

/// Maximal runs of pages in a mask, ascending.
pub(crate) fn mask_ranges(mask: ChunkMask) -> impl Iterator<Item = Range<u64>> {
    let mut pages = mask_pages(mask).peekable();
    std::iter::from_fn(move || {
        let start = pages.next()?;
        let mut end = start + 1;
        while pages.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

/// In both.
pub(crate) fn and(a: &ChunkMask, b: &ChunkMask) -> ChunkMask {
    std::array::from_fn(|word| a[word] & b[word])
}

/// In `a` and not in `b`.
pub(crate) fn and_not(a: &ChunkMask, b: &ChunkMask) -> ChunkMask {
    std::array::from_fn(|word| a[word] & !b[word])
}

/// In either.
pub(crate) fn or(a: &ChunkMask, b: &ChunkMask) -> ChunkMask {
    std::array::from_fn(|word| a[word] | b[word])
}

/// How many pages.
pub(crate) fn count(mask: &ChunkMask) -> u64 {
    mask.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_words() {
        let mut mask = [0; 4];
        set_range(&mut mask, 60..130);
        set_range(&mut mask, 255..256);
        assert_eq!(mask_ranges(mask).collect::<Vec<_>>(), [60..130, 255..256]);
    }
}
