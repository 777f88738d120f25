//! How a migration is going: counters that the sending threads keep, figures that the migration's
//! thread keeps, and the one object that `query-migrate` shows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use xbzrle::cache::Stats;

use super::converge;
use super::status::{Lifecycle, Listener, Status};
use crate::machine::LimitCost;

/// What sending threads count. Plain sums: they are read for people, and by the migration's thread
/// between rounds.
#[derive(Default)]
pub(crate) struct Counters {
    /// Bytes handed to the kernel on all channels.
    pub transferred: AtomicU64,
    /// Of these, on other channels than the main one.
    pub channel_bytes: AtomicU64,
    /// Bytes sent while the guest stood still.
    pub downtime_bytes: AtomicU64,
    /// Pages sent as zeros.
    pub duplicate: AtomicU64,
    /// Pages sent whole.
    pub normal: AtomicU64,
    /// Pages sent as deltas.
    pub deltas: AtomicU64,
    /// Pages that were not sent because the guest named them free.
    pub hinted: AtomicU64,
    /// Pages still to be sent in this round and owed to the next, as far as is known.
    pub remaining: AtomicU64,
    meter: Mutex<Option<Meter>>,
}

struct Meter {
    since: Instant,
    bytes: u64,
    pages: u64,
    bytes_per_second: f64,
    pages_per_second: f64,
}

/// The throughput shown is that of the last period of this length.
const METER_PERIOD: Duration = Duration::from_millis(100);

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Takes pages off what remains.
    pub(crate) fn settle(&self, pages: u64) {
        let less = |left: u64| Some(left.saturating_sub(pages));
        let _ = self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Brings the throughput up to date; cheap enough for every batch.
    pub(crate) fn tick(&self) {
        let Ok(mut meter) = self.meter.try_lock() else { return };
        let now = Instant::now();
        let bytes = Self::get(&self.transferred);
        let pages = Self::get(&self.normal) + Self::get(&self.duplicate) + Self::get(&self.deltas);
        let Some(meter) = meter.as_mut() else {
            *meter = Some(Meter {
                since: now,
                bytes,
                pages,
                bytes_per_second: 0.0,
                pages_per_second: 0.0,
            });
            return;
        };
        let period = now - meter.since;
        if period >= METER_PERIOD {
            let seconds = period.as_secs_f64();
            meter.bytes_per_second = (bytes - meter.bytes) as f64 / seconds;
            meter.pages_per_second = (pages - meter.pages) as f64 / seconds;
            (meter.since, meter.bytes, meter.pages) = (now, bytes, pages);
        }
    }

    fn throughput(&self) -> (f64, f64) {
        let meter = self.meter.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        meter.as_ref().map_or((0.0, 0.0), |meter| (meter.bytes_per_second, meter.pages_per_second))
    }
}

/// The downtime's parts, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DowntimeParts {
    /// The vCPUs and devices come to rest.
    pub stop: Duration,
    /// Their state is read.
    pub save: Duration,
    /// The last pages are found and taken by the connection.
    pub pages: Duration,
    /// The target takes the rest, loads the state, and says that the guest runs.
    pub hand_over: Duration,
}

/// What the migration's thread knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub started: Option<Instant>,
    pub setup: Duration,
    /// Set when the migration has ended.
    pub total: Option<Duration>,
    pub downtime: Option<Duration>,
    /// Where the downtime went.
    pub downtime_parts: DowntimeParts,
    pub expected_downtime: Duration,
    /// The part of it that is the same however few pages are left.
    pub state_time: Duration,
    /// Bytes of all RAM.
    pub ram_bytes: u64,
    pub dirty_sync_count: u64,
    /// Pages per second.
    pub dirty_rate: u64,
    pub throttle: u8,
    /// What dirty-limit costs the guest, while it is held back.
    pub limit: Option<LimitCost>,
    pub xbzrle: Option<Stats>,
    pub error: Option<String>,
    /// When the guest is expected to run at the target.
    pub predicted_end: Option<Instant>,
    /// Why it cannot end as things are, and what would help.
    pub advice: Option<String>,
    /// Why the page cache has not the size that was asked for.
    pub cache_error: Option<String>,
}

/// One outgoing migration as others see it.
#[derive(Default)]
pub(crate) struct Progress {
    pub life: Lifecycle,
    pub counters: Counters,
    figures: Mutex<Figures>,
}

