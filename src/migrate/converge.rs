//! Has it converged? Pure functions: rates in, decision out.

use std::time::Duration;

/// A predicted downtime below which another round gains nothing worth its own time.
const SHORT: Duration = Duration::from_millis(3);
/// Another round is worth it while it leaves less than this share of what was left before.
const SHRINKS: f64 = 0.75;
/// A round that leaves more than this share of what was left before has gained nothing.
const STUCK: f64 = 0.9;
/// A guest is surely too fast at so many times the connection's rate. Nearer to it both come to an end
/// by chance: a guest is slower when its pages are watched, and when the source wants its processor.
const SURELY: f64 = 1.2;
/// Rounds run below the limit at most: a guest whose dirt goes up and down would hold the migration
/// for ever.
const ROUNDS_BELOW_LIMIT_MAX: u32 = 8;

/// What is known when a round has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Remainder {
    /// Bytes of pages that would travel if the guest stopped now.
    pub left: u64,
    /// The same when this round began.
    pub left_before: u64,
    /// Bytes per second the connection takes at the switch-over; 0 is not known.
    pub bandwidth: f64,
    /// What the guest stands still for beside its pages: its state is read, sent and loaded.
    pub state: Duration,
    pub downtime_limit: Duration,
    /// Rounds that ended below the limit before this one.
    pub rounds_below_limit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Send another round with the guest running.
    Iterate,
    /// Stop the guest and send the rest.
    SwitchOver,
}

/// How long the guest would stand still for `left` bytes.
pub(crate) fn predicted_downtime(left: u64, bandwidth: f64) -> Option<Duration> {
    if left == 0 {
        return Some(Duration::ZERO);
    }
    (bandwidth > 0.0).then(|| Duration::from_secs_f64((left as f64 / bandwidth).min(1e9)))
}

impl Remainder {
    /// How long the guest would stand still, its state included.
    pub(crate) fn downtime(&self) -> Option<Duration> {
        Some(predicted_downtime(self.left, self.bandwidth)? + self.state)
    }

    /// What the limit leaves for pages. Waiting makes the state no faster, so where that takes most
    /// of the limit or more, a little is left all the same: else it would never end.
    pub(crate) fn for_pages(&self) -> Duration {
        for_pages(self.downtime_limit, self.state)
    }

    /// Its pages would take too long.
    pub(crate) fn is_too_much(&self) -> bool {
        predicted_downtime(self.left, self.bandwidth).is_none_or(|time| time > self.for_pages())
    }
}

/// What `limit` leaves for pages when the state takes so long: at least a quarter, since the state's
/// time is what it took beside a guest that runs.
pub(crate) fn for_pages(limit: Duration, state: Duration) -> Duration {
    limit.saturating_sub(state).max(limit / 4).max(limit.min(SHORT))
}

/// Stops where another round would not shrink what is left, not merely below the limit.
pub(crate) fn decide(round: &Remainder) -> Decision {
    let Some(downtime) = predicted_downtime(round.left, round.bandwidth) else {
        return Decision::Iterate;
    };
    if round.is_too_much() {
        return Decision::Iterate;
    }
    let shrinks = (round.left as f64) < round.left_before as f64 * SHRINKS;
    if downtime <= SHORT || !shrinks || round.rounds_below_limit >= ROUNDS_BELOW_LIMIT_MAX {
        Decision::SwitchOver
    } else {
        Decision::Iterate
    }
}

/// What is left does not shrink from round to round, and is too much to stop for.
pub(crate) fn is_stuck(round: &Remainder) -> bool {
    round.is_too_much() && round.left as f64 > round.left_before as f64 * STUCK
}

