//! The decoder for records with short runs: the length of a gap is no branch, and a run is copied
//! by one or two stores. What is out of the ordinary goes to the plain decoder, which also finds
//! the errors.

use std::arch::x86_64::__m128i;
use std::hint::select_unpredictable;

use crate::decode::{At, record};
use crate::outcome::DecodeError;

/// The longest run that is copied here; a longer one is worth a call of `memcpy`.
const SHORT: usize = 32;

/// One decoder for all instruction sets, for SSE2 as every x86-64 CPU has it. Compiled for AVX2 and
/// its companions it gained nothing on long deltas, and could not be inlined any more: a delta of
/// four bytes took a third longer.
///
/// # Safety
///
/// As for [`decode_at`](crate::decode::decode_at).
#[inline(always)]
pub(crate) unsafe fn decode_at<const N: usize>(
    delta: &[u8],
    page: *mut u8,
) -> Result<(), DecodeError> {
    if delta.len() > N {
        return Err(DecodeError::TooLong { delta_bytes: delta.len(), page_bytes: N });
    }
    let mut at = At { offset: 0, position: 0 };
    loop {
        // SAFETY: the caller's promise; a position is moved only to where a run ended that is in
        // the page.
        unsafe {
            at = short_runs::<N>(delta, page, at);
            if at.offset >= delta.len() {
                return Ok(());
            }
            at = record::<N>(delta, page, at)?;
        }
    }
}

/// Applies records from `at` on until one is not ordinary: a run that is empty or long, or past the
/// end of the page or the delta; a length that is wrong.
///
/// # Safety
///
/// As for [`decode_at`], and `at.position <= N`.
#[inline(always)]
unsafe fn short_runs<const N: usize>(delta: &[u8], page: *mut u8, mut at: At) -> At {
    while at.offset + 3 <= delta.len() {
        // Three loads of a byte, not one of a word: the next record waits for `next` alone, and
        // shifts would lengthen that wait. For the same reason both possible places of the run's
        // length are looked at in advance.
        // SAFETY: 3 bytes at `offset` are in the delta.
        let byte = |i| usize::from(unsafe { *delta.get_unchecked(at.offset + i) });
        let (first, second, third) = (byte(0), byte(1), byte(2));
        let two = first >= 0x80;
        let next = select_unpredictable(two, at.offset + 3 + third, at.offset + 2 + second);
        let run = select_unpredictable(two, third, second);
        let gap = first & 0x7f | select_unpredictable(two, second << 7, 0);
        let start = at.position + gap;
        let wrong = two && second >= 0x80 || gap == 0 && at.offset != 0;
        if wrong || run.wrapping_sub(1) >= SHORT || start + run > N || next > delta.len() {
            break;
        }
        // SAFETY: the run is in the page, and its bytes are in the delta, as was just seen.
        unsafe { copy_short(page.add(start), delta.as_ptr().add(next - run), run) };
        at = At { offset: next, position: start + run };
    }
    at
}

/// Copies `bytes` bytes by one or two stores, which overlap.
///
/// Reading the page, to write 16 bytes of it whatever the run, has no branch to mispredict but
/// lost: where the page is in memory, the CPU waits for what it reads and not for what it writes
/// (0.5 of a plain copy on 8-byte runs).
///
/// # Safety
///
/// `1 <= bytes <= 32`; so many are readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn copy_short(to: *mut u8, from: *const u8, bytes: usize) {
    /// Copies the first and the last `size_of::<T>()` bytes.
    #[inline(always)]
    unsafe fn both_ends<T>(to: *mut u8, from: *const u8, bytes: usize) {
        let last = bytes - size_of::<T>();
        // SAFETY: `bytes` is at least the size of `T`.
        unsafe {
            let (head, tail) =
                (from.cast::<T>().read_unaligned(), from.add(last).cast::<T>().read_unaligned());
            to.cast::<T>().write_unaligned(head);
            to.add(last).cast::<T>().write_unaligned(tail);
        }
    }
    // SAFETY: the contract.
    unsafe {
        match bytes {
            1 => *to = *from,
            2..4 => both_ends::<u16>(to, from, bytes),
            4..8 => both_ends::<u32>(to, from, bytes),
            8..16 => both_ends::<u64>(to, from, bytes),
            _ => both_ends::<__m128i>(to, from, bytes),
        }
    }
}
