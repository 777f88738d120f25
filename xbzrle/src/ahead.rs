//! Pages on their way to the CPU.
//!
//! Unsafe, because the prefetch instruction is declared so. It reads nothing and never faults.
#![allow(unsafe_code)]

/// The pages that will be encoded after this one, so that they can be fetched while this one is compared.
///
/// Memory is the limit of an encoder that compares tens of gigabytes a second, and the CPU by itself fetches ahead only
/// within a page. The addresses are hints: any value is sound, and a wrong one costs time only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The next cached page.
    pub cached: *const u8,
    /// The next live page.
    pub live: *const u8,
}

impl Ahead {
    /// Fetches the start of both pages.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn fetch<const N: usize>(self) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for offset in (0..N.min(256)).step_by(64) {
            // SAFETY: a prefetch takes any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.cached.wrapping_add(offset).cast());
                _mm_prefetch::<_MM_HINT_T0>(self.live.wrapping_add(offset).cast());
            }
        }
    }
}