impl Progress {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { life: Lifecycle::new(listener), ..Self::default() }
    }

    pub(crate) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn status(&self) -> Status {
        self.life.status()
    }

    /// Members of `query-migrate`. `total-time` stands at the top level, as the specification's
    /// text and QEMU have it, and inside `ram`, as the specification's examples show it.
    pub(crate) fn report(&self) -> Map<String, Value> {
        let status = self.status();
        let figures = self.figures().clone();
        let mut out = Map::new();
        if status == Status::None {
            return out;
        }
        out.insert("status".into(), json!(status.name()));
        if let Some(error) = &figures.error {
            out.insert("error-desc".into(), json!(error));
        }
        if !matches!(
            status,
            Status::Active
                | Status::PreSwitchover
                | Status::Device
                | Status::Completed
                | Status::Cancelling
        ) {
            return out;
        }
        let total =
            figures.total.or_else(|| figures.started.map(|at| at.elapsed())).unwrap_or_default();
        out.insert("total-time".into(), json!(total.as_millis() as u64));
        out.insert("setup-time".into(), json!(figures.setup.as_millis() as u64));
        if status == Status::Completed {
            let downtime = figures.downtime.unwrap_or_default();
            out.insert("downtime".into(), json!(downtime.as_millis() as u64));
        } else {
            out.insert(
                "expected-downtime".into(),
                json!(figures.expected_downtime.as_millis() as u64),
            );
        }
        out.insert("ram".into(), self.ram(&figures, total));
        if let Some(stats) = &figures.xbzrle {
            // The specification's example shows this beside the cache; QEMU dropped it.
            out.insert("capabilities".into(), json!([{"capability": "xbzrle", "state": true}]));
            out.insert("xbzrle-cache".into(), xbzrle_json(stats));
        }
        if figures.throttle > 0 {
            out.insert("cpu-throttle-percentage".into(), json!(figures.throttle));
        }
        if let Some(cost) = &figures.limit {
            let us = |time: Duration| json!(time.as_micros() as u64);
            out.insert("dirty-limit-throttle-time-per-round".into(), us(cost.nap));
            out.insert("dirty-limit-ring-full-time".into(), us(cost.ring_full));
        }
        out.insert("x-godwit".into(), own(&figures, Counters::get(&self.counters.hinted)));
        out
    }

    fn ram(&self, figures: &Figures, total: Duration) -> Value {
        let counters = &self.counters;
        let get = Counters::get;
        let transferred = get(&counters.transferred);
        let (mut bytes_per_second, pages_per_second) = counters.throughput();
        if figures.total.is_some() || bytes_per_second == 0.0 {
            bytes_per_second = transferred as f64 / total.as_secs_f64().max(0.001);
        }
        let downtime_bytes = get(&counters.downtime_bytes);
        let channel_bytes = get(&counters.channel_bytes);
        json!({
            "transferred": transferred,
            "remaining": get(&counters.remaining) * 4096,
            "total": figures.ram_bytes,
            "total-time": total.as_millis() as u64,
            "duplicate": get(&counters.duplicate),
            "normal": get(&counters.normal),
            "normal-bytes": get(&counters.normal) * 4096,
            "dirty-pages-rate": figures.dirty_rate,
            "mbps": bytes_per_second * 8.0 / 1e6,
            "dirty-sync-count": figures.dirty_sync_count,
            "postcopy-requests": 0,
            "page-size": 4096,
            "multifd-bytes": channel_bytes,
            "pages-per-second": pages_per_second as u64,
            "precopy-bytes": transferred.saturating_sub(downtime_bytes + channel_bytes),
            "downtime-bytes": downtime_bytes,
            "postcopy-bytes": 0,
            "dirty-sync-missed-zero-copy": 0,
        })
    }
}

