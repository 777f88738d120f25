//! The page cache: what the receiver holds, page by page, so that a change can be sent as a delta.
//!
//! 8-way set-associative, least recently used, keyed by page number. Sets are grouped in shards by
//! aligned 256-page chunk, so that threads working on different shards never share a set, and every
//! result is the same whatever the number of threads: recency is counted in pages looked up, not in
//! time or by thread.
//!
//! **The rule.** An entry equals what the receiver holds after everything sent so far, or does not
//! exist:
//!
//! - a page whose bytes leave in another way than from its entry has its entry removed *first*
//!   ([`Cache::remove`]);
//! - a record that was encoded but not handed over has its entry removed ([`Cache::forget`]),
//!   because encoding in place has already moved the entry ahead of the receiver;
//! - the cache lives and dies with one connection.
//!
//! # What is kept
//!
//! [`Cache::insert`] makes room by dropping the least recently used page of the set. A migration
//! uses [`Cache::admit`], since it meets dirty pages in the order of their addresses, pass after
//! pass: when one pass finds more of them than fit, least-recently-used drops each page just before
//! its turn comes again, and nothing is ever found. So a page is given up for another only when it
//! is overdue: not dirty in more passes than it was found in the cache before (three at most; every
//! other page starts with one). The most overdue goes first, the oldest of several; if none is
//! overdue, the new page is not cached. The table `cache-table` of `bench` compares this with full
//! least-recently-used and with the peer's policy (direct-mapped, two passes).
//!
//! # Memory
//!
//! The pages are one anonymous mapping (huge pages advised), the tags and stamps another: 16 bytes
//! a page, 0.4 %. Both are touched only when used, so a large cache costs its memory only as it
//! fills.
//!
//! ```
//! use xbzrle::{Cache, PAGE_SIZE};
//!
//! let mut cache = Cache::new(1 << 20)?;
//! assert_eq!(cache.capacity_pages(), 256);
//! *cache.insert(7) = [1; PAGE_SIZE]; // sent whole
//! assert_eq!(cache.get(7), Some(&mut [1; PAGE_SIZE])); // may be sent as a delta
//! assert_eq!(cache.get(8), None);
//! # Ok::<(), xbzrle::CacheError>(())
//! ```

mod error;
mod geometry;
mod set;
mod shard;
mod slab;
mod stats;
#[cfg(test)]
mod tests;

pub use error::CacheError;
pub use geometry::CHUNK_PAGES;
pub(crate) use geometry::SHARDS_MAX;
pub use stats::{Counters, Stats};

use crate::PAGE_SIZE;
use geometry::Geometry;
use set::Set;
pub(crate) use set::Stamp;
pub(crate) use shard::Shard;
use slab::Slab;

/// One page of memory.
pub type Page = [u8; PAGE_SIZE];

/// A cache of pages by page number. See the [module](self) for the rule that its user keeps.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    sets: Slab,
    pages: Slab,
    /// Entries per shard.
    used: Vec<usize>,
    /// The stamp of the next lookup.
    clock: Stamp,
    /// The last page of the last batch, to see when a new pass begins.
    scanned: Option<u64>,
    counters: Counters,
    period: stats::Period,
}

impl Cache {
    /// An empty cache of at most `bytes` bytes of pages: the largest power of two of pages that
    /// fits.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] when not one page fits, [`CacheError::Memory`] when the kernel
    /// refuses the mapping.
    pub fn new(bytes: u64) -> Result<Cache, CacheError> {
        let geometry = Geometry::for_bytes(bytes)?;
        Ok(Cache {
            // The large mapping first: an error names the size of the pages.
            pages: Slab::new_huge(geometry.pages() as u64 * PAGE_SIZE as u64)?,
            sets: Slab::new(geometry.sets() as u64 * size_of::<Set>() as u64)?,
            used: vec![0; geometry.shards()],
            clock: Stamp::FIRST,
            scanned: None,
            counters: Counters::default(),
            period: stats::Period::default(),
            geometry,
        })
    }

    /// How many pages fit.
    pub fn capacity_pages(&self) -> usize {
        self.geometry.pages()
    }

    /// The size of the page slab in bytes: what `cache-size` reports.
    pub fn size_bytes(&self) -> u64 {
        self.capacity_pages() as u64 * PAGE_SIZE as u64
    }

    /// What the cache needs beside its pages, in bytes.
    pub fn metadata_bytes(&self) -> usize {
        self.sets.len() + self.used.len() * size_of::<usize>() + size_of::<Cache>()
    }

    /// The pages held now.
    pub fn len(&self) -> usize {
        self.used.iter().sum()
    }

    /// Whether no page is held.
    pub fn is_empty(&self) -> bool {
        self.used.iter().all(|&used| used == 0)
    }

    /// Whether `page` is held. Changes nothing.
    pub fn contains(&self, page: u64) -> bool {
        self.find(page).is_some()
    }

    /// The entry of `page`, without making it more recent.
    pub fn peek(&self, page: u64) -> Option<&Page> {
        let slot = self.find(page)?;
        let (pages, _) = self.pages.bytes().as_chunks::<PAGE_SIZE>();
        Some(&pages[slot])
    }

    /// The entry of `page`, which becomes the most recent one. What is written here must be what is
    /// sent.
    pub fn get(&mut self, page: u64) -> Option<&mut Page> {
        let stamp = self.tick(1);
        self.shard_of(page).into_hit(page, stamp)
    }

    /// The entry of `page` as the most recent one, in place of the least recent of its set when it
    /// is new. The bytes are then arbitrary: the caller fills in what it sends.
    pub fn insert(&mut self, page: u64) -> &mut Page {
        let stamp = self.tick(1);
        self.shard_of(page).into_slot(page, stamp)
    }

