//! What others see of the balloon, and do with it: its size, and what the guest tells of its memory.

use super::super::model::Wake;
use crate::memory::{Hints, PAGE_BYTES};
use serde_json::{Value as Json, json};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a balloon counts in, whatever pages the guest has.
pub(super) const BALLOON_PAGE_BYTES: u64 = 4096;

/// QEMU's names of the guest's statistics, by their tags.
const STATISTICS: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];
/// Of one that the guest did not tell.
const UNKNOWN: u64 = u64::MAX;

/// A statistic as the guest tells it: le16 tag, le64 value.
pub(super) const STATISTIC_BYTES: usize = 10;

pub(super) const STATS: &str = "guest-stats";
pub(super) const INTERVAL: &str = "guest-stats-polling-interval";

/// Told how many bytes the guest has, each time that changes.
type Changed = Box<dyn Fn(u64) + Send + Sync>;

/// The balloon of a machine, as others see it.
pub struct BalloonControl {
    ram_bytes: u64,
    hints: Hints,
    state: Mutex<State>,
    wake: OnceLock<Wake>,
    changed: OnceLock<Changed>,
}

#[derive(Clone, Copy)]
struct State {
    /// Pages that the guest shall give, and that it says it gave.
    target: u32,
    actual: u32,
    /// The guest was not told of the target.
    is_news: bool,
    statistics: [u64; STATISTICS.len()],
    /// s since 1970; 0 for never.
    updated: u64,
    /// s; 0 for never.
    interval: u32,
    due: Option<Instant>,
}

impl BalloonControl {
    /// The balloon of a guest with so much RAM.
    pub(crate) fn new(ram_bytes: u64) -> BalloonControl {
        let state = State {
            target: 0,
            actual: 0,
            is_news: false,
            statistics: [UNKNOWN; STATISTICS.len()],
            updated: 0,
            interval: 0,
            due: None,
        };
        BalloonControl {
            ram_bytes,
            hints: Hints::new(ram_bytes / PAGE_BYTES),
            state: Mutex::new(state),
            wake: OnceLock::new(),
            changed: OnceLock::new(),
        }
    }

    /// Who is told of changes; the first call counts.
    pub(crate) fn on_change(&self, changed: Changed) {
        let _ = self.changed.set(changed);
    }

    pub(super) fn connect(&self, wake: Wake) {
        let rings = wake.clone();
        self.hints.on_change(Box::new(move || rings()));
        let _ = self.wake.set(wake);
    }

    /// The free pages that the guest names while its memory is sent.
    pub(crate) fn hints(&self) -> &Hints {
        &self.hints
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    /// How many bytes the guest has, as it says.
    pub fn actual_bytes(&self) -> u64 {
        self.left(self.lock().actual)
    }

    fn left(&self, pages: u32) -> u64 {
        self.ram_bytes.saturating_sub(u64::from(pages) * BALLOON_PAGE_BYTES)
    }

    /// The guest shall have so many bytes; all that there are at most.
    pub fn set_target(&self, bytes: u64) {
        let pages = (self.ram_bytes - bytes.min(self.ram_bytes)) / BALLOON_PAGE_BYTES;
        {
            let mut state = self.lock();
            state.target = pages.try_into().unwrap_or(u32::MAX);
            state.is_news = true;
        }
        self.wake();
    }

    /// Pages: wanted, and given.
    pub(super) fn pages(&self) -> (u32, u32) {
        let state = self.lock();
        (state.target, state.actual)
    }

    pub(super) fn load(&self, (target, actual): (u32, u32)) {
        let mut state = self.lock();
        (state.target, state.actual) = (target, actual);
    }

    /// The guest says how many pages it gave.
    pub(super) fn set_actual(&self, pages: u32) {
        let before = std::mem::replace(&mut self.lock().actual, pages);
        if let Some(changed) = self.changed.get().filter(|_| before != pages) {
            changed(self.left(pages));
        }
    }

    /// Whether what the guest reads has changed since this was last asked.
    pub(super) fn take_news(&self) -> bool {
        let of_size = std::mem::take(&mut self.lock().is_news);
        self.hints.take_news() || of_size
    }

    /// What the guest tells.
    pub(super) fn take_statistics(&self, told: &[u8]) {
        let mut state = self.lock();
        state.statistics = [UNKNOWN; STATISTICS.len()];
        for entry in told.chunks_exact(STATISTIC_BYTES) {
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            let value = u64::from_le_bytes(std::array::from_fn(|at| value[at]));
            if let Some(known) = state.statistics.get_mut(usize::from(tag)) {
                *known = value;
            }
        }
        state.updated = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        state.put_off();
    }

    /// When the guest is to be asked again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lock().due
    }

    /// It was asked.
    pub(super) fn asked(&self) {
        self.lock().put_off();
    }

    pub(super) fn guest_stats(&self) -> Json {
        let state = self.lock();
        let stats = STATISTICS.iter().zip(state.statistics);
        let stats: serde_json::Map<_, _> =
            stats.map(|(name, value)| ((*name).into(), json!(value))).collect();
        json!({"stats": stats, "last-update": state.updated})
    }

    /// s between two questions for statistics; 0 asks for none.
    pub(super) fn interval(&self) -> u32 {
        self.lock().interval
    }

    pub(super) fn set_interval(&self, seconds: &Json) -> Result<(), String> {
        let seconds = seconds
            .as_i64()
            .ok_or_else(|| format!("Invalid parameter type for '{INTERVAL}', expected: integer"))?;
        if seconds < 0 {
            return Err("timer value must be greater than zero".into());
        }
        let seconds = u32::try_from(seconds).map_err(|_| "timer value is too big")?;
        {
            let mut state = self.lock();
            state.interval = seconds;
            state.put_off();
        }
        self.wake();
        Ok(())
    }
}

impl State {
    fn put_off(&mut self) {
        let interval = Duration::from_secs(self.interval.into());
        self.due = (self.interval > 0).then(|| Instant::now() + interval);
    }
}
