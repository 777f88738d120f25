//! What a batch became.

use std::ops::{AddAssign, Range};

use super::worker::Worker;
use super::{Body, Kind, Record, RecordFormat};
use crate::PAGE_SIZE;
use crate::cache::{Counters, SHARDS_MAX};

/// A worker per shard, when there is a cache.
const WORKERS_MAX: usize = SHARDS_MAX;

/// How many pages travelled how, and in how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages sent as zeros.
    pub zero: u64,
    /// Pages not sent.
    pub same: u64,
    /// Pages sent as deltas.
    pub delta: u64,
    /// Pages sent whole that were not in the cache.
    pub whole: u64,
    /// Pages sent whole whose delta did not fit.
    pub overflow: u64,
    /// Bytes of the delta records, with their headers.
    pub delta_bytes: u64,
}

impl Tally {
    /// All pages.
    pub fn pages(&self) -> u64 {
        self.zero + self.same + self.delta + self.whole + self.overflow
    }

    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Zero => &mut self.zero,
            Kind::Same => &mut self.same,
            Kind::Delta => &mut self.delta,
            Kind::Whole => &mut self.whole,
            Kind::Overflow => &mut self.overflow,
        } += 1;
    }

    pub(super) fn record(&mut self, record: &Record, header_bytes: usize) {
        if let Body::Delta(len) = record.body {
            self.delta_bytes += (header_bytes + len) as u64;
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.zero += other.zero;
        self.same += other.same;
        self.delta += other.delta;
        self.whole += other.whole;
        self.overflow += other.overflow;
        self.delta_bytes += other.delta_bytes;
    }
}

/// The records of a batch in order, with how each page travelled. Its buffers serve one batch after
/// another.
#[derive(Debug, Default)]
pub struct Output {
    workers: Vec<Worker>,
    workers_used: usize,
    /// The worker of each segment, in the order of the batch.
    order: Vec<usize>,
    /// The headers of the segments' first records.
    headers: Vec<u8>,
    pieces: Vec<Piece>,
    kinds: Vec<Kind>,
    tally: Tally,
    len: usize,
}

/// A segment's first header, and the rest of the segment.
#[derive(Debug)]
struct Piece {
    header: Range<usize>,
    worker: usize,
    bytes: Range<usize>,
}

impl Output {
    /// An output without content.
    pub fn new() -> Output {
        Output::default()
    }

    /// The bytes of all records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no page travelled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The records, in pieces and in order. Pieces are not records: a record may span two.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces
            .iter()
            .flat_map(|piece| {
                [
                    &self.headers[piece.header.clone()],
                    self.workers[piece.worker].bytes(piece.bytes.clone()),
                ]
            })
            .filter(|slice| !slice.is_empty())
    }

    /// Appends all records to `to`.
    pub fn append_to(&self, to: &mut Vec<u8>) {
        to.reserve(self.len);
        self.slices().for_each(|slice| to.extend_from_slice(slice));
    }

    /// How each page of the batch travelled, in the order of the batch.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The pages by kind.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Drops the content and keeps the buffers.
    pub fn clear(&mut self) {
        self.workers[..self.workers_used].iter_mut().for_each(Worker::clear);
        self.workers_used = 0;
        self.order.clear();
        self.headers.clear();
        self.pieces.clear();
        self.kinds.clear();
        self.tally = Tally::default();
        self.len = 0;
    }

    pub(super) fn prepare(&mut self, workers: usize) {
        self.workers_used = workers;
        while self.workers.len() < workers {
            self.workers.push(Worker::new());
        }
    }

    pub(super) fn assign(&mut self, worker: usize, positions: Range<usize>) {
        self.order.push(worker);
        self.workers[worker].assign(positions);
    }

    pub(super) fn workers_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers[..self.workers_used].iter_mut()
    }

    /// Puts the segments in order and lays out their first headers.
    pub(super) fn seal<L: RecordFormat + ?Sized>(&mut self, format: &L) {
        let mut next = [(0, 0); WORKERS_MAX];
        let mut after = None;
        for &worker in &self.order {
            let (segment, kind) = &mut next[worker];
            let done = &self.workers[worker].done[*segment];
            self.kinds.extend_from_slice(&self.workers[worker].kinds[*kind..][..done.pages]);
            (*segment, *kind) = (*segment + 1, *kind + done.pages);
            let Some((first, last)) = done.ends else { continue };
            let start = self.headers.len();
            format.header(&first, after, &mut self.headers);
            self.tally.record(&first, self.headers.len() - start);
            after = Some(last);
            let piece =
                Piece { header: start..self.headers.len(), worker, bytes: done.bytes.clone() };
            self.len += piece.header.len() + piece.bytes.len();
            self.pieces.push(piece);
        }
        for worker in &self.workers[..self.workers_used] {
            self.tally += worker.tally;
        }
    }

    /// What the cache counts for this batch: zero pages do not take part, as with the peer.
    pub(super) fn counters(&self, misses_count: bool) -> Counters {
        let Tally { same, delta, whole, overflow, delta_bytes, .. } = self.tally;
        Counters {
            bytes: delta_bytes.saturating_sub(8 * delta) + PAGE_SIZE as u64 * overflow,
            pages: same + delta + overflow,
            cache_miss: if misses_count { whole } else { 0 },
            overflow,
            handled: self.tally.pages(),
        }
    }
}
