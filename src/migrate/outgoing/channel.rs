//! A channel: one stream and the chunks that travel on it. A round goes through a channel's chunks
//! in order: clear, scan, encode, send; at its end everything has been taken by the kernel.
//!
//! ```text
//! pages of a chunk → holes and zeros | whole pages        first rounds, and without a cache
//!                                      sent from where they are
//!                  → holes | parallel delta encoder        with a cache, after the first round
//! ```

use xbzrle::Cache;
use xbzrle::parallel::{self, Kind, LivePage, Output};

use super::Error;
use super::framing::{Framing, Zeros};
use super::round::Round;
use super::scan::{self, ScannedChunk};
use crate::io::{Gather, Ring, SocketWriter};
use crate::memory::PageSet;
use crate::migrate::progress::Counters;
use crate::pages::{
    CHUNK_PAGES, ChunkMask, PageSource, QemuRecords, and, and_not, chunk_of, count, mask_ranges,
};
use crate::sabotage::{self, Fault};

/// A batch leaves when it has this many bytes: large enough to keep the peer busy while the next is
/// prepared.
const BATCH_BYTES: usize = 1 << 20;
/// A batch leaves when it has this many pieces: two per page of a chunk, and room for the next
/// chunk's.
const BATCH_PIECES: usize = 480;
/// Pages encoded at once: 8 MiB, enough work for several threads.
const ENCODE_PAGES: usize = 2048;

pub struct Channel {
    /// Position among the channels; decides which chunks are its own.
    pub index: u64,
    /// Not the main channel.
    pub is_further: bool,
    pub ring: Ring,
    pub writer: SocketWriter,
    pub framing: Framing,
    pub sources: Vec<PageSource>,
    pub layout: QemuRecords,
    pub cache: Option<Cache>,
    output: Output,
    /// The send being filled.
    batch: Option<Gather>,
    /// Bytes of the writer already counted.
    counted: u64,
}

