//! A channel: one stream and the chunks that travel on it. A round goes through a channel's chunks
//! in order: scanned, laid out, sent batch by batch; at its end everything has been taken by the
//! kernel.
//!
//! ```text
//! pages of a chunk → holes and zeros | whole pages        first rounds, and without a cache
//!                                      sent from where they are
//!                  → holes | parallel delta encoder        with a cache, after the first round
//! ```

use std::ops::Range;
use std::thread;

use xbzrle::Cache;
use xbzrle::parallel::{self, Kind, LivePage, Output, Pass};

use super::error::Error;
use super::framing::{Framing, ZeroRules, Zeros};
use super::round::Round;
use super::scan::{self, ScannedChunk};
use crate::io::{self, Gather, Ring, Writer};
use crate::memory::{GuestRam, PAGE_BYTES};
use crate::migrate::progress::Counters;
use crate::pages::{CHUNK_PAGES, PageSource, count, or, sources};
use crate::sabotage::{self, Fault};
use crate::stream::ram::QemuRecords;

/// A batch leaves when it has this many bytes: large enough to keep the peer busy while the next is
/// prepared.
const BATCH_BYTES: usize = 1 << 20;
/// A batch leaves when it has this many pieces: two per page of a chunk, and room for the next
/// chunk's.
const BATCH_PIECES: usize = 480;
/// Pages encoded at once: 8 MiB, enough work for several threads.
const ENCODE_PAGES: usize = 2048;

pub(super) struct Channel {
    /// Position among the channels; decides which chunks are its own.
    pub index: u64,
    /// Not the main channel.
    pub is_further: bool,
    pub ring: Ring,
    pub writer: Writer,
    pub framing: Box<dyn Framing>,
    pub cache: Option<Cache>,
    sources: Vec<PageSource>,
    format: QemuRecords,
    /// Pages that wait for the encoder, all of one block.
    waiting: Vec<u64>,
    output: Output,
    /// The send being filled.
    batch: Gather,
    /// Where it goes in a file in which pages have places.
    place: Option<u64>,
    /// Bytes of the writer already counted.
    counted: u64,
}

impl Channel {
    pub(super) fn new(
        index: u64,
        is_further: bool,
        ring: Ring,
        writer: Writer,
        framing: impl Framing + 'static,
        ram: &GuestRam,
    ) -> Self {
        let blocks = ram.blocks().iter();
        Self {
            index,
            is_further,
            ring,
            writer,
            framing: Box::new(framing),
            cache: None,
            sources: sources(ram),
            format: QemuRecords::new(blocks.map(|block| (block.name(), block.pages()))),
            waiting: Vec::with_capacity(ENCODE_PAGES + CHUNK_PAGES as usize),
            output: Output::new(),
            batch: Gather::default(),
            place: None,
            counted: 0,
        }
    }

    /// Sends this channel's part of a round.
    pub(super) fn send(&mut self, round: &Round<'_>) -> Result<(), Error> {
        sabotage::panic_on(Fault::PanicInRound);
        let deltas = self.cache.is_some() && round.pass != Pass::Bulk;
        for (block, pages) in round.pages.iter().enumerate() {
            let (chunks, source) = (round.chunks(self.index, pages), self.sources[block].another());
            thread::scope(|scope| {
                for chunk in scan::chunks(scope, round, source, pages, chunks, deltas) {
                    self.lay_out(round, block, deltas, &chunk?)?;
                    if self.batch.bytes() >= BATCH_BYTES || self.batch.pieces() >= BATCH_PIECES {
                        self.flush(round.counters, round.guest_runs)?;
                    } else if self.ring.is_cancelled() {
                        // Nothing to send is no reason not to be cancelled.
                        return Err(io::Error::Cancelled.into());
                    }
                }
                Ok::<_, Error>(())
            })?;
            self.encode(round, block)?;
            self.framing.end_block(&self.sources[block], &mut self.batch)?;
        }
        self.flush(round.counters, round.guest_runs)?;
        self.finish(round.counters, round.guest_runs)
    }

