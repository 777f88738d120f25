//! The walk over a page, for any instruction set.
//!
//! ```text
//! compare:  256 bytes at a time up to the first change; from there on 64 bytes at a time to the end of the page, one bit
//!           for each byte, one more bit for each 64, without a branch (live: store the 64 bytes to the cached page if they
//!           differ, else to a place that nobody reads)
//! nothing:  Unchanged
//! hopeless: TooLong, from the number of bits alone
//! edges:    close gaps of one and two bytes, take the places where a bit differs from the one before it
//! records:  two edges are a run; lengths and up to 32 bytes are stored without asking how many, then stepped over
//! ```
//!
//! It is the scalar definition in another order. Closing the gaps of one and two bytes is what
//! [`join_pays`] says while the joined run stays below 128 bytes; a closed run of 128 bytes or more
//! is taken apart again and joined by the rule itself ([`Records::long_runs`]).

use std::hint::black_box;

use super::changed::{Changed, Edges, GROUP_BYTES};
use super::lanes::Lanes;
use crate::Ahead;
use crate::format::{join_pays, length, length_bytes};
use crate::outcome::Outcome;

/// A page that is compared: two pages that stay as they are, or a cached page and a live one.
///
/// With `LIVE`, the page at `new` may be written meanwhile, is read once, and is stored to the page
/// at `old` where it differs; without, both stay as they are.
pub(super) struct Pages<const LIVE: bool, const N: usize> {
    pub(super) old: *mut u8,
    pub(super) new: *const u8,
    pub(super) ahead: Option<Ahead>,
}

/// The rest of a page from its first change on: 256 bytes at `at`, which were read as `new`.
pub(super) struct Rest<L: Lanes> {
    at: usize,
    new: [L::Block; 4],
}

/// Compares from the start of the page to the first change, from where `rest` goes on: it is a
/// function of its own, which calls [`encode_rest`], so that an unchanged page does not pay for
/// what only changes need.
///
/// # Safety
///
/// * The CPU has the instruction set of `L`.
/// * Both pages are valid for reads of `N` bytes; with `LIVE`, the old one for writes, and the new
///   one, which may be written meanwhile, is aligned to `L::ALIGN`.
/// * `out` has room for `N` bytes, and is no part of the pages.
/// * `rest` may be called with the same.
#[inline(always)]
pub(super) unsafe fn encode<L: Lanes, const LIVE: bool, const N: usize>(
    pages: Pages<LIVE, N>,
    out: &mut [u8],
    rest: unsafe fn(Pages<LIVE, N>, &mut [u8], Option<Rest<L>>) -> Outcome,
) -> Outcome {
    // SAFETY: `at + 256 <= N`; the rest is the contract.
    unsafe {
        for at in (0..N / 256 * 256).step_by(256) {
            let new = pages.load::<L>(at);
            if !L::all_equal(&new, pages.old.add(at)) {
                return rest(pages, out, Some(Rest { at, new }));
            }
        }
        if N.is_multiple_of(256) { Outcome::Unchanged } else { rest(pages, out, None) }
    }
}

/// Compares the rest of a page, and writes the delta.
///
/// # Safety
///
/// As for [`encode`].
#[inline(always)]
pub(super) unsafe fn encode_rest<L: Lanes, const LIVE: bool, const N: usize>(
    pages: Pages<LIVE, N>,
    out: &mut [u8],
    rest: Option<Rest<L>>,
) -> Outcome {
    let mut changed = Changed::<N>::nothing();
    let mut nobody_reads = [0_u8; 64];
    // Were it known that nobody does, the compiler would leave stores to it out, by a branch.
    let nobody_reads = black_box(nobody_reads.as_mut_ptr());
    // SAFETY: blocks and bytes are below `N`; the rest is the contract.
    unsafe {
        let fours_end = N / 256 * 256;
        let mut at = fours_end;
        if let Some(Rest { at: first, mut new }) = rest {
            at = first;
            while at < fours_end {
                // Kept in a register: in memory, each addition would wait for the one before it.
                let (group, mut nonzero) = (at / GROUP_BYTES, 0);
                while at < fours_end && at / GROUP_BYTES == group {
                    for (i, new) in new.into_iter().enumerate() {
                        let offset = at + i * 64;
                        let word = pages.compare::<L>(offset, new, nobody_reads);
                        changed.set(offset / 64, word);
                        nonzero |= u64::from(word != 0) << (offset / 64 % 64);
                    }
                    at += 256;
                    if at < fours_end {
                        new = pages.load::<L>(at);
                    }
                }
                changed.note_nonzero(group, nonzero);
            }
        }
        while at + 64 <= N {
            let word = pages.compare::<L>(at, pages.load_block::<L>(at), nobody_reads);
            changed.set(at / 64, word);
            changed.note_nonzero(at / GROUP_BYTES, u64::from(word != 0) << (at / 64 % 64));
            at += 64;
        }
        if at < N {
            let word = pages.compare_bytes(at);
            changed.set(at / 64, word);
            changed.note_nonzero(at / GROUP_BYTES, u64::from(word != 0) << (at / 64 % 64));
        }
        write::<L, N>(&changed, if LIVE { pages.old } else { pages.new }, out)
    }
}

