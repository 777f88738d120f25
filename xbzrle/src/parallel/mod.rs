//! A batch of live pages in, records in order out, by as many threads as there are.
//!
//! [`encode`] decides for each page how it travels (not at all, as zeros, as a delta, whole), asks
//! the caller's [`RecordFormat`] for what precedes each record, and leaves the records in an [`Output`].
//! The bytes, the kinds and the cache afterwards are the same whatever the number of threads, and
//! as if the pages had been taken one after the other. Without the feature `rayon` they are.
//!
//! ```text
//! pages    12 13 14 | 300 301 | 40 …       runs of pages of one 256-page chunk: segments
//! workers  worker 0: 12 13 14 40   worker 1: 300 301     a cache shard each; one thread at a time per worker
//! output   [header][12 …14] [header][300 301] [header][40 …]
//! ```
//!
//! The header of the first record of a segment depends on the record before it, which another
//! thread makes. So these headers are laid out at the end, one per segment, and the output is a
//! list of slices: header, segment, header, segment. It can be written with one vectored send, or
//! gathered in one buffer.
//!
//! Work is done in the current rayon pool: call it inside `pool.install` for a private one. An
//! [`Output`] keeps its buffers for the next batch, and a caller that has several can send one
//! while the next is made. A batch for several threads should span many chunks, since a chunk is
//! the smallest piece of work: 16 MiB is a good size.
//!
//! ```
//! use xbzrle::parallel::{self, Body, RecordFormat, LivePage, Output, Record, Pass};
//!
//! /// The page number, then what the page became.
//! struct Plain;
//!
//! impl RecordFormat for Plain {
//!     fn header(&self, record: &Record, _after: Option<u64>, out: &mut Vec<u8>) {
//!         out.extend(record.page.to_be_bytes());
//!         match record.body {
//!             Body::Zero => out.push(b'z'),
//!             Body::Delta(len) => out.extend([b'd', (len >> 8) as u8, len as u8]),
//!             Body::Whole => out.push(b'w'),
//!         }
//!     }
//! }
//!
//! let mut cache = xbzrle::Cache::new(1 << 20)?;
//! let mut output = Output::new();
//! let mut page = [7; xbzrle::PAGE_SIZE];
//! for pass in [Pass::Fill, Pass::Delta] {
//!     page[1000] += 1;
//!     // SAFETY: `page` outlives the batch, and nobody writes to it meanwhile.
//!     let batch = [unsafe { LivePage::new(3, page.as_ptr()) }];
//!     parallel::encode(pass, Some(&mut cache), &batch, &Plain, &mut output);
//! }
//! let mut sent = Vec::new();
//! output.append_to(&mut sent);
//! assert_eq!(sent, b"\0\0\0\0\0\0\0\x03d\0\x04\xe8\x07\x01\x09");
//! # Ok::<(), xbzrle::CacheError>(())
//! ```
#![allow(unsafe_code)] // makes the live page and calls the functions that read it

mod output;
#[cfg(test)]
mod tests;
mod worker;

use std::marker::PhantomData;

pub use output::{Output, Tally};

use crate::Cache;
use crate::cache::{CHUNK_PAGES, Shard, Stamp};
use worker::Worker;

/// Workers of a batch that is encoded without the cache.
const WORKERS: usize = 16;

/// The fewest pages worth a worker: below, waking a thread costs more than it brings.
const WORKER_PAGES_MIN: usize = 32;

/// A page of memory that a guest may be writing.
#[derive(Clone, Copy, Debug)]
pub struct LivePage<'m> {
    number: u64,
    at: *const u8,
    memory: PhantomData<&'m ()>,
}

impl<'m> LivePage<'m> {
    /// Page `number`, whose bytes are at `at`.
    ///
    /// # Safety
    ///
    /// * `at` is valid for reads of [`PAGE_SIZE`](crate::PAGE_SIZE) bytes, from any thread, for
    ///   `'m`.
    /// * It is not memory of a cache or an output.
    /// * Writers in this process use atomic or volatile stores, or none while `'m` lasts; guests
    ///   and devices may write at any time.
    pub unsafe fn new(number: u64, at: *const u8) -> LivePage<'m> {
        LivePage { number, at, memory: PhantomData }
    }

    /// The page number: the key in the cache.
    pub fn number(self) -> u64 {
        self.number
    }
}

// SAFETY: `LivePage::new` asks for memory that any thread may read.
unsafe impl Send for LivePage<'_> {}
// SAFETY: as above; the value itself is plain data.
unsafe impl Sync for LivePage<'_> {}

/// What a pass over memory does with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The first pass over everything: pages travel whole and enter no cache. An entry that exists
    /// is dropped.
    Bulk,
    /// The end of the first pass: pages found dirty again enter the cache. Misses are expected and
    /// not counted.
    Fill,
    /// Later passes: deltas for pages in the cache, the others travel whole and enter it where
    /// there is room.
    Delta,
    /// The guest is stopped: deltas as before, nothing new enters the cache.
    Last,
}

