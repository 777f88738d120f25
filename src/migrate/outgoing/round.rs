//! A round: what is sent in it, and the pages that are dirtied again during the first.

use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use xbzrle::parallel::Pass;

use super::error::Error;
use super::framing::ZeroRules;
use crate::memory::{Hints, PageSet};
use crate::migrate::guest::DirtyLog;
use crate::migrate::progress::Counters;
use crate::pages::{CHUNK_PAGES, ChunkMask, and, chunk_of, count, mask_ranges};

/// How often the first round looks which pages were dirtied again.
const REDIRTIED_PERIOD: Duration = Duration::from_millis(20);

/// What a channel sends in one round, shared by all channels.
pub(super) struct Round<'a> {
    /// Pages by block.
    pub pages: &'a [PageSet],
    pub pass: Pass,
    pub log: &'a dyn DirtyLog,
    /// The first round: everything was cleared beforehand, and pages found dirty again are left for
    /// the next round.
    pub redirtied: Option<&'a Redirtied<'a>>,
    /// The guest was asked for free pages, when the bits of all that is sent had been cleared.
    pub free: Option<&'a FreePages<'a>>,
    pub counters: &'a Counters,
    pub pool: &'a ThreadPool,
    pub detect_zeros: bool,
    pub zeros: ZeroRules,
    pub channels: u64,
    pub guest_runs: bool,
}

impl Round<'_> {
    /// Chunks of channel `index` that have members in `pages`. The first round starts in the middle
    /// of the block: which pages are busy shows while it runs, and what it sends at its beginning
    /// it sends blindly. Small kernels and their heaps lie low, large guests allocate from the top.
    pub(super) fn chunks<'p>(
        &self,
        index: u64,
        pages: &'p PageSet,
    ) -> impl Iterator<Item = u64> + Clone + Send + use<'p> {
        let channels = self.channels;
        let chunks = (pages.words().len() as u64).div_ceil(CHUNK_PAGES / 64);
        let first = if self.pass == Pass::Bulk { chunks / 2 } else { 0 };
        (first..chunks)
            .chain(0..first)
            .filter(move |chunk| chunk % channels == index && chunk_of(pages, *chunk) != [0; 4])
    }
}

/// Pages dirtied again during the first round. They are not sent in it: they would only be sent
/// twice. What they say of the guest is told as soon as it is known.
pub(super) struct Redirtied<'a> {
    pages: RwLock<PageSet>,
    harvested: RwLock<Instant>,
    /// Hears how many there are, each time more were looked for.
    found: Box<dyn Fn(u64) + Send + Sync + 'a>,
}

impl<'a> Redirtied<'a> {
    pub(super) fn new(bound: u64, found: impl Fn(u64) + Send + Sync + 'a) -> Self {
        let (pages, harvested) = (RwLock::new(PageSet::new(bound)), RwLock::new(Instant::now()));
        Self { pages, harvested, found: Box::new(found) }
    }

    pub(super) fn mask(&self, log: &dyn DirtyLog, chunk: u64) -> Result<ChunkMask, Error> {
        if self.harvested.read().unwrap().elapsed() >= REDIRTIED_PERIOD {
            let mut pages = self.pages.write().unwrap();
            *self.harvested.write().unwrap() = Instant::now();
            log.harvest(&mut pages)?;
            (self.found)(pages.count());
        }
        Ok(chunk_of(&self.pages.read().unwrap(), chunk))
    }

    /// All that was found.
    pub(super) fn into_pages(self) -> PageSet {
        self.pages.into_inner().unwrap()
    }
}

/// Pages that the guest named free since the round began. They are passed over, and the target has zeros
/// in their place; why that loses nothing, and that their dirty bits stay as they are for it, says
/// [`memory::hints`](crate::memory::Hints).
pub(super) struct FreePages<'a> {
    hints: &'a Hints,
    /// The target has zeros there anyway, or has to take what it has for them: nothing is said.
    pub left_out: bool,
    passed_over: Mutex<PageSet>,
}

impl<'a> FreePages<'a> {
    pub(super) fn new(hints: &'a Hints, bound: u64, left_out: bool) -> Self {
        Self { hints, left_out, passed_over: Mutex::new(PageSet::new(bound)) }
    }

    /// Those of the pages `wanted` of a chunk that need not be sent, and are not.
    pub(super) fn take(&self, chunk: u64, wanted: &ChunkMask, counters: &Counters) -> ChunkMask {
        let named: ChunkMask = self.hints.named((chunk * (CHUNK_PAGES / 64)) as usize);
        let free = and(wanted, &named);
        if free == [0; 4] {
            return free;
        }
        let mut passed_over = self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        for pages in mask_ranges(free) {
            let first = chunk * CHUNK_PAGES;
            passed_over.insert_range(first + pages.start..first + pages.end);
        }
        Counters::add(&counters.hinted, count(&free));
        if self.left_out {
            counters.settle(count(&free));
        }
        free
    }

    pub(super) fn into_pages(self) -> PageSet {
        self.passed_over.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