impl<const LIVE: bool, const N: usize> Pages<LIVE, N> {
    /// # Safety
    ///
    /// As for [`encode`], and `at + 64 <= N`.
    #[inline(always)]
    unsafe fn load_block<L: Lanes>(&self, at: usize) -> L::Block {
        // SAFETY: the contract.
        unsafe { if LIVE { L::load_live(self.new.add(at)) } else { L::load(self.new.add(at)) } }
    }

    /// Loads 256 bytes, and fetches as many of the pages that come next.
    ///
    /// # Safety
    ///
    /// As for [`encode`], and `at + 256 <= N`.
    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, at: usize) -> [L::Block; 4] {
        if let Some(ahead) = self.ahead {
            ahead.fetch(at);
        }
        // SAFETY: the contract.
        unsafe {
            [
                self.load_block::<L>(at),
                self.load_block::<L>(at + 64),
                self.load_block::<L>(at + 128),
                self.load_block::<L>(at + 192),
            ]
        }
    }

    /// Says where the block `new` differs from the old page, and with `LIVE` stores it there if it
    /// does.
    ///
    /// # Safety
    ///
    /// As for [`encode`], and `at + 64 <= N`; 64 bytes at `nobody_reads` may be written.
    #[inline(always)]
    unsafe fn compare<L: Lanes>(&self, at: usize, new: L::Block, nobody_reads: *mut u8) -> u64 {
        // SAFETY: the contract.
        unsafe {
            let old = self.old.add(at);
            let differ = L::differ(L::load(old), new);
            if LIVE {
                L::store_changed(old, new, differ, nobody_reads);
            }
            differ
        }
    }

    /// Says where the bytes from `at` on, fewer than 64, differ, and with `LIVE` stores them.
    ///
    /// # Safety
    ///
    /// As for [`encode`].
    #[inline(always)]
    unsafe fn compare_bytes(&self, at: usize) -> u64 {
        let mut word = 0;
        for i in at..N {
            // SAFETY: `i < N`; the rest is the contract.
            unsafe {
                let new = self.new.add(i).read_volatile();
                word |= u64::from(*self.old.add(i) != new) << (i - at);
                if LIVE {
                    *self.old.add(i) = new;
                }
            }
        }
        word
    }
}

/// # Safety
///
/// The CPU has the instruction set of `L`. `live` is valid for reads of `N` bytes, and aligned to
/// `L::ALIGN`; it may be written meanwhile.
#[inline(always)]
pub(super) unsafe fn copy_live<L: Lanes, const N: usize>(to: &mut [u8; N], live: *const u8) {
    let to = to.as_mut_ptr();
    for at in (0..N / 64 * 64).step_by(64) {
        // SAFETY: `at + 64 <= N`.
        unsafe { L::store(to.add(at), L::load_live(live.add(at))) };
    }
    for at in N / 64 * 64..N {
        // SAFETY: `at < N`.
        unsafe { to.add(at).write(live.add(at).read_volatile()) };
    }
}

/// # Safety
///
/// The CPU has the instruction set of `L`. `live` is valid for reads of `len` bytes; it may be
/// written meanwhile.
#[inline(always)]
pub(super) unsafe fn is_zero<L: Lanes>(live: *const u8, len: usize) -> bool {
    let head = live.align_offset(L::ALIGN).min(len);
    let blocks = (len - head) / 64;
    let tail = head + blocks * 64;
    // SAFETY: all offsets are below `len`; blocks begin at an aligned one.
    unsafe {
        (0..head).all(|at| live.add(at).read_volatile() == 0)
            && (0..blocks).all(|i| L::is_zero(L::load_live(live.add(head + i * 64))))
            && (tail..len).all(|at| live.add(at).read_volatile() == 0)
    }
}

/// Writes the delta that brings the bytes marked in `changed` to what they are in the page at
/// `from`.
///
/// # Safety
///
/// The CPU has the instruction set of `L`. All words of `changed` are set. `from` is valid for
/// reads of `N` bytes, which nobody writes. `out` has room for `N` bytes.
#[inline(always)]
unsafe fn write<L: Lanes, const N: usize>(
    changed: &Changed<N>,
    from: *const u8,
    out: &mut [u8],
) -> Outcome {
    if changed.is_empty() {
        return Outcome::Unchanged;
    }
    // SAFETY: all words are set.
    if unsafe { changed.is_hopeless() } {
        return Outcome::TooLong;
    }
    let mut edges = Edges::<N>::new();
    // SAFETY: all words are set.
    unsafe { L::find_runs(changed, &mut edges) };
    let mut records =
        Records::<N> { from, room: out.len(), out: out.as_mut_ptr(), len: 0, gap_from: 0 };
    let mut i = 0;
    while i < edges.runs() {
        // SAFETY: `i` is below the number of runs; runs lie in the page.
        unsafe {
            i = L::push_short_runs(&mut records, &edges, i);
            if i == edges.runs() {
                break;
            }
            let (start, end) = edges.run(i);
            let next = if end - start < 128 {
                records.push(start, end).map(|()| i + 1)
            } else {
                records.long_runs(changed, &edges, i)
            };
            let Some(next) = next else { return Outcome::TooLong };
            i = next;
        }
    }
    if records.len <= N { Outcome::Delta(records.len) } else { Outcome::TooLong }
}

