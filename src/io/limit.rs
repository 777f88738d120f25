//! The bandwidth limit: a bucket that says how much may leave now, or when.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What one sender may send at once. With [`CATCH_UP`] it makes the largest burst a tenth of a
/// second's worth, which is QEMU's period.
const PORTION: Duration = Duration::from_millis(50);
/// Time that senders may make up for when they were held up elsewhere; more would be a burst.
const CATCH_UP: Duration = Duration::from_millis(50);

/// A limit in bytes per second shared by all streams of one migration, changeable while they run.
pub struct Limit(Mutex<Bucket>);

struct Bucket {
    bytes_per_second: u64,
    /// What has left is paid for until then.
    paid_until: Instant,
    /// Those who want no limit for now.
    lifted: u32,
}

/// No limit until this is dropped, whatever is set meanwhile.
pub(crate) struct Lifted<'a>(&'a Limit);

impl Limit {
    /// `bytes_per_second` 0 is no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self(Mutex::new(Bucket { bytes_per_second, paid_until: Instant::now(), lifted: 0 }))
    }

    /// What is owed is paid at the new rate.
    pub(crate) fn set(&self, bytes_per_second: u64) {
        let mut bucket = self.bucket();
        let now = Instant::now();
        let owed = bucket.paid_until.saturating_duration_since(now);
        let bytes = owed.as_secs_f64() * bucket.bytes_per_second as f64;
        bucket.bytes_per_second = bytes_per_second;
        if !owed.is_zero() {
            bucket.paid_until = now + bucket.time_of(bytes);
        }
    }

    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bucket().bytes_per_second
    }

    /// Lifts the limit: the guest stands still, and what is left goes as fast as it can.
    pub(crate) fn lift(&self) -> Lifted<'_> {
        self.bucket().lifted += 1;
        Lifted(self)
    }

    /// How many of `wanted` bytes may leave at `now`, at least one; they are counted as sent. Or
    /// when to ask again.
    pub(crate) fn take(&self, now: Instant, wanted: usize) -> Result<usize, Instant> {
        let mut bucket = self.bucket();
        if bucket.bytes_per_second == 0 || bucket.lifted > 0 {
            return Ok(wanted);
        }
        if bucket.paid_until > now {
            return Err(bucket.paid_until);
        }
        let portion = (bucket.bytes_per_second as f64 * PORTION.as_secs_f64()) as usize;
        let bytes = wanted.min(portion.max(1));
        bucket.spend(now, bytes);
        Ok(bytes)
    }

    /// Counts bytes that were not held back: what stands between pages.
    pub(crate) fn spend(&self, now: Instant, bytes: usize) {
        let mut bucket = self.bucket();
        if bucket.bytes_per_second > 0 && bucket.lifted == 0 {
            bucket.spend(now, bytes);
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn spend(&mut self, now: Instant, bytes: usize) {
        let from = self.paid_until.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        self.paid_until = from + self.time_of(bytes as f64);
    }

    fn time_of(&self, bytes: f64) -> Duration {
        match self.bytes_per_second {
            0 => Duration::ZERO,
            // A century is as good as for ever, and no overflow.
            rate => Duration::from_secs_f64((bytes / rate as f64).min(3e9)),
        }
    }
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        self.0.bucket().lifted -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that left, by the millisecond, when `senders` always want `wanted` more.
    fn sent(limit: &Limit, start: Instant, ms: u64, wanted: usize, senders: usize) -> Vec<usize> {
        let at = |ms| start + Duration::from_millis(ms);
        (0..ms)
            .map(|ms| (0..senders).filter_map(|_| limit.take(at(ms), wanted).ok()).sum())
            .collect()
    }

    #[test]
    fn a_second_of_bytes_takes_a_second_and_no_burst_is_longer_than_a_tenth_of_it() {
        for (rate, wanted, senders) in [
            (400_000, 1 << 20, 1),
            (400_000, 3000, 4),
            (125_000_000, 1 << 20, 8),
            (20_000, 4096, 1),
        ] {
            let limit = Limit::new(rate);
            let sent = sent(&limit, Instant::now(), 2000, wanted, senders);
            let all: usize = sent.iter().sum();
            let (least, most) = (rate as f64 * 1.8, rate as f64 * 2.11);
            assert!((least..most).contains(&(all as f64)), "{rate}: {all}");
            // The catch-up and a portion, at any moment, and what came due in this millisecond.
            let burst = *sent.iter().max().unwrap();
            assert!(burst as u64 <= rate / 10 + rate / 1000, "{rate}: {burst}");
        }
    }

    #[test]
    fn no_limit_and_a_lifted_limit_never_wait() {
        let limit = Limit::new(0);
        let now = Instant::now();
        assert_eq!(limit.take(now, 1 << 40), Ok(1 << 40));
        limit.set(1);
        assert_eq!(limit.take(now, 1000), Ok(1));
        assert!(limit.take(now, 1000).is_err());
        let lifted = limit.lift();
        limit.set(2);
        assert_eq!(limit.take(now, 1000), Ok(1000));
        drop(lifted);
        assert!(limit.take(now, 1000).is_err(), "what was owed before is owed still");
        limit.set(1 << 40);
        assert!(limit.take(Instant::now() + Duration::from_millis(1), 1000).is_ok());
    }
}