impl Channel {
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per channel, each part made by its caller"
    )]
    pub fn new(
        index: u64,
        is_further: bool,
        ring: Ring,
        writer: SocketWriter,
        framing: Framing,
        sources: Vec<PageSource>,
        layout: QemuRecords,
        cache: Option<Cache>,
    ) -> Self {
        Self {
            index,
            is_further,
            ring,
            writer,
            framing,
            sources,
            layout,
            cache,
            output: Output::new(),
            batch: None,
            counted: 0,
        }
    }

    /// Sends this channel's part of a round.
    pub fn round(&mut self, round: &Round<'_>) -> Result<(), Error> {
        sabotage::panic_on(Fault::PanicInRound);
        let mut sources = std::mem::take(&mut self.sources);
        let result = self.blocks(round, &mut sources);
        self.sources = sources;
        result
    }

    fn blocks(&mut self, round: &Round<'_>, sources: &mut [PageSource]) -> Result<(), Error> {
        let deltas = self.cache.is_some() && round.kind != parallel::Pass::Bulk;
        for (source, pages) in sources.iter_mut().zip(round.pages) {
            if deltas {
                self.delta_block(round, source, pages)?;
            } else {
                self.whole_block(round, source, pages)?;
            }
        }
        self.flush(round.counters, round.guest_runs)?;
        self.finish(round.counters, round.guest_runs)
    }

    /// Pages travel whole, from where they are.
    fn whole_block(
        &mut self,
        round: &Round<'_>,
        source: &mut PageSource,
        pages: &PageSet,
    ) -> Result<(), Error> {
        let chunks = self.chunks(round, pages);
        scan::each_chunk(round, source, pages, chunks, |source, scanned| {
            self.whole_chunk(round, source, &scanned)
        })?;
        let (framing, gather) = self.open()?;
        framing.end_block(source, gather)
    }

    fn whole_chunk(
        &mut self,
        round: &Round<'_>,
        source: &PageSource,
        scanned: &ScannedChunk,
    ) -> Result<(), Error> {
        // An entry that is not what the receiver gets now would turn later deltas into garbage.
        if let Some(cache) = &mut self.cache
            && !cache.is_empty()
        {
            let first = scanned.chunk * CHUNK_PAGES;
            cache.forget(
                mask_ranges(&scanned.pages()).flatten().map(|page| source.number(first + page)),
            );
        }
        self.emit_chunk(round, source, scanned.chunk, &scanned.zeros, &scanned.data)?;
        round.counters.settle(count(&scanned.pages()));
        Ok(())
    }

    /// Emits a chunk's zero ranges and runs in ascending order.
    fn emit_chunk(
        &mut self,
        round: &Round<'_>,
        source: &PageSource,
        chunk: u64,
        zeros: &ChunkMask,
        runs: &ChunkMask,
    ) -> Result<(), Error> {
        let base = chunk * CHUNK_PAGES;
        let mut zero_ranges = mask_ranges(zeros).peekable();
        let mut run_ranges = mask_ranges(runs).peekable();
        loop {
            let zero_first = match (zero_ranges.peek(), run_ranges.peek()) {
                (Some(zero), Some(run)) => zero.start < run.start,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            if zero_first {
                let range = zero_ranges.next().expect("just seen");
                Counters::add(&round.counters.duplicate, range.end - range.start);
                let (framing, gather) = self.open()?;
                let pages = base + range.start..base + range.end;
                framing.zeros(source, pages, round.zeros, gather)?;
            } else {
                let range = run_ranges.next().expect("just seen");
                Counters::add(&round.counters.normal, range.end - range.start);
                let (framing, gather) = self.open()?;
                framing.run(source, base + range.start..base + range.end, gather)?;
            }
            self.flush_if_full(round)?;
        }
        self.flush_if_full(round)
    }

    /// Pages travel as what changed, where the cache has them.
    fn delta_block(
        &mut self,
        round: &Round<'_>,
        source: &mut PageSource,
        pages: &PageSet,
    ) -> Result<(), Error> {
        let mut numbers: Vec<u64> = Vec::with_capacity(ENCODE_PAGES + CHUNK_PAGES as usize);
        for chunk in self.chunks(round, pages) {
            let Some((mask, data)) = scan::open_chunk(round, source, pages, chunk)? else {
                continue;
            };
            let holes = and_not(&mask, &data);
            let base = chunk * CHUNK_PAGES;
            if let Some(cache) = &mut self.cache {
                cache.forget(mask_ranges(&holes).flatten().map(|page| source.number(base + page)));
            }
            self.emit_chunk(round, source, chunk, &holes, &[0; 4])?;
            numbers.extend(mask_ranges(&and(&mask, &data)).flatten().map(|page| base + page));
            if numbers.len() >= ENCODE_PAGES {
                self.deltas(round, source, &numbers)?;
                source.check()?;
                numbers.clear();
            }
            round.counters.settle(count(&mask));
        }
        if !numbers.is_empty() {
            self.deltas(round, source, &numbers)?;
        }
        Ok(source.check()?)
    }

    /// Encodes one batch and puts its records into the send being filled.
    fn deltas(
        &mut self,
        round: &Round<'_>,
        source: &PageSource,
        pages: &[u64],
    ) -> Result<(), Error> {
        let live: Vec<LivePage<'_>> = pages.iter().map(|page| source.live(*page)).collect();
        for _ in 0..if sabotage::on(Fault::CacheAhead) { 2 } else { 1 } {
            let (cache, layout, output) = (self.cache.as_mut(), &self.layout, &mut self.output);
            round.pool.install(|| parallel::encode(round.kind, cache, &live, layout, output));
        }
        for kind in self.output.kinds() {
            let counter = match kind {
                Kind::Zero => &round.counters.duplicate,
                Kind::Delta => &round.counters.deltas,
                Kind::Whole | Kind::Overflow => &round.counters.normal,
                Kind::Same => continue,
            };
            Counters::add(counter, 1);
        }
        if self.output.is_empty() {
            return Ok(());
        }
        let gather = open(&mut self.batch, &mut self.writer, &mut self.ring)?;
        self.framing.deltas(&self.output, gather);
        self.flush_if_full(round)
    }

    /// Chunks of this channel that have members in `pages`. The first round starts in the middle of
    /// the block: which pages are busy shows while it runs, and what it sends at its beginning it
    /// sends blindly. Small kernels and their heaps lie low, large guests allocate from the top.
    fn chunks<'p>(
        &self,
        round: &Round<'_>,
        pages: &'p PageSet,
    ) -> impl Iterator<Item = u64> + use<'p> {
        let (index, channels) = (self.index, round.channels);
        let chunks = (pages.words().len() as u64).div_ceil(CHUNK_PAGES / 64);
        let first = if round.kind == parallel::Pass::Bulk { chunks / 2 } else { 0 };
        (first..chunks)
            .chain(0..first)
            .filter(move |chunk| chunk % channels == index && chunk_of(pages, *chunk) != [0; 4])
    }

    /// The send being filled, and how.
    fn open(&mut self) -> Result<(&mut Framing, &mut Gather), Error> {
        let gather = open(&mut self.batch, &mut self.writer, &mut self.ring)?;
        Ok((&mut self.framing, gather))
    }

    fn flush_if_full(&mut self, round: &Round<'_>) -> Result<(), Error> {
        let full =
            |gather: &Gather| gather.bytes() >= BATCH_BYTES || gather.pieces() >= BATCH_PIECES;
        match &self.batch {
            Some(gather) if full(gather) => self.flush(round.counters, round.guest_runs),
            // Nothing to send is no reason not to be cancelled.
            _ if self.ring.waker().is_cancelled() => Err(crate::io::Error::Cancelled.into()),
            _ => Ok(()),
        }
    }

    /// Hands the batch to the kernel.
    fn flush(&mut self, counters: &Counters, guest_runs: bool) -> Result<(), Error> {
        let Some(mut gather) = self.batch.take() else { return Ok(()) };
        self.framing.seal(&mut gather);
        self.writer.send(&mut self.ring, gather)?;
        self.count(counters, guest_runs);
        Ok(())
    }

    /// Waits until the kernel has everything.
    fn finish(&mut self, counters: &Counters, guest_runs: bool) -> Result<(), Error> {
        self.writer.finish(&mut self.ring)?;
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
    pub fn end_packets(&mut self, round: &Round<'_>, zeros: &[Zeros]) -> Result<(), Error> {
        for (block, pages) in zeros {
            let gather = open(&mut self.batch, &mut self.writer, &mut self.ring)?;
            let source = &self.sources[usize::from(*block)];
            self.framing.zeros(source, pages.clone(), round.zeros, gather)?;
            self.flush_if_full(round)?;
        }
        let (framing, gather) = self.open()?;
        framing.flush_channels(gather);
        self.flush(round.counters, round.guest_runs)?;
        self.finish(round.counters, round.guest_runs)
    }

    /// Sends `bytes` as they are: what stands between rounds.
    pub fn send_bytes(
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

/// The send being filled, begun if there is none.
fn open<'b>(
    batch: &'b mut Option<Gather>,
    writer: &mut SocketWriter,
    ring: &mut Ring,
) -> Result<&'b mut Gather, Error> {
    if batch.is_none() {
        *batch = Some(writer.gather(ring)?);
    }
    Ok(batch.get_or_insert_default())
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.writer.abandon(&mut self.ring);
    }
}