/// Whether later rounds will be stuck, seen from the first: the guest was found to dirty `set`
/// bytes, at `dirty_rate` bytes per second or more, which is more than the connection takes, and
/// they are too many to stop for.
pub(crate) fn will_be_stuck(
    set: u64,
    dirty_rate: f64,
    bandwidth: f64,
    downtime_limit: Duration,
) -> bool {
    let too_long = predicted_downtime(set, bandwidth).is_some_and(|time| time > downtime_limit);
    too_long && dirty_rate >= bandwidth * SURELY
}

/// auto-converge's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThrottleRules {
    pub trigger_threshold: u8,
    pub initial: u8,
    pub increment: u8,
    pub max: u8,
    pub tailslow: bool,
}

/// auto-converge: how much the guest is slowed, decided once a period by what was dirtied and what
/// was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Throttle {
    percent: u8,
    strikes: u8,
}

/// A period is at least this long.
pub(crate) const THROTTLE_PERIOD: Duration = Duration::from_secs(1);
/// Strikes before the guest is throttled for the first time, as in QEMU. Later steps take one: a
/// second of waiting per step is caution enough, and the guest suffers longer from a slow approach
/// than from the step itself.
const STRIKES: u8 = 2;

impl Throttle {
    /// Per cent of its time that each vCPU sleeps.
    pub(crate) fn percent(&self) -> u8 {
        self.percent
    }

    /// The first round has shown that the guest is too fast: the next period over the threshold
    /// decides.
    pub(crate) fn foresee(&mut self) {
        self.strikes = STRIKES - 1;
    }

    /// One period is over; true if the percentage changed.
    pub(crate) fn period(&mut self, dirtied: u64, sent: u64, rules: &ThrottleRules) -> bool {
        let threshold = sent / 100 * u64::from(rules.trigger_threshold);
        if dirtied <= threshold {
            return false;
        }
        self.strikes += 1;
        if self.percent == 0 && self.strikes < STRIKES {
            return false;
        }
        self.strikes = 0;
        let before = self.percent;
        self.percent = if before == 0 {
            rules.initial
        } else {
            let step = if rules.tailslow {
                tail_step(before, threshold, dirtied, rules)
            } else {
                rules.increment
            };
            before.saturating_add(step)
        };
        self.percent = self.percent.min(rules.max);
        self.percent != before
    }
}

