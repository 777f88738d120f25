//! Which bytes of a page changed, and where runs of them begin and end.

use std::arch::asm;
use std::arch::x86_64::{__m512i, _mm512_maskz_loadu_epi32};
use std::mem::MaybeUninit;

use crate::format::PAGE_BYTES_MAX;

/// Whole vectors of eight words.
pub(super) const WORDS_MAX: usize = PAGE_BYTES_MAX.div_ceil(64).next_multiple_of(8);
const GROUPS_MAX: usize = WORDS_MAX.div_ceil(64);

/// Bytes of a page that 64 words stand for.
pub(super) const GROUP_BYTES: usize = 64 * 64;

/// One bit for each byte of a page of `N` bytes, byte `i` in bit `i % 64` of word `i / 64`; one
/// means changed. And one bit for each word, so that a page with few changes is walked in few
/// steps.
pub(super) struct Changed<const N: usize> {
    /// Word `i` at `i + 1`, between two words of zeros.
    words: [MaybeUninit<u64>; WORDS_MAX + 2],
    nonzero: [u64; GROUPS_MAX],
}

impl<const N: usize> Changed<N> {
    pub(super) const WORDS: usize = N.div_ceil(64);
    const GROUPS: usize = Self::WORDS.div_ceil(64);

    #[inline(always)]
    pub(super) fn nothing() -> Self {
        let mut words = [const { MaybeUninit::uninit() }; WORDS_MAX + 2];
        words[..Self::WORDS.next_multiple_of(8) + 2].fill(MaybeUninit::new(0));
        Self { words, nonzero: [0; GROUPS_MAX] }
    }

    /// Sets word `i`, once. If it is not zero, that must be noted too.
    ///
    /// # Safety
    ///
    /// `i < WORDS`.
    #[inline(always)]
    pub(super) unsafe fn set(&mut self, i: usize, word: u64) {
        // SAFETY: `words` is longer than `WORDS`, for pages up to the size that `check_page_size`
        // lets through.
        unsafe {
            *self.words.get_unchecked_mut(i + 1) = MaybeUninit::new(word);
        }
    }

