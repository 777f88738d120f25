//! Memory that somebody else writes while it is read, one machine word at a time.
//!
//! Unsafe, because guest memory is reached through a pointer: the guest writes it at any moment, so
//! no reference to it may exist, and each byte is read once, by a volatile load. A byte that
//! changes meanwhile comes out as it was or as it is.
#![allow(unsafe_code)]

use crate::mask::Mask;

/// Compares the live page with `cached`, brings `cached` up to date where they differ, and says
/// where that was.
///
/// # Safety
///
/// `live` is valid for reads of `N` bytes, outside `cached`; it may be written meanwhile.
pub(crate) unsafe fn update<const N: usize>(cached: &mut [u8; N], live: *const u8) -> Mask<N> {
    let mut changed = Mask::unchanged();
    let (words, tail) = cached.as_chunks_mut::<8>();
    for (i, word) in words.iter_mut().enumerate() {
        // SAFETY: bytes `i * 8..i * 8 + 8` are within the `N` bytes that the caller vouches for.
        let now = unsafe { load(live.add(i * 8)) };
        let differ = u64::from_le_bytes(*word) ^ u64::from_le_bytes(now);
        if differ != 0 {
            *word = now;
            changed.mark_nonzero(i * 8, differ);
        }
    }
    for (i, byte) in tail.iter_mut().enumerate() {
        let position = N / 8 * 8 + i;
        // SAFETY: `position` is below `N`.
        let now = unsafe { live.add(position).read_volatile() };
        changed.mark_nonzero(position, u64::from(*byte ^ now));
        *byte = now;
    }
    changed
}

/// Copies the live page into `to`, reading each byte once.
///
/// # Safety
///
/// As for [`update`].
pub(crate) unsafe fn copy<const N: usize>(to: &mut [u8; N], live: *const u8) {
    let (words, tail) = to.as_chunks_mut::<8>();
    for (i, word) in words.iter_mut().enumerate() {
        // SAFETY: bytes `i * 8..i * 8 + 8` are within the `N` bytes that the caller vouches for.
        *word = unsafe { load(live.add(i * 8)) };
    }
    for (i, byte) in tail.iter_mut().enumerate() {
        // SAFETY: `N / 8 * 8 + i` is below `N`.
        *byte = unsafe { live.add(N / 8 * 8 + i).read_volatile() };
    }
}

/// Whether the `len` bytes at `live` are all zero, each as it was when it was read.
///
/// # Safety
///
/// `live` is valid for reads of `len` bytes; it may be written meanwhile.
pub(crate) unsafe fn is_zero(live: *const u8, len: usize) -> bool {
    let words = len / 8;
    // SAFETY: all offsets are below `len`, for which the caller vouches.
    (0..words).all(|i| unsafe { load(live.add(i * 8)) } == [0; 8])
        && (words * 8..len).all(|i| unsafe { live.add(i).read_volatile() } == 0)
}

/// The eight bytes at `live`, by one load if they are aligned.
///
/// # Safety
///
/// `live` is valid for reads of 8 bytes; it may be written meanwhile.
unsafe fn load(live: *const u8) -> [u8; 8] {
    let word = live.cast::<u64>();
    if word.is_aligned() {
        // SAFETY: valid by the contract, aligned by the test.
        unsafe { word.read_volatile() }.to_ne_bytes()
    } else {
        // SAFETY: valid by the contract; bytes need no alignment.
        std::array::from_fn(|i| unsafe { live.add(i).read_volatile() })
    }
}
