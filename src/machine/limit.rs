//! What one vCPU may dirty, and what it owes: it stands still until what it dirtied has taken as
//! long as its limit allows. [`limits`](super::limits) says who pays, and when.

use crate::memory::PAGE_BYTES;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A vCPU runs for at least one part in so many, however low its limit.
const PARTS: u32 = 100;
pub(super) const MIB: u64 = 1 << 20;

/// What one vCPU may dirty.
#[derive(Default)]
pub(crate) struct Limit {
    /// MiB per second; 0 is without end.
    pub(super) mib: AtomicU64,
    /// MiB per second that it was seen to dirty in the latest period.
    pub(super) rate: AtomicU64,
    /// How long it stood still last, in µs.
    pub(super) nap_us: AtomicU64,
    pace: Mutex<Option<Pace>>,
}

/// What one vCPU has dirtied since it last paid.
#[derive(Clone, Copy)]
struct Pace {
    since: Instant,
    dirtied: u64,
}

impl Pace {
    /// How long it must stand still at `now`, having dirtied so many pages in all.
    fn debt(&self, now: Instant, dirtied: u64, mib: u64) -> Duration {
        let bytes = (dirtied - self.dirtied.min(dirtied)) * PAGE_BYTES;
        let due = Duration::from_secs_f64(bytes as f64 / mib as f64 / MIB as f64);
        let ran = now.saturating_duration_since(self.since);
        due.saturating_sub(ran).min(ran * (PARTS - 1))
    }
}

impl Limit {
    pub(super) fn mib(&self) -> u64 {
        self.mib.load(Ordering::Relaxed)
    }

    fn pace(&self) -> MutexGuard<'_, Option<Pace>> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it owes; begins anew if that is nothing.
    pub(super) fn owes(&self, dirtied: u64) -> Duration {
        let (now, mib, mut pace) = (Instant::now(), self.mib(), self.pace());
        let debt = match (mib, &*pace) {
            (0, _) | (_, None) => Duration::ZERO,
            (mib, Some(pace)) => pace.debt(now, dirtied, mib),
        };
        if debt.is_zero() {
            *pace = (mib > 0).then_some(Pace { since: now, dirtied });
        }
        debt
    }

    pub(super) fn paid(&self, dirtied: u64, nap: Duration) {
        self.nap_us.store(nap.as_micros() as u64, Ordering::Relaxed);
        *self.pace() = Some(Pace { since: Instant::now(), dirtied });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dirtied_takes_as_long_as_the_limit_allows() {
        let since = Instant::now();
        let pace = Pace { since, dirtied: 100 };
        let debt = |ran, pages: u64| pace.debt(since + Duration::from_millis(ran), 100 + pages, 10);
        // 10 MiB a second are 2560 pages.
        assert_eq!(debt(100, 256), Duration::ZERO);
        assert_eq!(debt(100, 512), Duration::from_millis(100));
        assert_eq!(debt(1, 256_000), Duration::from_millis(99), "it runs one part in a hundred");
        assert_eq!(pace.debt(since, 0, 10), Duration::ZERO);
    }
}
