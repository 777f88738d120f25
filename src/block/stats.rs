//! What was done with an image.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
    Unmap,
}

/// Counts of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub bytes: AtomicU64,
    pub operations: AtomicU64,
    pub total_ns: AtomicU64,
    pub failed: AtomicU64,
    pub invalid: AtomicU64,
}

/// Counts since the image was opened.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    counts: [Counts; 4],
    /// One past the last byte written.
    pub wr_highest_offset: AtomicU64,
}

impl Stats {
    pub(crate) fn of(&self, operation: Operation) -> &Counts {
        &self.counts[operation as usize]
    }

    pub(crate) fn done(&self, operation: Operation, bytes: u64, took: Duration) {
        let counts = self.of(operation);
        counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        counts.operations.fetch_add(1, Ordering::Relaxed);
        let ns = took.as_nanos().try_into().unwrap_or(u64::MAX);
        counts.total_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The host could not do it. Its time counts, as in QEMU; it is no operation.
    pub(crate) fn failed(&self, operation: Operation, took: Duration) {
        self.of(operation).failed.fetch_add(1, Ordering::Relaxed);
        let ns = took.as_nanos().try_into().unwrap_or(u64::MAX);
        self.of(operation).total_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The guest asked for what cannot be.
    pub(crate) fn invalid(&self, operation: Operation) {
        self.of(operation).invalid.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrote_to(&self, end: u64) {
        self.wr_highest_offset.fetch_max(end, Ordering::Relaxed);
    }
}
