//! A worker: the segments of a batch that one thread encodes, and what came of them.

use std::ops::Range;

use super::output::Tally;
use super::{Body, Kind, LivePage, Pass, Record, RecordFormat};
use crate::cache::{Page, Shard, Stamp};
use crate::{Ahead, Outcome, PAGE_SIZE};

/// Pages of a batch, and the records made of them. Buffers are kept for the next batch.
#[derive(Debug)]
pub(super) struct Worker {
    /// Positions in the batch.
    work: Vec<Range<usize>>,
    pub done: Vec<Segment>,
    pub kinds: Vec<Kind>,
    pub tally: Tally,
    buffer: Buffer,
    header: Vec<u8>,
    delta: Page,
}

/// The records of one segment.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// How many pages it was.
    pub pages: usize,
    /// Where its records are in the worker's buffer, without the header of the first.
    pub bytes: Range<usize>,
    /// The first record, still without a header, and the page of the last one; none if no page
    /// travelled.
    pub ends: Option<(Record, u64)>,
}

/// A vector that is never shrunk, so that room once used is not zeroed again.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Worker {
    pub(super) fn new() -> Worker {
        Worker {
            work: Vec::new(),
            done: Vec::new(),
            kinds: Vec::new(),
            tally: Tally::default(),
            buffer: Buffer::default(),
            header: Vec::new(),
            delta: [0; PAGE_SIZE],
        }
    }

    pub(super) fn clear(&mut self) {
        self.work.clear();
        self.done.clear();
        self.kinds.clear();
        self.tally = Tally::default();
        self.buffer.used = 0;
    }

    pub(super) fn assign(&mut self, positions: Range<usize>) {
        self.work.push(positions);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer.bytes[range]
    }

    pub(super) fn encode<L: RecordFormat + ?Sized>(
        &mut self,
        pass: Pass,
        mut shard: Option<&mut Shard<'_>>,
        stamp: Stamp,
        pages: &[LivePage<'_>],
        format: &L,
    ) {
        for segment in 0..self.work.len() {
            let positions = self.work[segment].clone();
            self.done.push(Segment {
                pages: positions.len(),
                bytes: self.buffer.used..self.buffer.used,
                ends: None,
            });
            for position in positions.clone() {
                let page = &pages[position];
                let next = pages[..positions.end].get(position + 1);
                let kind = match shard.as_deref_mut() {
                    None => self.without_cache(page, format),
                    Some(shard) => self.with_cache(
                        pass,
                        shard,
                        stamp.later(position as u64),
                        page,
                        next,
                        format,
                    ),
                };
                self.tally.count(kind);
                self.kinds.push(kind);
            }
            self.segment().bytes.end = self.buffer.used;
        }
    }

    fn without_cache<L: RecordFormat + ?Sized>(&mut self, page: &LivePage<'_>, format: &L) -> Kind {
        if is_zero(page) {
            self.head(page, Body::Zero, format);
            return Kind::Zero;
        }
        self.head(page, Body::Whole, format);
        copy(self.buffer.page(), page);
        Kind::Whole
    }

    fn with_cache<L: RecordFormat + ?Sized>(
        &mut self,
        pass: Pass,
        shard: &mut Shard<'_>,
        stamp: Stamp,
        page: &LivePage<'_>,
        next: Option<&LivePage<'_>>,
        format: &L,
    ) -> Kind {
        let zero = is_zero(page);
        let ahead = next.and_then(|next| {
            shard.peek(next.number).map(|cached| Ahead { cached: cached.as_ptr(), live: next.at })
        });
        if let Some(entry) = shard.hit(page.number, stamp) {
            return if zero {
                self.zero_hit(entry, page, format)
            } else {
                self.hit(entry, page, ahead, format)
            };
        }
        let entry = if pass == Pass::Last { None } else { shard.admit(page.number, stamp) };
        let Some(entry) = entry else { return self.without_cache(page, format) };
        if zero {
            entry.fill(0);
            self.head(page, Body::Zero, format);
            return Kind::Zero;
        }
        // What was read into the entry is what is sent: one reading of live memory, not two.
        copy(entry, page);
        self.head(page, Body::Whole, format);
        *self.buffer.page() = *entry;
        Kind::Whole
    }

    fn zero_hit<L: RecordFormat + ?Sized>(
        &mut self,
        entry: &mut Page,
        page: &LivePage<'_>,
        format: &L,
    ) -> Kind {
        if crate::is_zero(entry) {
            return Kind::Same;
        }
        entry.fill(0);
        self.head(page, Body::Zero, format);
        Kind::Zero
    }

    fn hit<L: RecordFormat + ?Sized>(
        &mut self,
        entry: &mut Page,
        page: &LivePage<'_>,
        ahead: Option<Ahead>,
        format: &L,
    ) -> Kind {
        // SAFETY: whoever made the LivePage promised that it can be read and is not the cache's or
        // the worker's.
        let outcome = unsafe {
            match ahead {
                Some(ahead) => crate::encode_live_ahead(entry, page.at, &mut self.delta, ahead),
                None => crate::encode_live(entry, page.at, &mut self.delta),
            }
        };
        match outcome {
            Outcome::Unchanged => Kind::Same,
            Outcome::Delta(len) => {
                self.head(page, Body::Delta(len), format);
                self.buffer.push(&self.delta[..len]);
                Kind::Delta
            }
            Outcome::TooLong => {
                self.head(page, Body::Whole, format);
                *self.buffer.page() = *entry;
                Kind::Overflow
            }
        }
    }

    /// Begins a record: lays out its header, or puts that off if it is the segment's first.
    fn head<L: RecordFormat + ?Sized>(&mut self, page: &LivePage<'_>, body: Body, format: &L) {
        let record = Record { page: page.number, body };
        let Some((_, last)) = &mut self.segment().ends else {
            self.segment().ends = Some((record, page.number));
            return;
        };
        let after = std::mem::replace(last, page.number);
        self.header.clear();
        format.header(&record, Some(after), &mut self.header);
        self.tally.record(&record, self.header.len());
        self.buffer.push(&self.header);
    }

    fn segment(&mut self) -> &mut Segment {
        self.done.last_mut().expect("encode begins with a segment")
    }
}

impl Buffer {
    fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    fn page(&mut self) -> &mut Page {
        self.room(PAGE_SIZE).try_into().expect("the room has the asked size")
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.used;
        self.used += len;
        if self.bytes.len() < self.used {
            self.bytes.resize((2 * self.bytes.len()).max(self.used + 16 * PAGE_SIZE), 0);
        }
        &mut self.bytes[start..self.used]
    }
}

fn is_zero(page: &LivePage<'_>) -> bool {
    // SAFETY: whoever made the LivePage promised that it can be read.
    unsafe { crate::is_zero_live(page.at, PAGE_SIZE) }
}

fn copy(to: &mut Page, page: &LivePage<'_>) {
    // SAFETY: whoever made the LivePage promised that it can be read and is not the cache's or the
    // worker's.
    unsafe { crate::copy_live(to, page.at) }
}
