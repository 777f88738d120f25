//! What comes before sending: the dirty bits of a chunk are cleared, then its holes and its pages
//! of zeros are found.
//!
//! Touching a page for the first time costs about as much as sending it: its first line comes from
//! memory, and a page of a file has to be mapped. So where there is much to scan, a thread of its
//! own does it, some chunks ahead of the one that sends.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;

use super::Error;
use super::round::Round;
use crate::memory::PageSet;
use crate::pages::{CHUNK_PAGES, ChunkMask, PageSource, and, and_not, chunk_of, or};

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
pub struct ScannedChunk {
    pub chunk: u64,
    /// Pages that read as zero: holes, and all others of which that is known.
    pub zeros: ChunkMask,
    /// The others.
    pub data: ChunkMask,
}

impl ScannedChunk {
    pub fn pages(&self) -> ChunkMask {
        or(&self.zeros, &self.data)
    }
}

/// Scans `chunks` of a block, and hands each to `send` that has anything to send, in order.
pub fn each_chunk(
    round: &Round<'_>,
    source: &mut PageSource,
    pages: &PageSet,
    chunks: impl Iterator<Item = u64> + Send,
    mut send: impl FnMut(&PageSource, ScannedChunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut own = source.another();
    let mut scan = Scan { round, source: &mut own, pages, chunks, opened: VecDeque::new() };
    if pages.count() < AHEAD_PAGES_MIN || round.channels > 1 {
        return scan.try_for_each(|scanned| send(source, scanned?));
    }
    let (ahead, scanned) = mpsc::sync_channel(CHUNKS_AHEAD);
    let sent = thread::scope(|scope| {
        let scan = &mut scan;
        // Ends with its chunks, after an error, or when nobody sends any more.
        let scan = move || {
            for scanned in scan {
                let failed = scanned.is_err();
                if ahead.send(scanned).is_err() || failed {
                    break;
                }
            }
        };
        thread::Builder::new().name("scan".into()).spawn_scoped(scope, scan).ok()?;
        Some(scanned.into_iter().try_for_each(|scanned| send(source, scanned?)))
    });
    // A host without a thread to spare: nothing was scanned yet.
    sent.unwrap_or_else(|| scan.try_for_each(|scanned| send(source, scanned?)))
}

/// Chunks being scanned.
struct Scan<'a, I> {
    round: &'a Round<'a>,
    source: &'a mut PageSource,
    pages: &'a PageSet,
    chunks: I,
    opened: VecDeque<Opened>,
}

/// A chunk whose dirty bits are cleared and whose holes are known.
struct Opened {
    chunk: u64,
    holes: ChunkMask,
    filled: ChunkMask,
}

impl<I: Iterator<Item = u64>> Scan<'_, I> {
    /// Opens the next chunk that has anything to send. False if there is none.
    fn open(&mut self) -> Result<bool, Error> {
        for chunk in self.chunks.by_ref() {
            if let Some((mask, data)) = open_chunk(self.round, self.source, self.pages, chunk)? {
                let (holes, filled) = (and_not(&mask, &data), and(&mask, &data));
                self.opened.push_back(Opened { chunk, holes, filled });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `None` after the last chunk.
    fn scan(&mut self) -> Result<Option<ScannedChunk>, Error> {
        // After the first round all that was sent is mapped.
        let maps = self.round.redirtied.is_some() && self.source.may_be_unmapped();
        let ahead = if maps { CHUNKS_MAPPED_AHEAD } else { 0 };
        while self.opened.len() <= ahead && self.open()? {
            if let (true, Some(Opened { chunk, filled, .. })) = (maps, self.opened.back()) {
                self.source.map(*chunk, filled);
            }
        }
        let Some(Opened { chunk, holes, filled }) = self.opened.pop_front() else {
            return Ok(None);
        };
        let zeros =
            if self.round.detect_zeros { self.source.zero_mask(chunk, &filled) } else { [0; 4] };
        self.source.check()?;
        Ok(Some(ScannedChunk { chunk, zeros: or(&holes, &zeros), data: and_not(&filled, &zeros) }))
    }
}

impl<I: Iterator<Item = u64>> Iterator for Scan<'_, I> {
    type Item = Result<ScannedChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.scan().transpose()
    }
}

/// The chunk's pages to send, cleared, and which of them may hold data. `None`: all were put off.
pub(super) fn open_chunk(
    round: &Round<'_>,
    source: &mut PageSource,
    pages: &PageSet,
    chunk: u64,
) -> Result<Option<(ChunkMask, ChunkMask)>, Error> {
    let mut mask = chunk_of(pages, chunk);
    let logged = source.index() == 0;
    match round.redirtied {
        Some(redirtied) if logged => {
            let put_off = and(&mask, &redirtied.mask(round.log, chunk)?);
            mask = and_not(&mask, &put_off);
        }
        Some(_) => {}
        None if logged => {
            let start = chunk * CHUNK_PAGES;
            round.log.clear(pages, start..(start + CHUNK_PAGES).min(source.pages()))?;
        }
        None => {}
    }
    if mask == [0; 4] {
        return Ok(None);
    }
    let data = source.data_mask(chunk)?;
    Ok(Some((mask, data)))
}
