//! Limits on what a disk may do: bytes and requests per second, as QEMU's leaky buckets.
//!
//! What was done flows into a bucket, which leaks at the rate that is allowed. While there is more
//! in it than it holds, nothing is begun: for a tenth of a second's worth without a `_max`, else for
//! as long as the burst may last.

use crate::config::{Limit, Throttle};
use std::time::{Duration, Instant};

/// Of a limit without a burst, and of the rate of a burst.
const SHORT: f64 = 0.1;

/// What one limit has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    level: f64,
    /// The same, leaking at the rate of a burst.
    burst: f64,
}

impl Bucket {
    fn leak(&mut self, limit: &Limit, elapsed: f64) {
        self.level = (self.level - limit.rate as f64 * elapsed).max(0.0);
        self.burst = (self.burst - limit.max as f64 * elapsed).max(0.0);
    }

    /// Seconds until something may be begun.
    fn wait(&self, limit: &Limit) -> f64 {
        if limit.rate == 0 {
            return 0.0;
        }
        let (rate, max) = (limit.rate as f64, limit.max as f64);
        let holds = if limit.max == 0 { rate * SHORT } else { max * f64::from(limit.seconds) };
        let wait = (self.level - holds).max(0.0) / rate;
        match limit.seconds > 1 {
            true => wait.max((self.burst - max * SHORT).max(0.0) / max),
            false => wait,
        }
    }
}

/// All limits of a disk.
#[derive(Debug)]
pub(crate) struct Buckets {
    limits: Throttle,
    buckets: [Bucket; 6],
    since: Instant,
}

impl Buckets {
    pub(crate) fn new(limits: Throttle) -> Buckets {
        Buckets { limits, buckets: Default::default(), since: Instant::now() }
    }

    pub(crate) fn limits(&self) -> &Throttle {
        &self.limits
    }

    /// Begins a request, or says when it may be.
    pub(crate) fn begin(&mut self, now: Instant, writes: bool, bytes: u64) -> Option<Instant> {
        if self.limits == Throttle::default() {
            return None;
        }
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now.max(self.since);
        let operations = match self.limits.iops_size {
            0 => 1.0,
            size => (bytes as f64 / size as f64).max(1.0),
        };
        let mut wait: f64 = 0.0;
        let mut concerned = Vec::with_capacity(4);
        for (index, (limit, bucket)) in
            self.limits.all().into_iter().zip(&mut self.buckets).enumerate()
        {
            bucket.leak(limit, elapsed);
            // Total, reads, writes: of bytes, then of requests.
            if index % 3 == 0 || (index % 3 == 2) == writes {
                wait = wait.max(bucket.wait(limit));
                concerned.push(index);
            }
        }
        if wait > 0.0 {
            // A clock that is too coarse for it would wait for ever.
            return Some(
                now + Duration::from_secs_f64(wait.min(3600.0)) + Duration::from_micros(1),
            );
        }
        for index in concerned {
            let units = if index < 3 { bytes as f64 } else { operations };
            self.buckets[index].level += units;
            self.buckets[index].burst += units;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units begun within `seconds` by somebody who always wants more.
    fn begun(limits: Throttle, writes: bool, bytes: u64, seconds: f64) -> u64 {
        let mut buckets = Buckets::new(limits);
        let start = buckets.since;
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs_f64(seconds) {
            match buckets.begin(now, writes, bytes) {
                None => count += 1,
                Some(later) => now = later,
            }
            if count > 1_000_000 {
                break;
            }
        }
        count
    }

    #[test]
    fn rates_hold_and_bursts_end() {
        let rate = |rate, max, seconds| Limit { rate, max, seconds };
        let bytes = Throttle { bps: rate(1 << 20, 0, 1), ..Throttle::default() };
        let done = begun(bytes, true, 4096, 10.0);
        assert!((2560..2600).contains(&done), "{done}");
        let iops = Throttle { iops_rd: rate(100, 0, 1), ..Throttle::default() };
        let done = begun(iops, false, 4096, 10.0);
        assert!((1000..1020).contains(&done), "{done}");
        assert!(begun(iops, true, 4096, 0.001) > 1_000_000, "writes have no limit");
        // 100 a second, and 1000 once.
        let burst = Throttle { iops: rate(100, 1000, 1), ..Throttle::default() };
        let done = begun(burst, true, 4096, 10.0);
        assert!((1990..2010).contains(&done), "{done}");
        let long = Throttle { iops: rate(100, 500, 2), ..Throttle::default() };
        let first = begun(long, true, 4096, 1.0);
        assert!((490..610).contains(&first), "{first}");
        let sized = Throttle { iops: rate(100, 0, 1), iops_size: 4096, ..Throttle::default() };
        let done = begun(sized, true, 16384, 10.0);
        assert!((250..260).contains(&done), "{done}");
    }
}
