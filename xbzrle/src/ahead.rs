//! Pages on their way to the CPU.
//!
//! Unsafe, because the prefetch instruction is declared so. It reads nothing and never faults.
#![allow(unsafe_code)]

/// The pages that will be encoded after this one, so that they can be fetched while this one is
/// compared.
///
/// Memory is the limit of an encoder that compares tens of gigabytes a second, and the CPU by
/// itself fetches ahead only within a page. The addresses are hints: any value is sound, and a
/// wrong one costs time only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The next cached page.
    pub cached: *const u8,
    /// The next live page.
    pub live: *const u8,
}

impl Ahead {
    /// Fetches 256 bytes from `at` on of both pages. The encoder calls it as it goes through the
    /// page before: all of a page at once, at its end, would wait for memory in one place and leave
    /// memory idle in the others.
    ///
    /// The live page is not wanted again soon, so it is kept out of the larger caches.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn fetch(self, at: usize) {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        for offset in (at..at + 256).step_by(64) {
            // SAFETY: a prefetch takes any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.cached.wrapping_add(offset).cast());
                _mm_prefetch::<_MM_HINT_NTA>(self.live.wrapping_add(offset).cast());
            }
        }
    }
}
