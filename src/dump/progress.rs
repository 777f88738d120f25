//! How far a dump is, and the wish to end it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Shared between the dump's thread and whoever asks. Counts bytes of guest memory, before compression.
///
/// Relaxed throughout: the numbers are for people, and a cancel may come a chunk later.
#[derive(Debug, Default)]
pub struct Progress {
    completed: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    pub fn completed(&self) -> u64 {
        self.completed.load(Relaxed)
    }

    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Asks the dump to end with [`Error::Cancelled`](super::Error::Cancelled) at its next chunk.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    pub(super) fn begin(&self, total: u64) {
        self.completed.store(0, Relaxed);
        self.total.store(total, Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.completed.fetch_add(bytes, Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }
}
