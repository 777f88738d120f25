//! What the first round tells of the later ones, and what would help a migration that does not end
//! by itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::peer::Peer;
use super::source::Source;
use crate::memory::PAGE_BYTES;
use crate::migrate::capabilities::Capability;
use crate::migrate::converge;
use crate::migrate::progress::Counters;
use crate::pages::CHUNK_PAGES;

/// Looks ahead from the first round, which can take long: what is dirtied during it is dirtied
/// later, too.
pub(super) struct Forecast {
    started: Instant,
    cache_bytes: u64,
    sent_before: u64,
    /// The fastest rate seen, in pages per second. Pages that are dirty already are not seen again,
    /// so that the guest may be faster.
    fastest: AtomicU64,
    sees_no_end: AtomicBool,
}

/// What is seen sooner is only part of what the guest dirties.
pub(super) const FORECAST_AFTER: Duration = Duration::from_secs(2);

impl Forecast {
    pub(super) fn new(source: &Source, peer: &mut Peer) -> Self {
        let sent_before = Counters::get(&source.progress.counters.transferred);
        let (started, cache_bytes) = (Instant::now(), peer.cache_bytes());
        let (fastest, sees_no_end) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { started, cache_bytes, sent_before, fastest, sees_no_end }
    }

    /// `pages` were found dirty again so far.
    pub(super) fn update(&self, source: &Source, pages: u64) {
        let seconds = self.started.elapsed().as_secs_f64();
        let fits = self.cache_bytes >= pages * PAGE_BYTES && self.cache_bytes > 0;
        if seconds < FORECAST_AFTER.as_secs_f64() || fits {
            return;
        }
        let rate = (pages as f64 / seconds) as u64;
        let rate = self.fastest.fetch_max(rate, Ordering::Relaxed).max(rate);
        let sent = Counters::get(&source.progress.counters.transferred) - self.sent_before;
        let (dirty_rate, bandwidth) = ((rate * PAGE_BYTES) as f64, sent as f64 / seconds);
        let limit = Duration::from_millis(source.settings.parameters().downtime_limit);
        if converge::will_be_stuck(pages * PAGE_BYTES, dirty_rate, bandwidth, limit) {
            self.sees_no_end.store(true, Ordering::Relaxed);
            if !source.slows() {
                let mut figures = source.progress.figures();
                figures.dirty_rate = rate;
                figures.advice = Some(advice(source, self.cache_bytes, pages));
            }
        }
    }

    /// Whether more rounds alone will not end the migration.
    pub(super) fn sees_no_end(&self) -> bool {
        self.sees_no_end.load(Ordering::Relaxed)
    }
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