    /// As [`Cache::insert`], but `None` when every page of the set deserves its place more: see
    /// [the policy](self#what-is-kept).
    pub fn admit(&mut self, page: u64) -> Option<&mut Page> {
        let stamp = self.tick(1);
        self.shard_of(page).into_admitted(page, stamp)
    }

    /// Begins a new pass over memory. [`crate::parallel::encode`] sees by itself where one begins.
    pub fn begin_pass(&mut self) {
        self.clock = self.clock.next_pass();
        self.scanned = None;
    }

    /// Drops the entry of `page`; returns whether there was one.
    pub fn remove(&mut self, page: u64) -> bool {
        self.shard_of(page).remove(page)
    }

    /// Drops the entries of pages whose records were encoded but not handed over.
    pub fn forget(&mut self, pages: impl IntoIterator<Item = u64>) {
        pages.into_iter().for_each(|page| {
            self.remove(page);
        });
    }

    /// Drops every entry and gives the memory back. Statistics stay.
    pub fn clear(&mut self) {
        self.sets.discard();
        self.pages.discard();
        self.used.fill(0);
    }

    /// Changes the capacity to the largest power of two of pages within `bytes`. Of the pages that
    /// compete for one new set the most recent ones stay; when the cache grows from one set size to
    /// the next that is all of them, unless their new set is full.
    ///
    /// # Errors
    /// As [`Cache::new`]; the cache is then as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), CacheError> {
        if Geometry::for_bytes(bytes)? == self.geometry {
            return Ok(());
        }
        let mut new = Cache::new(bytes)?;
        (new.clock, new.scanned) = (self.clock, self.scanned);
        (new.counters, new.period) = (self.counters, self.period);
        let old_geometry = self.geometry;
        let old_sets = self.sets.sets();
        for set in old_sets {
            set.entries().for_each(|(page, stamp)| new.shard_of(page).offer(page, stamp));
        }
        // The slab is read in order and given back behind us: the peak is the larger of the two,
        // not their sum.
        let mut released = 0;
        for slot in 0..old_geometry.pages() {
            let (set, way) = old_geometry.slot_owner(slot);
            if let Some((page, _)) = self.sets.sets()[set].entry(way) {
                let (from, _) = self.pages.bytes().as_chunks::<PAGE_SIZE>();
                new.shard_of(page).fill(page, &from[slot]);
            }
            if (slot + 1).is_multiple_of(slab::RELEASE_BYTES / PAGE_SIZE) {
                let end = (slot + 1) * PAGE_SIZE;
                self.pages.discard_range(released..end);
                released = end;
            }
        }
        *self = new;
        Ok(())
    }

    /// Everything counted so far, with the rates of the last finished period.
    pub fn stats(&self) -> Stats {
        Stats::new(self.size_bytes(), self.counters, self.period)
    }

    /// The counters, for users that encode with the cache by hand; [`crate::parallel`] counts by
    /// itself.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Ends a period of the statistics: recomputes `cache-miss-rate` and `encoding-rate` over what
    /// was counted since the last call. The peer does so at a bitmap sync more than a second after
    /// the last.
    pub fn end_period(&mut self) {
        self.period = self.period.next(self.counters);
    }

    /// Takes `lookups` stamps, the first of which is returned.
    pub(crate) fn tick(&mut self, lookups: u64) -> Stamp {
        let stamp = self.clock;
        self.clock = stamp.later(lookups);
        stamp
    }

    /// Notes that pages from `first` to `last` come next. Passes are made upwards, so a batch that
    /// begins at or below the end of the one before begins a new pass.
    pub(crate) fn scan(&mut self, first: u64, last: u64) {
        if self.scanned.is_some_and(|before| first <= before) {
            self.begin_pass();
        }
        self.scanned = Some(last);
    }

    pub(crate) fn shards(&self) -> usize {
        self.geometry.shards()
    }

    /// The shard that `page`, and its whole aligned chunk, belongs to.
    pub(crate) fn shard_index(&self, page: u64) -> usize {
        self.geometry.place(page).shard
    }

    /// All shards at once, each for one thread.
    pub(crate) fn shards_mut(&mut self) -> impl ExactSizeIterator<Item = Shard<'_>> {
        let geometry = self.geometry;
        let sets = self.sets.sets_mut().chunks_exact_mut(geometry.shard_sets());
        let (pages, _) = self.pages.bytes_mut().as_chunks_mut::<PAGE_SIZE>();
        let pages = pages.chunks_exact_mut(geometry.shard_pages());
        sets.zip(pages)
            .zip(&mut self.used)
            .map(move |((sets, pages), used)| Shard::new(geometry, sets, pages, used))
    }

    fn shard_of(&mut self, page: u64) -> Shard<'_> {
        let (geometry, shard) = (self.geometry, self.shard_index(page));
        let sets =
            &mut self.sets.sets_mut()[shard * geometry.shard_sets()..][..geometry.shard_sets()];
        let (pages, _) = self.pages.bytes_mut().as_chunks_mut::<PAGE_SIZE>();
        let pages = &mut pages[shard * geometry.shard_pages()..][..geometry.shard_pages()];
        Shard::new(geometry, sets, pages, &mut self.used[shard])
    }

    /// The slot of `page` in the slab.
    fn find(&self, page: u64) -> Option<usize> {
        let place = self.geometry.place(page);
        let way =
            self.sets.sets()[self.geometry.shard_sets() * place.shard + place.set].find(page)?;
        Some(
            self.geometry.shard_pages() * place.shard
                + way * self.geometry.shard_sets()
                + place.set,
        )
    }
}