    /// Lays out a chunk's pages of zeros and whole pages in ascending order. Where deltas travel,
    /// the others wait for the encoder.
    fn lay_out(
        &mut self,
        round: &Round<'_>,
        block: usize,
        deltas: bool,
        chunk: &ScannedChunk,
    ) -> Result<(), Error> {
        let source = &self.sources[block];
        let whole = if deltas { [0; 4] } else { chunk.data };
        // An entry that is not what the receiver gets now would turn later deltas into garbage.
        if let Some(cache) = &mut self.cache
            && !cache.is_empty()
        {
            let pages = chunk.ranges(&or(&chunk.zeros, &whole)).flatten();
            cache.forget(pages.map(|page| source.number(page)));
        }
        let mut zeros = chunk.ranges(&chunk.zeros).peekable();
        let mut whole = chunk.ranges(&whole).peekable();
        loop {
            if let Some(pages) =
                zeros.next_if(|zeros| whole.peek().is_none_or(|whole| zeros.start < whole.start))
            {
                Counters::add(&round.counters.duplicate, pages.end - pages.start);
                let source = &self.sources[block];
                self.framing.zeros(source, pages, round.zeros, &mut self.batch)?;
            } else if let Some(pages) = whole.next() {
                Counters::add(&round.counters.normal, pages.end - pages.start);
                if let Some(place) = self.framing.place(&self.sources[block], pages.start) {
                    self.go_on_at(round.counters, round.guest_runs, place)?;
                }
                self.framing.whole(&self.sources[block], pages, &mut self.batch)?;
            } else {
                break;
            }
        }
        if deltas {
            self.waiting.extend(chunk.ranges(&chunk.data).flatten());
            if self.waiting.len() >= ENCODE_PAGES {
                self.encode(round, block)?;
            }
        }
        round.counters.settle(count(&or(&chunk.zeros, &chunk.data)));
        Ok(())
    }

    /// Encodes the pages that wait for it, and puts their records into the send being filled.
    fn encode(&mut self, round: &Round<'_>, block: usize) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let source = &mut self.sources[block];
        let live: Vec<LivePage<'_>> = self.waiting.iter().map(|page| source.live(*page)).collect();
        for _ in 0..if sabotage::on(Fault::CacheAhead) { 2 } else { 1 } {
            let (cache, format, output) = (self.cache.as_mut(), &self.format, &mut self.output);
            round.pool.install(|| parallel::encode(round.pass, cache, &live, format, output));
        }
        self.waiting.clear();
        source.check()?;
        for kind in self.output.kinds() {
            let counter = match kind {
                Kind::Zero => &round.counters.duplicate,
                Kind::Delta => &round.counters.deltas,
                Kind::Whole | Kind::Overflow => &round.counters.normal,
                Kind::Same => continue,
            };
            Counters::add(counter, 1);
        }
        if !self.output.is_empty() {
            self.framing.deltas(&self.output, &mut self.batch);
        }
        Ok(())
    }

    /// What follows goes to `place` of the file. What is in the batch leaves before, unless it ends
    /// there.
    fn go_on_at(&mut self, counters: &Counters, guest_runs: bool, place: u64) -> Result<(), Error> {
        if self.place.is_none_or(|start| start + self.batch.bytes() as u64 != place) {
            self.flush(counters, guest_runs)?;
            self.place = Some(place);
        }
        Ok(())
    }

    /// Hands the batch to the kernel.
    fn flush(&mut self, counters: &Counters, guest_runs: bool) -> Result<(), Error> {
        self.framing.seal(&mut self.batch);
        match self.place.take() {
            None => self.writer.send(&mut self.ring, &mut self.batch)?,
            Some(place) => self.writer.send_at(&mut self.ring, &mut self.batch, place)?,
        }
        self.count(counters, guest_runs);
        Ok(())
    }

    /// Waits until the kernel has everything.
    fn finish(&mut self, counters: &Counters, guest_runs: bool) -> Result<(), Error> {
        self.writer.finish(&mut self.ring).map_err(io::Error::from)?;
        self.count(counters, guest_runs);
        Ok(())
    }