/// A delta being written to `room` bytes at `out`.
pub(super) struct Records<const N: usize> {
    /// The page.
    pub(super) from: *const u8,
    pub(super) out: *mut u8,
    pub(super) room: usize,
    pub(super) len: usize,
    /// Where the last run ended.
    pub(super) gap_from: usize,
}

impl<const N: usize> Records<N> {
    /// Adds run `i` and those after it, up to one that is long, or near the end of the page or of
    /// the room. Returns the first that was not added.
    ///
    /// # Safety
    ///
    /// The runs lie in the page.
    #[inline(always)]
    pub(super) unsafe fn push_short_runs<L: Lanes>(
        &mut self,
        edges: &Edges<N>,
        mut i: usize,
    ) -> usize {
        while i < edges.runs() {
            // SAFETY: `i` is below the number of runs; what else is asked for was looked at.
            unsafe {
                let (start, end) = edges.run(i);
                if end - start > 32 || start + 32 > N || self.len + 36 > self.room {
                    break;
                }
                self.push_short::<L>(start, end);
            }
            i += 1;
        }
        i
    }

    /// Adds the run `start..end`, by one store for both lengths and one for the bytes.
    ///
    /// # Safety
    ///
    /// The run has at most 32 bytes, 32 bytes from `start` on are in the page, and there is room
    /// for 36 more.
    #[inline(always)]
    unsafe fn push_short<L: Lanes>(&mut self, start: usize, end: usize) {
        let gap = start - self.gap_from;
        let two = gap >= 128;
        let gap_length = if two { (gap & 0x7f) | 0x80 | (gap >> 7) << 8 } else { gap };
        let lengths = gap_length | (end - start) << if two { 16 } else { 8 };
        // SAFETY: 4 bytes, then 32 bytes at most 3 bytes further on, are in the room that the
        // caller saw.
        unsafe {
            let to = self.out.add(self.len);
            to.cast::<u32>().write_unaligned(lengths as u32);
            L::copy_half(to.add(2 + usize::from(two)), self.from.add(start));
        }
        self.len += 2 + usize::from(two) + (end - start);
        self.gap_from = end;
    }

    /// Adds the run `start..end`, if the delta stays no longer than the page.
    ///
    /// # Safety
    ///
    /// The run is in the page.
    #[inline(never)]
    unsafe fn push(&mut self, start: usize, end: usize) -> Option<()> {
        let (gap, run) = (start - self.gap_from, end - start);
        let bytes = length_bytes(gap) + length_bytes(run) + run;
        if self.len + bytes > N {
            return None;
        }
        // SAFETY: `bytes` more bytes are within `N`, for which there is room; the run is in the
        // page, which is no part of the output.
        unsafe {
            let mut to = self.out.add(self.len);
            for run_bytes in [gap, run] {
                to.copy_from_nonoverlapping(length(run_bytes).as_ptr(), length_bytes(run_bytes));
                to = to.add(length_bytes(run_bytes));
            }
            to.copy_from_nonoverlapping(self.from.add(start), run);
        }
        self.len += bytes;
        self.gap_from = end;
        Some(())
    }

    /// Adds what becomes of closed run `i` when its gaps are closed by the rule instead, and of
    /// those after it that the rule joins to it. Returns the next closed run, or nothing if the
    /// delta is too long.
    ///
    /// # Safety
    ///
    /// `i` is below the number of `edges`' runs, which were found in `changed`.
    #[inline(never)]
    unsafe fn long_runs(
        &mut self,
        changed: &Changed<N>,
        edges: &Edges<N>,
        mut i: usize,
    ) -> Option<usize> {
        // SAFETY: the contract; all positions come from `changed`, so they lie in the page.
        unsafe {
            let (mut start, mut closed_end) = edges.run(i);
            loop {
                let mut end = changed.run_end(start);
                let next = loop {
                    let Some(next) = changed.next_changed(end) else { break None };
                    let next_end = changed.run_end(next);
                    if !join_pays(end - start, next - end, next_end - next) {
                        break Some(next);
                    }
                    end = next_end;
                };
                self.push(start, end)?;
                let Some(next) = next else { return Some(edges.runs()) };
                while closed_end <= end {
                    i += 1;
                    closed_end = edges.run(i).1;
                }
                if next == edges.run(i).0 {
                    return Some(i);
                }
                start = next;
            }
        }
    }
}
