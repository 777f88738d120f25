//! Live memory at an address that no vector type is aligned to.

use std::arch::asm;
use std::arch::x86_64::{__m128i, _mm_storeu_si128};

/// Copies the live page into `to`, reading each byte once, 16 at a time.
///
/// The loads are instructions written out: a volatile read asks for the alignment of its type, and
/// what may be written meanwhile must be read by nothing weaker. SSE2 serves all paths, as a page
/// that is copied from such an address is compared or sent from the copy.
///
/// # Safety
///
/// `live` is valid for reads of `N` bytes, outside `to`; it may be written meanwhile.
pub(crate) unsafe fn copy_live<const N: usize>(to: &mut [u8; N], live: *const u8) {
    let to = to.as_mut_ptr();
    for at in (0..N / 16 * 16).step_by(16) {
        // SAFETY: `at + 16 <= N`.
        unsafe { _mm_storeu_si128(to.add(at).cast(), load(live.add(at))) };
    }
    for at in N / 16 * 16..N {
        // SAFETY: `at < N`; a byte needs no alignment.
        unsafe { to.add(at).write(live.add(at).read_volatile()) };
    }
}

/// # Safety
///
/// `live` is valid for reads of 16 bytes; they may be written meanwhile.
#[inline(always)]
unsafe fn load(live: *const u8) -> __m128i {
    let vector: __m128i;
    // SAFETY: reads 16 bytes, which the caller vouches for; every x86-64 has the instruction.
    unsafe {
        asm!(
            "movups {vector}, [{live}]",
            vector = out(xmm_reg) vector,
            live = in(reg) live,
            options(readonly, nostack, preserves_flags)
        );
    }
    vector
}
