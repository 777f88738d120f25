//! What comes before sending: the dirty bits of a chunk are cleared, then its holes and its pages
//! of zeros are found.
//!
//! Touching a page for the first time costs about as much as sending it: its first line comes from
//! memory, and a page of a file has to be mapped. So where there is much to scan, a thread of its
//! own does it, some chunks ahead of the one that sends.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc;
use std::thread::{Builder, Scope};

use super::error::Error;
use super::round::Round;
use crate::memory::PageSet;
use crate::pages::{CHUNK_PAGES, ChunkMask, PageSource, and, and_not, chunk_of, mask_ranges, or};

/// Chunks that are scanned before they are wanted: enough that neither thread waits for the other
/// each time, and no more, because what the guest writes to a page after it was scanned is sent
/// again in the next round.
const CHUNKS_AHEAD: usize = 4;
/// Chunks whose pages are mapped before the first of them is read: a page of a file that is read
/// right after it was mapped costs the processor 15 times what it does some MiB later (measured on
/// tmpfs, Zen 5).
const CHUNKS_MAPPED_AHEAD: usize = 4;
/// With fewer pages (16 MiB) a thread is not worth being started; the rounds before the hand-over
/// are smaller.
const AHEAD_PAGES_MIN: u64 = 16 * CHUNK_PAGES;

/// A chunk whose pages may be sent now.
pub(super) struct ScannedChunk {
    pub chunk: u64,
    /// Pages that read as zero: holes, and all others of which that is known.
    pub zeros: ChunkMask,
    /// The others.
    pub data: ChunkMask,
}

impl ScannedChunk {
    /// Pages of the chunk by their place in the block, in maximal ranges.
    pub(super) fn ranges(&self, mask: &ChunkMask) -> impl Iterator<Item = Range<u64>> + use<> {
        let (base, mask) = (self.chunk * CHUNK_PAGES, *mask);
        mask_ranges(mask).map(move |range| base + range.start..base + range.end)
    }
}

/// The chunks of a round that have anything to send in a block, in order: scanned as they are asked
/// for, or by a thread of `scope`. With `deltas` the encoder finds the pages of zeros.
pub(super) fn chunks<'s>(
    scope: &'s Scope<'s, '_>,
    round: &'s Round<'s>,
    mut source: PageSource,
    pages: &'s PageSet,
    numbers: impl Iterator<Item = u64> + Clone + Send + 's,
    deltas: bool,
) -> Box<dyn Iterator<Item = Result<ScannedChunk, Error>> + 's> {
    let start = |source: PageSource| {
        // After the first round all that was sent is mapped.
        let maps = round.redirtied.is_some() && source.may_be_unmapped();
        let finds_zeros = round.detect_zeros && !deltas;
        let (chunks, opened) = (numbers.clone(), VecDeque::new());
        let mut scan = Scan { round, source, pages, chunks, maps, finds_zeros, opened };
        std::iter::from_fn(move || scan.next().transpose())
    };
    if pages.count() >= AHEAD_PAGES_MIN && round.channels == 1 && !deltas {
        let (ahead, scanned) = mpsc::sync_channel(CHUNKS_AHEAD);
        let scan = start(source.another());
        // Ends with its chunks, after an error, or when nobody sends any more.
        let job = move || {
            for chunk in scan {
                let failed = chunk.is_err();
                if ahead.send(chunk).is_err() || failed {
                    break;
                }
            }
        };
        if Builder::new().name("scan".into()).spawn_scoped(scope, job).is_ok() {
            return Box::new(scanned.into_iter());
        }
        // A host without a thread to spare: nothing was scanned yet.
    }
    Box::new(start(source))
}

/// Chunks being scanned.
struct Scan<'a, I> {
    round: &'a Round<'a>,
    source: PageSource,
    pages: &'a PageSet,
    chunks: I,
    maps: bool,
    finds_zeros: bool,
    /// Their dirty bits are cleared and their holes known.
    opened: VecDeque<ScannedChunk>,
}

impl<I: Iterator<Item = u64>> Scan<'_, I> {
    /// Clears dirty bits, then asks for holes, then reads. `None` after the last chunk.
    fn next(&mut self) -> Result<Option<ScannedChunk>, Error> {
        let (round, ahead) = (self.round, if self.maps { CHUNKS_MAPPED_AHEAD } else { 0 });
        while self.opened.len() <= ahead
            && let Some(chunk) = self.chunks.next()
        {
            let mut wanted = chunk_of(self.pages, chunk);
            let logged = self.source.index() == 0;
            if let Some(redirtied) = round.redirtied.filter(|_| logged) {
                wanted = and_not(&wanted, &redirtied.mask(round.log, chunk)?);
            }
            let asked = round.free.filter(|_| logged);
            let free = asked.map_or([0; 4], |asked| asked.take(chunk, &wanted, round.counters));
            wanted = and_not(&wanted, &free);
            // The bits of free pages stay as they are, and the others were cleared before the guest
            // was asked.
            if logged && round.redirtied.is_none() && free == [0; 4] {
                let start = chunk * CHUNK_PAGES;
                let end = (start + CHUNK_PAGES).min(self.source.pages());
                round.log.clear(self.pages, start..end)?;
            }
            let free = if asked.is_some_and(|asked| asked.left_out) { [0; 4] } else { free };
            if or(&wanted, &free) == [0; 4] {
                // All were put off, or are free.
                continue;
            }
            let data = self.source.data_mask(chunk)?;
            let (zeros, data) = (or(&and_not(&wanted, &data), &free), and(&wanted, &data));
            if self.maps {
                self.source.map(chunk, &data);
            }
            self.opened.push_back(ScannedChunk { chunk, zeros, data });
        }
        let Some(mut scanned) = self.opened.pop_front() else { return Ok(None) };
        if self.finds_zeros {
            let zeros = self.source.zero_mask(scanned.chunk, &scanned.data);
            scanned.zeros = or(&scanned.zeros, &zeros);
            scanned.data = and_not(&scanned.data, &zeros);
        }
        self.source.check()?;
        Ok(Some(scanned))
    }
}
