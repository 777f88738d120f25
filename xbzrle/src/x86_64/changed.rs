//! Which bytes of a page changed, and where runs of them begin and end.

use std::arch::asm;
use std::mem::MaybeUninit;

use crate::format::PAGE_BYTES_MAX;

const WORDS_MAX: usize = PAGE_BYTES_MAX.div_ceil(64);
const GROUPS_MAX: usize = WORDS_MAX.div_ceil(64);

/// One bit for each byte of a page of `N` bytes, byte `i` in bit `i % 64` of word `i / 64`; one means changed. And one
/// bit for each word, so that a page with few changes is walked in few steps.
pub(super) struct Changed<const N: usize> {
    /// Word `i` at `i + 1`, between two words of zeros.
    words: [MaybeUninit<u64>; WORDS_MAX + 2],
    nonzero: [u64; GROUPS_MAX],
}

impl<const N: usize> Changed<N> {
    const WORDS: usize = N.div_ceil(64);
    const GROUPS: usize = Self::WORDS.div_ceil(64);

    #[inline(always)]
    pub(super) fn nothing() -> Self {
        let mut words = [const { MaybeUninit::uninit() }; WORDS_MAX + 2];
        words[..Self::WORDS + 2].fill(MaybeUninit::new(0));
        Self { words, nonzero: [0; GROUPS_MAX] }
    }

    /// Sets word `i`, once.
    ///
    /// # Safety
    ///
    /// `i < WORDS`.
    #[inline(always)]
    pub(super) unsafe fn set(&mut self, i: usize, word: u64) {
        // SAFETY: `words` is longer than `WORDS`, for pages up to the size that `check_page_size` lets through.
        unsafe {
            *self.words.get_unchecked_mut(i + 1) = MaybeUninit::new(word);
            *self.nonzero.get_unchecked_mut(i / 64) |= u64::from(word != 0) << (i % 64);
        }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.nonzero[..Self::GROUPS].iter().all(|&group| group == 0)
    }

    /// Word `i`, counted from -1.
    ///
    /// # Safety
    ///
    /// `i <= WORDS`, and all words have been set.
    #[inline(always)]
    unsafe fn at<const AHEAD: usize>(&self, i: usize) -> u64 {
        // SAFETY: in bounds, and set, by the contract.
        unsafe { self.words.get_unchecked(i + AHEAD).assume_init() }
    }

    /// Whether the page is so full of changes that no choice of runs makes a delta shorter than the page.
    ///
    /// A gap costs its bytes if its runs are joined, and two lengths if not. So a delta has at least as many bytes as
    /// there are changed ones, and first and second ones of gaps between them, and two for the first lengths.
    ///
    /// # Safety
    ///
    /// All words have been set.
    #[inline(always)]
    pub(super) unsafe fn is_hopeless(&self) -> bool {
        let full = |group: usize| u64::MAX >> (64 - (Self::WORDS - group * 64).min(64));
        if (0..Self::GROUPS).any(|group| self.nonzero[group] != full(group)) {
            return false;
        }
        let (mut bytes, mut before) = (0, 0);
        for i in 0..Self::WORDS {
            // SAFETY: `i < WORDS`; the rest is the contract.
            let word = unsafe { self.at::<1>(i) };
            let counted = word | word << 1 | word << 2 | before >> 63 | before >> 62;
            bytes += (counted & Self::in_page(i)).count_ones() as usize;
            before = word;
        }
        let gap_at_end = (before << ((64 - N % 64) % 64)).leading_zeros().min(2) as usize;
        bytes - gap_at_end + 2 > N
    }

    /// The bits of word `i` that stand for bytes of the page.
    #[inline(always)]
    const fn in_page(i: usize) -> u64 {
        if i == Self::WORDS - 1 { u64::MAX >> ((64 - N % 64) % 64) } else { u64::MAX }
    }

    /// The first changed byte at or after `from`.
    ///
    /// # Safety
    ///
    /// All words have been set.
    pub(super) unsafe fn next_changed(&self, from: usize) -> Option<usize> {
        let mut position = from;
        while position < N {
            // SAFETY: `position < N`; the rest is the contract.
            let ahead = unsafe { self.at::<1>(position / 64) } >> (position % 64);
            if ahead != 0 {
                return Some(position + ahead.trailing_zeros() as usize);
            }
            position = (position / 64 + 1) * 64;
        }
        None
    }