/// How a page travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// As zeros.
    Zero,
    /// Not at all: the receiver has these bytes.
    Same,
    /// As a delta.
    Delta,
    /// Whole: it was not in the cache.
    Whole,
    /// Whole: it was in the cache, and the delta did not fit.
    Overflow,
}

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: the page is zero.
    Zero,
    /// A delta of so many bytes.
    Delta(usize),
    /// The page.
    Whole,
}

/// One record to be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The page number.
    pub page: u64,
    /// What it became.
    pub body: Body,
}

/// The form of records on the wire.
pub trait RecordFormat: Sync {
    /// Appends what precedes the body of `record`; for a zero page, all of it. `after` is the page
    /// of the record before it in this batch (pages that did not travel are not records), `None`
    /// for the batch's first.
    ///
    /// Called by several threads, and not in the order of the records.
    fn header(&self, record: &Record, after: Option<u64>, out: &mut Vec<u8>);
}

/// Encodes `pages` in order into `output`, whose earlier content is dropped.
///
/// No page may occur twice in a batch. Batches of one pass over memory go upwards (a batch that
/// begins at or below the end of the one before begins a new pass for [what the cache
/// keeps](crate::cache#what-is-kept)). A page is read once the call has begun, so its dirty bit
/// must have been cleared before.
///
/// With a cache, its entries are afterwards what the receiver holds **once it has been sent the
/// whole output**. If a part is not handed over, give its pages to [`Cache::forget`]. Statistics of
/// the cache are kept up to date. Without one, every pass is like [`Pass::Bulk`].
pub fn encode<L: RecordFormat + ?Sized>(
    pass: Pass,
    cache: Option<&mut Cache>,
    pages: &[LivePage<'_>],
    format: &L,
    output: &mut Output,
) {
    output.clear();
    match cache {
        None => encode_whole(pages, format, output),
        Some(cache) if pass == Pass::Bulk => {
            if !cache.is_empty() {
                cache.forget(pages.iter().map(|page| page.number));
            }
            encode_whole(pages, format, output);
            cache.counters_mut().handled += pages.len() as u64;
        }
        Some(cache) => {
            encode_with_cache(pass, cache, pages, format, output);
            *cache.counters_mut() += output.counters(pass != Pass::Fill);
        }
    }
}

/// Without a cache any split will do: equal parts.
fn encode_whole<L: RecordFormat + ?Sized>(pages: &[LivePage<'_>], format: &L, output: &mut Output) {
    let workers = (pages.len() / WORKER_PAGES_MIN).clamp(1, WORKERS);
    output.prepare(workers);
    for worker in 0..workers {
        output.assign(worker, worker * pages.len() / workers..(worker + 1) * pages.len() / workers);
    }
    let jobs = output
        .workers_mut()
        .map(|worker| Job { worker, shard: None, pass: Pass::Bulk, stamp: Stamp::FIRST })
        .collect();
    run(jobs, pages, format);
    output.seal(format);
}

/// With a cache, a worker is a shard: threads that have different workers use different sets.
fn encode_with_cache<L: RecordFormat + ?Sized>(
    pass: Pass,
    cache: &mut Cache,
    pages: &[LivePage<'_>],
    format: &L,
    output: &mut Output,
) {
    output.prepare(cache.shards());
    let mut start = 0;
    for segment in pages.chunk_by(|a, b| a.number / CHUNK_PAGES == b.number / CHUNK_PAGES) {
        let end = start + segment.len();
        output.assign(cache.shard_index(segment[0].number), start..end);
        start = end;
    }
    if let (Some(first), Some(last)) = (pages.first(), pages.last()) {
        cache.scan(first.number, last.number);
    }
    let stamp = cache.tick(pages.len() as u64);
    let jobs = output
        .workers_mut()
        .zip(cache.shards_mut())
        .filter(|(worker, _)| worker.has_work())
        .map(|(worker, shard)| Job { worker, shard: Some(shard), pass, stamp })
        .collect();
    run(jobs, pages, format);
    output.seal(format);
}

/// What one thread does at a time.
struct Job<'b> {
    worker: &'b mut Worker,
    shard: Option<Shard<'b>>,
    pass: Pass,
    /// The stamp of the batch's first page.
    stamp: Stamp,
}

impl Job<'_> {
    fn run<L: RecordFormat + ?Sized>(&mut self, pages: &[LivePage<'_>], format: &L) {
        self.worker.encode(self.pass, self.shard.as_mut(), self.stamp, pages, format);
    }
}

fn run<L: RecordFormat + ?Sized>(mut jobs: Vec<Job<'_>>, pages: &[LivePage<'_>], format: &L) {
    #[cfg(feature = "rayon")]
    if jobs.len() > 1 && pages.len() >= 2 * WORKER_PAGES_MIN && rayon::current_num_threads() > 1 {
        use rayon::prelude::*;
        jobs.par_iter_mut().with_max_len(1).for_each(|job| job.run(pages, format));
        return;
    }
    jobs.iter_mut().for_each(|job| job.run(pages, format));
}