    /// Adds to what is known of the 64 words of a group: bit `i % 64` says that word `i` is not
    /// zero.
    ///
    /// # Safety
    ///
    /// `group < GROUPS`.
    #[inline(always)]
    pub(super) unsafe fn note_nonzero(&mut self, group: usize, words: u64) {
        // SAFETY: `nonzero` is as long as `GROUPS` at least.
        unsafe { *self.nonzero.get_unchecked_mut(group) |= words };
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

    /// The words from the one before word `first` on: words `first - 1` to `first + 8` are there.
    ///
    /// # Safety
    ///
    /// `first < WORDS` is a multiple of eight.
    #[inline(always)]
    pub(super) unsafe fn vector(&self, first: usize) -> *const u8 {
        // SAFETY: in bounds, by the contract.
        unsafe { self.words.as_ptr().add(first).cast() }
    }

    /// Whether the page is so full of changes that no choice of runs makes a delta shorter than the
    /// page.
    ///
    /// A gap costs its bytes if its runs are joined, and two lengths if not. So a delta has at
    /// least as many bytes as there are changed ones, and first and second ones of gaps between
    /// them, and two for the first lengths.
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
    pub(super) unsafe fn find_runs(&self, edges: &mut Edges<N>) {
        let (mut count, mut open, mut nonzero_before) = (0, 0, 0);
        for group in 0..Self::GROUPS {
            // A run that ends with a word shows its end in the next one.
            let nonzero = self.nonzero[group];
            let mut todo = nonzero | nonzero << 1 | nonzero_before;
            nonzero_before = nonzero >> 63;
            while todo != 0 {
                let i = group * 64 + todo.trailing_zeros() as usize;
                todo &= todo - 1;
                // SAFETY: `i <= WORDS`, as no word from `WORDS` on is marked in `nonzero`; `next`
                // is wanted only if there are changes at the end of `word`, so not for `i ==
                // WORDS`, where `word` is read in its place.
                let (before, word, next) = unsafe {
                    (
                        self.at::<0>(i),
                        self.at::<1>(i),
                        self.words.get_unchecked((i + 2).min(Self::WORDS + 1)).assume_init(),
                    )
                };
                let (after_1, after_2) =
                    (word << 1 | plain(before >> 63), word << 2 | plain(before >> 62));
                let (before_1, before_2) =
                    (word >> 1 | plain(next << 63), word >> 2 | plain(next << 62));
                let closed = word | after_1 & (before_1 | before_2) | after_2 & before_1;
                let edge = closed ^ (closed << 1 | open);
                open = closed >> 63;
                // SAFETY: closed runs are at least three bytes apart, so a page has at most one
                // edge for two bytes, and 64 for each word.
                count = unsafe { edges.put(count, i * 64, edge) };
            }
        }
        edges.finish(count);
    }
}

/// Where runs begin and end, in turn, from left to right.
#[repr(C, align(64))]
pub(super) struct Edges<const N: usize> {
    /// Room for the most edges, one for every two bytes of the page: two bytes each, so as many
    /// bytes as the page has.
    positions: [MaybeUninit<u8>; N],
    /// Room for those that are written without need. It begins where the room above ends, as `N` is
    /// even.
    more: [MaybeUninit<u16>; 64],
    count: usize,
}

impl<const N: usize> Edges<N> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            positions: [const { MaybeUninit::uninit() }; N],
            more: [const { MaybeUninit::uninit() }; 64],
            count: 0,
        }
    }

    /// The position of edge `i`.
    ///
    /// # Safety
    ///
    /// `i < N / 2 + 64`.
    #[inline(always)]
    unsafe fn at(&self, i: usize) -> *const u16 {
        // SAFETY: in this value, from the start of which on there is the room that is asked for.
        unsafe { (&raw const *self).cast::<u16>().add(i) }
    }

    /// Where the position of edge `i` is written.
    ///
    /// # Safety
    ///
    /// `i < N / 2 + 64`.
    #[inline(always)]
    unsafe fn at_mut(&mut self, i: usize) -> *mut u16 {
        // SAFETY: as in `at`.
        unsafe { (&raw mut *self).cast::<u16>().add(i) }
    }

    /// Puts the edges marked in `word` after the first `count`, and returns how many there are
    /// then.
    ///
    /// Four are written at a time, whether there are as many or not: a loop over the bits would be
    /// mispredicted once for almost every word.
    ///
    /// # Safety
    ///
    /// `count` and the edges in `word` are together no more than half of the page's bytes, and one.
    #[inline(always)]
    unsafe fn put(&mut self, count: usize, base: usize, word: u64) -> usize {
        let (mut left, mut at) = (word, count);
        loop {
            for i in 0..4 {
                // SAFETY: at most 4 positions past the edges, for which there is room.
                unsafe { *self.at_mut(at + i) = (base + left.trailing_zeros() as usize) as u16 };
                left &= left.wrapping_sub(1);
            }
            if left == 0 {
                return count + word.count_ones() as usize;
            }
            at += 4;
        }
    }

    /// Where the edge after the first `count` goes: room for 32 positions, as many as a word can
    /// have.
    ///
    /// Closed runs are three bytes apart, so of four bytes in a row at most two are edges.
    ///
    /// # Safety
    ///
    /// `count` is no more than half of the page's bytes, and one.
    #[inline(always)]
    pub(super) unsafe fn room(&mut self, count: usize) -> *mut u16 {
        // SAFETY: there is room for 64 positions more.
        unsafe { self.at_mut(count) }
    }

    /// A run that reaches the end of the page ends there.
    #[inline(always)]
    pub(super) fn finish(&mut self, count: usize) {
        assert!(count < N / 2 + 64);
        // SAFETY: just seen.
        unsafe { *self.at_mut(count) = N as u16 };
        self.count = count.next_multiple_of(2);
    }

    /// Number of runs.
    #[inline(always)]
    pub(super) fn runs(&self) -> usize {
        self.count / 2
    }

    /// Up to 16 runs from run `i` on, each as its first byte in the low half of a lane and the
    /// first after it in the high half; and how many there are.
    ///
    /// # Safety
    ///
    /// `i < runs()`; the CPU has AVX-512.
    #[inline(always)]
    pub(super) unsafe fn sixteen_runs(&self, i: usize) -> (__m512i, usize) {
        let count = (self.runs() - i).min(16);
        // SAFETY: all edges of these runs are written, by `put` and `finish`; no others are read.
        unsafe {
            let there = (1_u32 << count) - 1;
            let runs = _mm512_maskz_loadu_epi32(there as u16, self.at(i * 2).cast());
            (runs, count)
        }
    }

    /// First byte of run `i`, and the first after it.
    ///
    /// # Safety
    ///
    /// `i < runs()`.
    #[inline(always)]
    pub(super) unsafe fn run(&self, i: usize) -> (usize, usize) {
        // SAFETY: all edges below `count` are written, by `put` and `finish`.
        unsafe { ((*self.at(i * 2)).into(), (*self.at(i * 2 + 1)).into()) }
    }
}

/// The word itself, shifted where it was shifted: without this, the compiler joins two shifts into
/// one instruction (SHLD) that is several times slower than both on AMD.
#[inline(always)]
fn plain(mut word: u64) -> u64 {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {0} */", inlateout(reg) word, options(pure, nomem, nostack, preserves_flags))
    };
    word
}
