//! What the cache counts, under the peer's names.

use std::ops::AddAssign;

use crate::PAGE_SIZE;

/// Running totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of delta records without their first 8 (the offset word), and 4096 for each overflow.
    pub bytes: u64,
    /// Pages found in the cache, those unchanged and those that overflowed included.
    pub pages: u64,
    /// Pages looked for and not found.
    pub cache_miss: u64,
    /// Pages found whose delta did not fit in a page.
    pub overflow: u64,
    /// Pages handled in any way: what the miss rate is a share of.
    pub handled: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.bytes += other.bytes;
        self.pages += other.pages;
        self.cache_miss += other.cache_miss;
        self.overflow += other.overflow;
        self.handled += other.handled;
    }
}

/// What `query-migrate` shows as `xbzrle-cache`: each field has the peer's name, with `_` for `-`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Bytes of the page slab.
    pub cache_size: u64,
    /// See [`Counters::bytes`].
    pub bytes: u64,
    /// See [`Counters::pages`].
    pub pages: u64,
    /// See [`Counters::cache_miss`].
    pub cache_miss: u64,
    /// Misses in the last period, as a share (0 to 1) of the pages handled in it.
    pub cache_miss_rate: f64,
    /// Bytes of the pages found in the last period, over the bytes sent for them; 0 when none were.
    pub encoding_rate: f64,
    /// See [`Counters::overflow`].
    pub overflow: u64,
}

impl Stats {
    pub(super) fn new(cache_size: u64, counters: Counters, period: Period) -> Stats {
        let Counters { bytes, pages, cache_miss, overflow, .. } = counters;
        let Period { cache_miss_rate, encoding_rate, .. } = period;
        Stats { cache_size, bytes, pages, cache_miss, cache_miss_rate, encoding_rate, overflow }
    }
}

/// The rates of the last finished period and where the current one began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Period {
    began: Counters,
    cache_miss_rate: f64,
    encoding_rate: f64,
}

impl Period {
    /// The next period, beginning at `now`. A period in which nothing was handled keeps the rates
    /// as they were.
    pub(super) fn next(self, now: Counters) -> Period {
        let handled = now.handled - self.began.handled;
        if handled == 0 {
            return self;
        }
        let misses = now.cache_miss - self.began.cache_miss;
        let (pages, bytes) = (now.pages - self.began.pages, now.bytes - self.began.bytes);
        Period {
            began: now,
            cache_miss_rate: misses as f64 / handled as f64,
            encoding_rate: if bytes == 0 {
                0.0
            } else {
                pages as f64 * PAGE_SIZE as f64 / bytes as f64
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_period() {
        let first = Counters { bytes: 4096, pages: 3, cache_miss: 1, overflow: 0, handled: 4 };
        let period = Period::default().next(first);
        assert_eq!((period.cache_miss_rate, period.encoding_rate), (0.25, 3.0));
        let mut later = first;
        later += Counters { bytes: 0, pages: 2, cache_miss: 2, overflow: 0, handled: 4 };
        let period = period.next(later);
        assert_eq!((period.cache_miss_rate, period.encoding_rate), (0.5, 0.0));
        assert_eq!(period.next(later).cache_miss_rate, 0.5);
    }
}
