//! How far a dump is, and the wish to end it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::io::Waker;

/// Shared between the dump's thread and whoever asks. Counts bytes of guest memory, before
/// compression.
///
/// Relaxed throughout: the numbers are for people.
#[derive(Debug, Default)]
pub struct Progress {
    completed: AtomicU64,
    total: AtomicU64,
    waker: Waker,
}

impl Progress {
    pub fn completed(&self) -> u64 {
        self.completed.load(Relaxed)
    }

    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Asks the dump to end with [`Error::Cancelled`](super::Error::Cancelled): at its next chunk,
    /// or in the write that is blocked.
    pub(crate) fn cancel(&self) {
        self.waker.cancel();
    }

    /// For the writer of the dump.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(super) fn begin(&self, total: u64) {
        self.completed.store(0, Relaxed);
        self.total.store(total, Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.completed.fetch_add(bytes, Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.waker.is_cancelled()
    }
}
