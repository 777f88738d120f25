//! The walk over a page, for any instruction set.
//!
//! ```text
//! compare:  64 bytes at a time, one bit for each byte, one more bit for each 64; the whole page, without a branch
//!           (live: store the 64 bytes to the cached page if they differ, else to a place that nobody reads)
//! nothing:  Unchanged
//! hopeless: TooLong, from the number of bits alone
//! edges:    close gaps of one and two bytes, take the places where a bit differs from the one before it
//! records:  two edges are a run; lengths and up to 32 bytes are stored without asking how many, then stepped over
//! ```
//!
//! It is the scalar definition in another order. Closing the gaps of one and two bytes is what
//! [`join_pays`] says while the joined run stays below 128 bytes; a closed run of 128 bytes or more is taken apart
//! again and joined by the rule itself ([`Records::long_runs`]).

use std::hint::select_unpredictable;

use super::changed::{Changed, Edges};
use super::lanes::Lanes;
use crate::Ahead;
use crate::format::{join_pays, length, length_bytes};
use crate::outcome::Outcome;

/// # Safety
///
/// The CPU has the instruction set of `L`. `out` has room for `N` bytes.
#[inline(always)]
pub(super) unsafe fn encode<L: Lanes, const N: usize>(
    old: &[u8; N],
    new: &[u8; N],
    out: &mut [u8],
) -> Outcome {
    let mut changed = Changed::<N>::new();
    let (old, from) = (old.as_ptr(), new.as_ptr());
    for i in 0..N / 64 {
        // SAFETY: `i * 64 + 64 <= N`, and `i` is below the number of words.
        unsafe { changed.set(i, L::differ(L::load(old.add(i * 64)), L::load(from.add(i * 64)))) };
    }
    if !N.is_multiple_of(64) {
        let mut word = 0;
        for at in N / 64 * 64..N {
            // SAFETY: `at < N`.
            word |= u64::from(unsafe { *old.add(at) != *from.add(at) }) << (at % 64);
        }
        // SAFETY: the last word is one of the page's.
        unsafe { changed.set(N / 64, word) };
    }
    // SAFETY: all words are set; `new` is a page.
    unsafe { write::<L, N>(&changed, from, out) }
}

/// # Safety
///
/// The CPU has the instruction set of `L`. `out` has room for `N` bytes. `live` is valid for reads of `N` bytes, outside
/// `cached` and `out`, and aligned to `L::ALIGN`; it may be written meanwhile.
#[inline(always)]
pub(super) unsafe fn encode_live<L: Lanes, const N: usize>(
    cached: &mut [u8; N],
    live: *const u8,
    out: &mut [u8],
    ahead: Ahead,
) -> Outcome {
    let mut changed = Changed::<N>::new();
    let mut nobody_reads = [0_u8; 64];
    let cached = cached.as_mut_ptr();
    for i in 0..N / 64 {
        // SAFETY: `i * 64 + 64 <= N`, and `i` is below the number of words. Either place of the store has 64 bytes.
        unsafe {
            ahead.fetch(i * 64);
            let at = cached.add(i * 64);
            let now = L::load_live(live.add(i * 64));
            let differ = L::differ(L::load(at), now);
            // A branch would be mispredicted often, and a store to `at` in any case would dirty lines for nothing.
            L::store(select_unpredictable(differ != 0, at, nobody_reads.as_mut_ptr()), now);
            changed.set(i, differ);
        }
    }
    if !N.is_multiple_of(64) {
        let mut word = 0;
        for at in N / 64 * 64..N {
            // SAFETY: `at < N`.
            let (cached, now) = unsafe { (&mut *cached.add(at), live.add(at).read_volatile()) };
            word |= u64::from(*cached != now) << (at % 64);
            *cached = now;
        }
        // SAFETY: the last word is one of the page's.
        unsafe { changed.set(N / 64, word) };
    }
    // SAFETY: all words are set; `cached` is a page.
    unsafe { write::<L, N>(&changed, cached, out) }
}

/// # Safety
///
/// As for [`encode_live`].
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
/// The CPU has the instruction set of `L`. `live` is valid for reads of `len` bytes; it may be written meanwhile.
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

/// Writes the delta that brings the bytes marked in `changed` to what they are in the page at `from`.
///
/// # Safety
///
/// The CPU has the instruction set of `L`. All words of `changed` are set. `from` is valid for reads of `N` bytes, which
/// nobody writes. `out` has room for `N` bytes.
#[inline(always)]
unsafe fn write<L: Lanes, const N: usize>(changed: &Changed<N>, from: *const u8, out: &mut [u8]) -> Outcome {
    if changed.is_empty() {
        return Outcome::Unchanged;
    }
    // SAFETY: all words are set.
    if unsafe { changed.is_hopeless() } {
        return Outcome::TooLong;
    }
    let mut edges = Edges::new();
    // SAFETY: all words are set.
    unsafe { changed.find_runs(&mut edges) };
    let mut records = Records::<N> { from, room: out.len(), out: out.as_mut_ptr(), len: 0, gap_from: 0 };
    let mut i = 0;
    while i < edges.runs() {
        // SAFETY: `i` is below the number of runs; runs lie in the page.
        unsafe {
            let (start, end) = edges.run(i);
            if end - start <= 32 && start + 32 <= N && records.len + 36 <= records.room {
                records.push_short::<L>(start, end);
            } else if end - start < 128 {
                if records.push(start, end).is_none() {
                    return Outcome::TooLong;
                }
            } else {
                match records.long_runs(changed, &edges, i) {
                    Some(next) => i = next,
                    None => return Outcome::TooLong,
                }
                continue;
            }
        }
        i += 1;
    }
    if records.len <= N { Outcome::Delta(records.len) } else { Outcome::TooLong }
}

/// A delta being written to `room` bytes at `out`.
struct Records<const N: usize> {
    from: *const u8,
    out: *mut u8,
    room: usize,
    len: usize,
    gap_from: usize,
}

impl<const N: usize> Records<N> {
    /// Adds the run `start..end`, by one store for both lengths and one for the bytes.
    ///
    /// # Safety
    ///
    /// The run has at most 32 bytes, 32 bytes from `start` on are in the page, and there is room for 36 more.
    #[inline(always)]
    unsafe fn push_short<L: Lanes>(&mut self, start: usize, end: usize) {
        let gap = start - self.gap_from;
        let two = gap >= 128;
        let gap_length = if two { (gap & 0x7f) | 0x80 | (gap >> 7) << 8 } else { gap };
        let lengths = gap_length | (end - start) << if two { 16 } else { 8 };
        // SAFETY: 4 bytes, then 32 bytes at most 3 bytes further on, are in the room that the caller saw.
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
        // SAFETY: `bytes` more bytes are within `N`, for which there is room; the run is in the page, which is no part of
        // the output.
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

    /// Adds what becomes of closed run `i` when its gaps are closed by the rule instead, and of those after it that the
    /// rule joins to it. Returns the next closed run, or nothing if the delta is too long.
    ///
    /// # Safety
    ///
    /// `i` is below the number of `edges`' runs, which were found in `changed`.
    #[inline(never)]
    unsafe fn long_runs(&mut self, changed: &Changed<N>, edges: &Edges, mut i: usize) -> Option<usize> {
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
