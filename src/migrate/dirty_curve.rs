//! How many pages a guest dirties in a time, and when its migration will have ended if it goes on
//! so. Pure functions: what was measured in, a time out.
//!
//! A guest dirties a page once, however often it writes to it: the longer a round takes, the fewer
//! new pages each second of it brings. So a rate alone says little about a round of another length;
//! the curve through what was seen in times of several lengths does.

use std::collections::VecDeque;
use std::time::Duration;

use super::converge::{Decision, Remainder, decide};
use crate::memory::PAGE_BYTES;

/// Measurements kept: a guest changes its ways, and the latest count.
const POINTS_MAX: usize = 12;
/// What happens in a shorter time is chance.
const SHORTEST: Duration = Duration::from_millis(2);
/// Rounds looked ahead. Each lasts as long as a harvest at least, and those that bring a migration
/// to its end shrink.
const ROUNDS_MAX: u32 = 1000;
/// A round that leaves more than this share of what was left before is the last kind of round that
/// there will be.
const STAYS: f64 = 0.99;

/// How a migration is expected to go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    /// Until the guest runs at the target.
    pub end: Duration,
    /// How long it will have stood still.
    pub downtime: Duration,
}

/// Pages that a guest dirtied in times of several lengths.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirtyCurve {
    /// Seconds, and different pages dirtied in them; the oldest first.
    points: VecDeque<(f64, f64)>,
}

impl DirtyCurve {
    /// In `time` the guest dirtied so many different pages.
    pub(crate) fn add(&mut self, time: Duration, pages: u64) {
        if time < SHORTEST {
            return;
        }
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back((time.as_secs_f64(), pages as f64));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Pages that it will dirty in so many seconds: on the line between the nearest points on both
    /// sides, of those of about the same length the latest. In less time than the shortest seen it
    /// is as fast as there; behind the longest it goes on as between the last two.
    pub(crate) fn pages(&self, seconds: f64) -> f64 {
        let (mut below, mut above) = ((0.0, 0.0), None);
        for &point in &self.points {
            match point.0 <= seconds {
                true if point.0 >= below.0 * 0.9 => below = point,
                false if above.is_none_or(|above: (f64, f64)| point.0 <= above.0 * 1.1) => {
                    above = Some(point);
                }
                _ => {}
            }
        }
        let (from, to) =
            match above {
                Some(above) => (below, above),
                // The longest, and the longest that is a good deal shorter.
                None => {
                    let shorter = self.points.iter().filter(|point| point.0 < below.0 * 0.75);
                    let before = shorter.fold((0.0, 0.0), |longest: (f64, f64), point| {
                        if point.0 >= longest.0 { *point } else { longest }
                    });
                    (before, below)
                }
            };
        if to.0 <= from.0 {
            return to.1;
        }
        let slope = ((to.1 - from.1) / (to.0 - from.0)).max(0.0);
        (from.1 + slope * (seconds - from.0)).max(0.0)
    }

    /// What comes of a migration that is at the beginning of `round`: rounds as [`decide`] wants
    /// them, each as long as its pages take. `None`: it does not end, or nothing is known.
    pub(crate) fn outlook(&self, mut round: Remainder) -> Option<Outlook> {
        if round.bandwidth <= 0.0 || self.is_empty() {
            return None;
        }
        let mut seconds = 0.0;
        for _ in 0..ROUNDS_MAX {
            if decide(&round) == Decision::SwitchOver {
                let downtime = round.downtime()?;
                return Some(Outlook {
                    end: Duration::from_secs_f64(seconds) + downtime,
                    downtime,
                });
            }
            let takes = (round.left as f64 / round.bandwidth).max(SHORTEST.as_secs_f64());
            let left = self.pages(takes) * PAGE_BYTES as f64;
            if round.is_too_much() && left > round.left as f64 * STAYS {
                return None;
            }
            seconds += takes;
            if seconds > 1e9 {
                return None;
            }
            round.rounds_below_limit += u32::from(!round.is_too_much());
            (round.left_before, round.left) = (round.left, left as u64);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Seen in rounds of these lengths: `rate` pages a second, of `set` pages one after the other.
    fn sweeping(rate: f64, set: f64, lengths: &[f64]) -> DirtyCurve {
        let mut curve = DirtyCurve::default();
        for length in lengths {
            curve.add(seconds(*length), (rate * length).min(set) as u64);
        }
        curve
    }

    fn round(pages: u64, bandwidth: f64) -> Remainder {
        Remainder {
            left: pages * PAGE_BYTES,
            left_before: u64::MAX,
            bandwidth,
            state: Duration::ZERO,
            downtime_limit: Duration::from_millis(20),
            rounds_below_limit: 0,
        }
    }

    #[test]
    fn between_points_and_beside_them() {
        let curve = sweeping(1000.0, 800.0, &[2.0, 0.2]);
        assert_eq!(curve.pages(0.1), 100.0);
        assert_eq!(curve.pages(0.2), 200.0);
        assert_eq!(curve.pages(1.1), 500.0);
        assert!((curve.pages(2.9) - 1100.0).abs() < 1e-6, "as between the last two");
        assert_eq!(DirtyCurve::default().pages(1.0), 0.0);
        let idle = sweeping(0.0, 0.0, &[1.0]);
        assert_eq!(idle.pages(5.0), 0.0);
    }

    #[test]
    fn a_set_that_is_through_grows_no_more() {
        let curve = sweeping(1000.0, 300.0, &[4.0, 1.0]);
        assert_eq!(curve.pages(10.0), 300.0);
    }

    #[test]
    fn of_two_that_differ_the_later_counts() {
        let mut curve = DirtyCurve::default();
        curve.add(seconds(1.0), 1000);
        curve.add(seconds(1.0), 10);
        assert_eq!(curve.pages(0.5), 5.0);
        assert_eq!(curve.pages(1.0), 10.0);
    }

    #[test]
    fn rounds_shrink_by_the_share_of_the_rates_until_the_rest_is_short() {
        // 16384 pages/s are 64 MiB/s; half of that is dirtied, so each round takes half the time.
        let bandwidth = 64.0 * 1024.0 * 1024.0;
        let curve = sweeping(8192.0, 1e9, &[1.0, 0.5]);
        let end = curve.outlook(round(16384, bandwidth)).unwrap().end;
        assert!(end > seconds(1.9) && end < seconds(2.1), "{end:?}");
    }

    #[test]
    fn a_guest_that_is_too_fast_has_no_end_unless_its_set_is_small() {
        let bandwidth = 64.0 * 1024.0 * 1024.0;
        let fast = sweeping(20_000.0, 1e9, &[1.0, 0.5]);
        assert_eq!(fast.outlook(round(16384, bandwidth)), None);
        // 200 pages take 12 ms, which is below the limit.
        let small = sweeping(20_000.0, 200.0, &[1.0, 0.01]);
        let Outlook { end, downtime } = small.outlook(round(16384, bandwidth)).unwrap();
        assert!(end > seconds(1.0) && end < seconds(1.2), "{end:?}");
        assert!(downtime > seconds(0.01) && downtime < seconds(0.02), "{downtime:?}");
        assert_eq!(small.outlook(round(16384, 0.0)), None, "nothing is known");
        assert_eq!(DirtyCurve::default().outlook(round(1, bandwidth)), None);
    }
}