/// Member `x-godwit`: what QEMU has no name for. `round` counts from 1; times are in ms;
/// `predicted-state-time` is the part of `predicted-downtime` that no round makes shorter;
/// `predicted-end` is absent where dirt comes faster than it goes, and then `advice` says what
/// would help; `xbzrle-cache-error` says why the cache has not the size that was asked for;
/// `downtime-parts`, in microseconds, says at the end where the downtime went; `hinted` counts pages
/// that were not sent because the guest named them free, if there were any.
fn own(figures: &Figures, hinted: u64) -> Value {
    let mut own = Map::new();
    own.insert("round".into(), json!(figures.dirty_sync_count));
    own.insert("predicted-downtime".into(), json!(figures.expected_downtime.as_millis() as u64));
    own.insert("predicted-state-time".into(), json!(figures.state_time.as_millis() as u64));
    if hinted > 0 {
        own.insert("hinted".into(), json!(hinted));
    }
    if let Some(end) = figures.predicted_end {
        let left = end.saturating_duration_since(Instant::now());
        own.insert("predicted-end".into(), json!(left.as_millis() as u64));
    }
    if let Some(advice) = &figures.advice {
        own.insert("advice".into(), json!(advice));
    }
    if let Some(error) = &figures.cache_error {
        own.insert("xbzrle-cache-error".into(), json!(error));
    }
    if figures.downtime.is_some() {
        let DowntimeParts { stop, save, pages, hand_over } = figures.downtime_parts;
        let us = |time: Duration| time.as_micros() as u64;
        let parts = json!({
            "stop": us(stop), "save": us(save), "pages": us(pages), "hand-over": us(hand_over),
        });
        own.insert("downtime-parts".into(), parts);
    }
    Value::Object(own)
}

fn xbzrle_json(stats: &Stats) -> Value {
    json!({
        "cache-size": stats.cache_size,
        "bytes": stats.bytes,
        "pages": stats.pages,
        "cache-miss": stats.cache_miss,
        "cache-miss-rate": stats.cache_miss_rate,
        "encoding-rate": stats.encoding_rate,
        "overflow": stats.overflow,
    })
}

/// The sums of several caches as one.
pub(crate) fn sum_stats(all: impl IntoIterator<Item = Stats>) -> Option<Stats> {
    all.into_iter().reduce(|sum, next| Stats {
        cache_size: sum.cache_size + next.cache_size,
        bytes: sum.bytes + next.bytes,
        pages: sum.pages + next.pages,
        cache_miss: sum.cache_miss + next.cache_miss,
        overflow: sum.overflow + next.overflow,
        cache_miss_rate: (sum.cache_miss_rate + next.cache_miss_rate) / 2.0,
        encoding_rate: (sum.encoding_rate + next.encoding_rate) / 2.0,
    })
}

/// What is known about how fast pages go, from the rounds so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Seconds one page takes; 0 is not known.
    pub seconds_per_page: f64,
}

/// A round with fewer pages says little about the next.
const PAGES_TO_LEARN: u64 = 256;

impl Pace {
    /// A round of `pages` pages that travelled took `time`.
    pub(crate) fn learn(&mut self, pages: u64, time: Duration) {
        if pages >= PAGES_TO_LEARN || self.seconds_per_page == 0.0 && pages > 0 {
            self.seconds_per_page = time.as_secs_f64() / pages as f64;
        }
    }

    /// Bytes of pages per second, as [`converge`] takes it.
    pub(crate) fn bandwidth(&self) -> f64 {
        if self.seconds_per_page > 0.0 { 4096.0 / self.seconds_per_page } else { 0.0 }
    }

    pub(crate) fn downtime(&self, pages: u64) -> Option<Duration> {
        converge::predicted_downtime(pages * 4096, self.bandwidth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_appear_by_state_as_in_qemu() {
        let progress = Progress::default();
        assert!(progress.report().is_empty());
        assert!(progress.life.enter(Status::Setup));
        assert_eq!(Value::Object(progress.report()), json!({"status": "setup"}));
        assert!(progress.life.enter(Status::Active));
        let active = progress.report();
        assert!(active.contains_key("expected-downtime") && !active.contains_key("downtime"));
        assert!(!active.contains_key("xbzrle-cache"));
        for member in [
            "transferred",
            "remaining",
            "total",
            "duplicate",
            "normal",
            "normal-bytes",
            "total-time",
        ] {
            assert!(active["ram"].get(member).is_some(), "{member}");
        }
        assert!(progress.life.enter(Status::Device) && progress.life.enter(Status::Completed));
        let completed = progress.report();
        assert!(completed.contains_key("downtime") && !completed.contains_key("expected-downtime"));
        let progress = Progress::default();
        assert!(progress.life.enter(Status::Setup) && progress.life.enter(Status::Failed));
        progress.figures().error = Some("why".into());
        assert_eq!(
            Value::Object(progress.report()),
            json!({"status": "failed", "error-desc": "why"})
        );
    }

    #[test]
    fn settling_more_than_remains_leaves_nothing() {
        let counters = Counters::default();
        Counters::add(&counters.remaining, 5);
        counters.settle(7);
        assert_eq!(Counters::get(&counters.remaining), 0);
    }
}