    fn count(&mut self, counters: &Counters, guest_runs: bool) {
        let fresh = self.writer.sent() - self.counted;
        self.counted += fresh;
        Counters::add(&counters.transferred, fresh);
        if self.is_further {
            Counters::add(&counters.channel_bytes, fresh);
        }
        if !guest_runs {
            Counters::add(&counters.downtime_bytes, fresh);
        }
        counters.tick();
    }

    /// Sends what the channels left to the main channel, and that they have come to the end of a
    /// round.
    pub(super) fn end_packets(&mut self, round: &Round<'_>, zeros: &[Zeros]) -> Result<(), Error> {
        for (block, pages) in zeros {
            let source = &self.sources[usize::from(*block)];
            self.framing.zeros(source, pages.clone(), round.zeros, &mut self.batch)?;
            if self.batch.bytes() >= BATCH_BYTES {
                self.flush(round.counters, round.guest_runs)?;
            }
        }
        self.framing.flush_channels(&mut self.batch);
        self.flush(round.counters, round.guest_runs)?;
        self.finish(round.counters, round.guest_runs)
    }

    /// Sends pages of a block, from page `first` on, whose bytes were copied while the guest ran on.
    /// `bytes` may be used again when this returns; [`Channel::finish_copies`] hands over the rest.
    pub(super) fn send_copies(
        &mut self,
        counters: &Counters,
        block: usize,
        first: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let (pages, _) = bytes.as_chunks::<{ PAGE_BYTES as usize }>();
        for (page, bytes) in (first..).zip(pages) {
            if xbzrle::is_zero(bytes) {
                self.send_zeros(counters, block, page..page + 1)?;
                continue;
            }
            if let Some(place) = self.framing.place(&self.sources[block], page) {
                self.go_on_at(counters, true, place)?;
            }
            self.framing.copied(&self.sources[block], page, bytes, &mut self.batch)?;
            Counters::add(&counters.normal, 1);
            counters.settle(1);
            if self.batch.bytes() >= BATCH_BYTES {
                self.flush(counters, true)?;
            }
        }
        Ok(())
    }

    /// Sends pages of a block that hold zeros.
    pub(super) fn send_zeros(
        &mut self,
        counters: &Counters,
        block: usize,
        pages: Range<u64>,
    ) -> Result<(), Error> {
        if pages.is_empty() {
            return Ok(());
        }
        Counters::add(&counters.duplicate, pages.end - pages.start);
        counters.settle(pages.end - pages.start);
        let rules = ZeroRules { on_main: false, left_out: false };
        self.framing.zeros(&self.sources[block], pages, rules, &mut self.batch)?;
        if self.batch.bytes() >= BATCH_BYTES {
            self.flush(counters, true)?;
        } else if self.ring.is_cancelled() {
            return Err(io::Error::Cancelled.into());
        }
        Ok(())
    }

    /// Hands over what is left of copied pages, and waits until the kernel has everything.
    pub(super) fn finish_copies(&mut self, counters: &Counters) -> Result<(), Error> {
        self.flush(counters, true)?;
        self.finish(counters, true)
    }

    /// Writes `bytes` at `place` of the file, of a guest that stands still.
    pub(super) fn send_bytes_at(
        &mut self,
        counters: &Counters,
        bytes: &[u8],
        place: u64,
    ) -> Result<(), Error> {
        self.batch.own().extend_from_slice(bytes);
        self.writer.send_at(&mut self.ring, &mut self.batch, place)?;
        self.writer.finish(&mut self.ring).map_err(io::Error::from)?;
        self.count(counters, false);
        Ok(())
    }

    /// Sends `bytes` as they are: what stands between rounds.
    pub(super) fn send_bytes(
        &mut self,
        counters: &Counters,
        guest_runs: bool,
        bytes: &[u8],
    ) -> Result<(), Error> {
        self.writer.write_all(&mut self.ring, bytes)?;
        self.count(counters, guest_runs);
        Ok(())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.writer.abandon(&mut self.ring);
    }
}
