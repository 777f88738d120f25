//! Which bytes of a page changed, one bit each.

use crate::format::PAGE_BYTES_MAX;

/// One bit for each byte of a page of `N` bytes, byte `i` in bit `i % 64` of word `i / 64`; one
/// means changed.
pub(crate) struct Mask<const N: usize> {
    words: [u64; PAGE_BYTES_MAX.div_ceil(64)],
}

impl<const N: usize> Mask<N> {
    pub(crate) const fn unchanged() -> Self {
        Self { words: [0; PAGE_BYTES_MAX.div_ceil(64)] }
    }

    /// Marks the bytes of `bytes` that are not zero, as the bytes from `position` on. `bytes` is
    /// the exclusive or of two little-endian words.
    pub(crate) const fn mark_nonzero(&mut self, position: usize, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut lane = 0;
        while lane < 8 {
            if bytes >> (lane * 8) & 0xff != 0 {
                let i = position + lane;
                self.words[i / 64] |= 1 << (i % 64);
            }
            lane += 1;
        }
    }

    /// The first changed byte at or after `from`.
    pub(crate) fn next_changed(&self, from: usize) -> Option<usize> {
        self.next(from, |word| word)
    }

    /// The first unchanged byte at or after `from`, or the end of the page.
    pub(crate) fn run_end(&self, from: usize) -> usize {
        self.next(from, |word| !word).unwrap_or(N)
    }

    fn next(&self, from: usize, wanted: impl Fn(u64) -> u64) -> Option<usize> {
        let mut position = from;
        while position < N {
            let ahead = wanted(self.words[position / 64]) >> (position % 64);
            if ahead != 0 {
                return Some(position + ahead.trailing_zeros() as usize).filter(|&found| found < N);
            }
            position = (position / 64 + 1) * 64;
        }
        None
    }
}
