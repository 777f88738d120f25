//! Pages on their way to the CPU.
//!
//! Unsafe, because the prefetch instruction is declared so. It reads nothing and never faults.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn fetch(self, at: usize) {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        let past_caches = Fetch::in_force() == Fetch::PastCaches;
        for offset in (at..at + 256).step_by(64) {
            let live = self.live.wrapping_add(offset).cast();
            // SAFETY: a prefetch takes any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.cached.wrapping_add(offset).cast());
                if past_caches {
                    _mm_prefetch::<_MM_HINT_NTA>(live);
                } else {
                    _mm_prefetch::<_MM_HINT_T0>(live);
                }
            }
        }
    }
}

/// How the next live page is fetched. It is not wanted again soon, so it need not go into the larger
/// caches; whether leaving them out helps differs from one make of CPU to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// Into all caches, like the cached page.
    IntoCaches,
    /// Past the larger caches (`prefetchnta`). AMD's Zen 5 gains by it. Intel's Sapphire Rapids has
    /// one way of its first-level cache for such lines, which is less than the page in hand and the
    /// next one: they are dropped before they are read, and unchanged pages take twice the time.
    PastCaches,
}

static PAST_CACHES: AtomicBool = AtomicBool::new(false);

impl Fetch {
    /// What [`Ahead`] does now; until the choice is made it is [`Fetch::IntoCaches`].
    #[inline(always)]
    pub(crate) fn in_force() -> Fetch {
        if PAST_CACHES.load(Relaxed) { Fetch::PastCaches } else { Fetch::IntoCaches }
    }

    /// A hint like all of this: whoever encodes meanwhile is slower or faster for it, nothing else.
    pub(crate) fn enforce(self) {
        PAST_CACHES.store(self == Fetch::PastCaches, Relaxed);
    }
}
