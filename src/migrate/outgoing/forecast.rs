//! What the first round tells of the later ones, and what would help a migration that does not end
//! by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::source::Source;
use crate::memory::PAGE_BYTES;
use crate::migrate::capabilities::Capability;
use crate::migrate::converge::{self, Remainder};
use crate::migrate::dirty_curve::DirtyCurve;
use crate::migrate::progress::Counters;
use crate::pages::CHUNK_PAGES;

/// Looks ahead from the first round, which can take long: what is dirtied during it is dirtied
/// later, too.
pub(super) struct Forecast {
    started: Instant,
    cache_bytes: u64,
    sent_before: u64,
    seen: Mutex<Seen>,
    sees_no_end: AtomicBool,
}

#[derive(Default)]
struct Seen {
    /// Pages found dirty again after times each of which is half as long again as the one before.
    curve: DirtyCurve,
    next: Duration,
    /// The fastest rate seen, in pages per second. Pages that are dirty already are not seen again,
    /// so that the guest may be faster.
    fastest: u64,
}

/// What is seen sooner is only part of what the guest dirties.
pub(super) const FORECAST_AFTER: Duration = Duration::from_secs(2);
/// A guest that is this fast for a shorter time is not taken at its word.
const RATE_AFTER: Duration = Duration::from_millis(500);

impl Forecast {
    pub(super) fn new(source: &Source, peer: &mut Peer) -> Self {
        let sent_before = Counters::get(&source.progress.counters.transferred);
        let (started, cache_bytes) = (Instant::now(), peer.cache_bytes());
        let (seen, sees_no_end) = (Mutex::default(), AtomicBool::new(false));
        Self { started, cache_bytes, sent_before, seen, sees_no_end }
    }

    /// `pages` were found dirty again so far.
    pub(super) fn update(&self, source: &Source, pages: u64) {
        let time = self.started.elapsed();
        let seconds = time.as_secs_f64();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if time >= seen.next {
            seen.curve.add(time, pages);
            seen.next = time * 3 / 2;
        }
        if time >= RATE_AFTER {
            seen.fastest = seen.fastest.max((pages as f64 / seconds) as u64);
        }
        let fits = self.cache_bytes >= pages * PAGE_BYTES && self.cache_bytes > 0;
        if time < FORECAST_AFTER || fits {
            return;
        }
        let sent = Counters::get(&source.progress.counters.transferred) - self.sent_before;
        let (rate, bandwidth) = (seen.fastest, sent as f64 / seconds);
        let dirty_rate = (rate * PAGE_BYTES) as f64;
        let limit = Duration::from_millis(source.settings.parameters().downtime_limit);
        let mut figures = source.progress.figures();
        figures.dirty_rate = rate;
        if converge::will_be_stuck(pages * PAGE_BYTES, dirty_rate, bandwidth, limit) {
            self.sees_no_end.store(true, Ordering::Relaxed);
            if !source.slows() {
                figures.advice = Some(advice(source, self.cache_bytes, pages));
            }
        }
        let mut curve = seen.curve.clone();
        curve.add(time, pages);
        let rest = rest_of_round(&source.progress.counters, figures.ram_bytes, seconds);
        let outlook = rest.and_then(|rest| {
            let left = curve.pages(seconds + rest) as u64 * PAGE_BYTES;
            let rounds = Remainder {
                left,
                left_before: figures.ram_bytes,
                bandwidth,
                state: Duration::ZERO,
                downtime_limit: limit,
                rounds_below_limit: 0,
            };
            Some((Duration::from_secs_f64(rest), curve.outlook(rounds)?))
        });
        if let Some((_, outlook)) = outlook {
            figures.expected_downtime = outlook.downtime;
        }
        figures.predicted_end =
            outlook.and_then(|(rest, outlook)| Instant::now().checked_add(rest + outlook.end));
    }

    /// What the guest dirtied in the first round.
    pub(super) fn into_curve(self) -> DirtyCurve {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner).curve
    }

    /// Whether more rounds alone will not end the migration.
    pub(super) fn sees_no_end(&self) -> bool {
        self.sees_no_end.load(Ordering::Relaxed)
    }
}

/// Seconds that the rest of the first round takes, if as many of the pages so far were whole ones that
/// zeros, which go faster than any, say little.
fn rest_of_round(counters: &Counters, ram_bytes: u64, seconds: f64) -> Option<f64> {
    let left = Counters::get(&counters.remaining);
    let done = (ram_bytes / PAGE_BYTES).saturating_sub(left);
    let travelled = Counters::get(&counters.normal) + Counters::get(&counters.deltas);
    (done > 0 && travelled >= done / 2).then(|| seconds * left as f64 / done as f64)
}

/// What would help a migration that does not converge.
pub(super) fn advice(source: &Source, cache: u64, left: u64) -> String {
    let xbzrle = source.settings.has(Capability::Xbzrle);
    let would_do =
        (left.div_ceil(CHUNK_PAGES) * CHUNK_PAGES * PAGE_BYTES * 5 / 4).next_power_of_two();
    let mut text = String::from("the guest dirties memory faster than it can be sent");
    if !xbzrle {
        text += &format!(
            "; capability xbzrle with xbzrle-cache-size {would_do} or auto-converge may help"
        );
    } else if cache < would_do {
        text += &format!(
            "; its working set does not fit the cache: xbzrle-cache-size {would_do} would do"
        );
    } else {
        text += "; auto-converge or a larger downtime-limit may help";
    }
    if source.guest.has_dirty_rings() && !source.settings.has(Capability::DirtyLimit) {
        text += "; so may dirty-limit instead of auto-converge";
    }
    text
}