    /// The first unchanged byte at or after `from`, or the end of the page.
    ///
    /// # Safety
    ///
    /// All words have been set.
    pub(super) unsafe fn run_end(&self, from: usize) -> usize {
        let mut position = from;
        while position < N {
            // SAFETY: `position < N`; the rest is the contract.
            let ahead = !unsafe { self.at::<1>(position / 64) } >> (position % 64);
            if ahead != 0 {
                return N.min(position + ahead.trailing_zeros() as usize);
            }
            position = (position / 64 + 1) * 64;
        }
        N
    }

    /// Finds the runs, with gaps of one and two bytes closed.
    ///
    /// # Safety
    ///
    /// All words have been set.
    #[inline(always)]
    pub(super) unsafe fn find_runs(&self, edges: &mut Edges) {
        let (mut count, mut open, mut nonzero_before) = (0, 0, 0);
        for group in 0..Self::GROUPS {
            // A run that ends with a word shows its end in the next one.
            let nonzero = self.nonzero[group];
            let mut todo = nonzero | nonzero << 1 | nonzero_before;
            nonzero_before = nonzero >> 63;
            while todo != 0 {
                let i = group * 64 + todo.trailing_zeros() as usize;
                todo &= todo - 1;
                // SAFETY: `i <= WORDS`, as no word from `WORDS` on is marked in `nonzero`; `next` is wanted only if there
                // are changes at the end of `word`, so not for `i == WORDS`, where `word` is read in its place.
                let (before, word, next) = unsafe {
                    (
                        self.at::<0>(i),
                        self.at::<1>(i),
                        self.words.get_unchecked((i + 2).min(Self::WORDS + 1)).assume_init(),
                    )
                };
                let (after_1, after_2) = (word << 1 | plain(before >> 63), word << 2 | plain(before >> 62));
                let (before_1, before_2) = (word >> 1 | plain(next << 63), word >> 2 | plain(next << 62));
                let closed = word | after_1 & (before_1 | before_2) | after_2 & before_1;
                let edge = closed ^ (closed << 1 | open);
                open = closed >> 63;
                // SAFETY: closed runs are at least three bytes apart, so a page has at most one edge for two bytes, and
                // 64 for each word.
                count = unsafe { edges.put(count, i * 64, edge) };
            }
        }
        edges.finish(count, N);
    }
}

/// Where runs begin and end, in turn, from left to right.
pub(super) struct Edges {
    /// Room for the most edges, and for those that [`Edges::put`] writes without need.
    positions: [MaybeUninit<u16>; PAGE_BYTES_MAX / 2 + 64],
    count: usize,
}

impl Edges {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { positions: [const { MaybeUninit::uninit() }; PAGE_BYTES_MAX / 2 + 64], count: 0 }
    }

    /// Puts the edges marked in `word` after the first `count`, and returns how many there are then.
    ///
    /// Four are written at a time, whether there are as many or not: a loop over the bits would be mispredicted once for
    /// almost every word.
    ///
    /// # Safety
    ///
    /// `count` and the edges in `word` are together no more than half of the largest page.
    #[inline(always)]
    unsafe fn put(&mut self, count: usize, base: usize, word: u64) -> usize {
        let (mut left, mut at) = (word, count);
        loop {
            for i in 0..4 {
                // SAFETY: at most 4 positions past the edges, for which there is room.
                unsafe {
                    *self.positions.get_unchecked_mut(at + i) =
                        MaybeUninit::new((base + left.trailing_zeros() as usize) as u16);
                }
                left &= left.wrapping_sub(1);
            }
            if left == 0 {
                return count + word.count_ones() as usize;
            }
            at += 4;
        }
    }

    /// A run that reaches the end of the page ends there.
    #[inline(always)]
    fn finish(&mut self, count: usize, page_bytes: usize) {
        self.positions[count] = MaybeUninit::new(page_bytes as u16);
        self.count = count.next_multiple_of(2);
    }

    /// Number of runs.
    #[inline(always)]
    pub(super) fn runs(&self) -> usize {
        self.count / 2
    }

    /// First byte of run `i`, and the first after it.
    ///
    /// # Safety
    ///
    /// `i < runs()`.
    #[inline(always)]
    pub(super) unsafe fn run(&self, i: usize) -> (usize, usize) {
        // SAFETY: all edges below `count` are written, by `put` and `finish`.
        unsafe {
            (
                self.positions.get_unchecked(i * 2).assume_init().into(),
                self.positions.get_unchecked(i * 2 + 1).assume_init().into(),
            )
        }
    }
}

/// The word itself, shifted where it was shifted: without this, the compiler joins two shifts into one instruction (SHLD)
/// that is several times slower than both on AMD.
#[inline(always)]
fn plain(mut word: u64) -> u64 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inlateout(reg) word, options(pure, nomem, nostack, preserves_flags)) };
    word
}
