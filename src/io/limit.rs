//! The bandwidth limit: a bucket that may go into debt by one batch, and says when the next batch
//! may leave.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time a sender may make up for when it was held up elsewhere; more would be a burst. QEMU's
/// period.
const CATCH_UP: Duration = Duration::from_millis(100);

/// A limit in bytes per second shared by all streams of one migration, changeable while they run.
pub struct Limit {
    bytes_per_second: AtomicU64,
    paid_until: Mutex<Instant>,
}

impl Limit {
    /// `bytes_per_second` 0 is no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            paid_until: Mutex::new(Instant::now()),
        }
    }

    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
        let mut paid_until = self.paid_until.lock().unwrap();
        *paid_until = (*paid_until).min(Instant::now());
    }

    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// When the next bytes may leave: `None` is now.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        if self.bytes_per_second() == 0 {
            return None;
        }
        let paid_until = *self.paid_until.lock().unwrap();
        (paid_until > now).then_some(paid_until)
    }

    /// Notes that `bytes` left at `now`.
    pub fn spend(&self, now: Instant, bytes: usize) {
        let rate = self.bytes_per_second();
        if rate == 0 {
            return;
        }
        let mut paid_until = self.paid_until.lock().unwrap();
        let from = (*paid_until).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        *paid_until = from + Duration::from_secs_f64(bytes as f64 / rate as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_bytes_takes_a_second() {
        let limit = Limit::new(1000);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..10 {
            now = limit.ready_at(now).unwrap_or(now);
            limit.spend(now, 100);
        }
        let end = limit.ready_at(now).unwrap();
        let took = end - start;
        assert!(
            took > Duration::from_millis(890) && took <= Duration::from_millis(1001),
            "{took:?}"
        );
    }

    #[test]
    fn no_limit_and_a_lifted_limit_never_wait() {
        let limit = Limit::new(0);
        let now = Instant::now();
        limit.spend(now, 1 << 40);
        assert_eq!(limit.ready_at(now), None);
        limit.set(1);
        limit.spend(now, 1000);
        assert!(limit.ready_at(now).is_some());
        limit.set(1 << 40);
        assert_eq!(limit.ready_at(Instant::now()), None);
    }
}