/// The smaller of the increment and what would bring the dirt to the threshold.
fn tail_step(percent: u8, threshold: u64, dirtied: u64, rules: &ThrottleRules) -> u8 {
    let now = f64::from(100 - percent);
    let ideal = now - now * threshold as f64 / dirtied as f64;
    rules.increment.min(ideal as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ThrottleRules = ThrottleRules {
        trigger_threshold: 50,
        initial: 20,
        increment: 10,
        max: 99,
        tailslow: false,
    };

    fn round(left: u64, left_before: u64) -> Remainder {
        let downtime_limit = Duration::from_millis(300);
        Remainder {
            left,
            left_before,
            bandwidth: 1e9,
            state: Duration::ZERO,
            downtime_limit,
            rounds_below_limit: 0,
        }
    }

    #[test]
    fn above_the_limit_it_goes_on_and_at_nothing_left_it_stops() {
        assert_eq!(decide(&round(400_000_000, 400_000_000)), Decision::Iterate);
        assert_eq!(decide(&round(0, 400_000_000)), Decision::SwitchOver);
        let unknown = Remainder { bandwidth: 0.0, ..round(1, 1) };
        assert_eq!(decide(&unknown), Decision::Iterate);
    }

    #[test]
    fn below_the_limit_it_goes_on_as_long_as_rounds_shrink() {
        assert_eq!(decide(&round(100_000_000, 400_000_000)), Decision::Iterate);
        assert_eq!(decide(&round(90_000_000, 100_000_000)), Decision::SwitchOver);
        assert_eq!(decide(&round(2_000_000, 100_000_000)), Decision::SwitchOver);
        let long = Remainder { rounds_below_limit: 8, ..round(100_000_000, 400_000_000) };
        assert_eq!(decide(&long), Decision::SwitchOver);
    }

    #[test]
    fn a_limit_of_zero_switches_over_only_when_nothing_is_left() {
        let strict = |left| Remainder { downtime_limit: Duration::ZERO, ..round(left, 4096) };
        assert_eq!(decide(&strict(1)), Decision::Iterate);
        assert_eq!(decide(&strict(0)), Decision::SwitchOver);
    }

    #[test]
    fn the_state_takes_its_share_of_the_limit_but_not_all_of_it() {
        // 300 ms for 1 GB/s; the state takes 200 of them.
        let with = |left, state| {
            let state = Duration::from_millis(state);
            Remainder { state, ..round(left, left) }
        };
        assert_eq!(decide(&with(90_000_000, 200)), Decision::SwitchOver);
        assert_eq!(decide(&with(110_000_000, 200)), Decision::Iterate);
        assert_eq!(with(90_000_000, 200).downtime(), Some(Duration::from_millis(290)));
        // It alone takes more than the limit: that can be told, and not be helped.
        assert_eq!(decide(&with(74_000_000, 400)), Decision::SwitchOver);
        assert_eq!(decide(&with(76_000_000, 400)), Decision::Iterate);
        assert!(is_stuck(&with(76_000_000, 400)) && !is_stuck(&with(74_000_000, 400)));
        let none = Remainder { downtime_limit: Duration::ZERO, ..with(1, 5) };
        assert_eq!(decide(&none), Decision::Iterate);
    }

    #[test]
    fn throttle_starts_after_two_strikes_and_stops_at_the_maximum() {
        let mut throttle = Throttle::default();
        assert!(!throttle.period(100, 1000, &RULES));
        assert!(!throttle.period(900, 1000, &RULES));
        assert!(throttle.period(900, 1000, &RULES));
        assert_eq!(throttle.percent(), 20);
        for _ in 0..20 {
            throttle.period(900, 1000, &RULES);
        }
        assert_eq!(throttle.percent(), 99);
    }

    #[test]
    fn tailslow_steps_no_further_than_needed() {
        let mut throttle = Throttle { percent: 50, strikes: 0 };
        let rules = ThrottleRules { tailslow: true, ..RULES };
        throttle.period(550, 1000, &rules);
        assert!(throttle.percent() > 50 && throttle.percent() < 60, "{}", throttle.percent());
    }

    #[test]
    fn what_was_foreseen_counts_as_the_first_strike() {
        let mut throttle = Throttle::default();
        throttle.foresee();
        assert!(!throttle.period(100, 1000, &RULES), "it must still be so");
        assert!(throttle.period(900, 1000, &RULES));
        assert_eq!(throttle.percent(), RULES.initial);
    }

    #[test]
    fn predictions_are_plain_arithmetic() {
        assert_eq!(predicted_downtime(1000, 10_000.0), Some(Duration::from_millis(100)));
        let limit = Duration::from_millis(300);
        // 256 MiB at 400 MB/s over 125 MB/s; a set that can be stopped for; one that is dirtied
        // slowly.
        assert!(will_be_stuck(256 << 20, 4e8, 1.25e8, limit));
        assert!(!will_be_stuck(16 << 20, 4e8, 1.25e8, limit));
        assert!(!will_be_stuck(256 << 20, 1e8, 1.25e8, limit));
        // Near the connection's own rate it may come out either way.
        assert!(!will_be_stuck(256 << 20, 1.3e8, 1.25e8, limit));
        let round = |left, left_before| Remainder {
            left,
            left_before,
            bandwidth: 1.25e8,
            state: Duration::ZERO,
            downtime_limit: limit,
            rounds_below_limit: 0,
        };
        assert!(is_stuck(&round(256 << 20, 256 << 20)) && !is_stuck(&round(200 << 20, 256 << 20)));
        assert!(!is_stuck(&round(16 << 20, 16 << 20)));
    }
}
