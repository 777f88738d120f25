//! A lane: one stream and the chunks that travel on it. A round goes through a lane's chunks in
//! order: clear, look, encode, send; at its end everything has been taken by the kernel.
//!
//! ```text
//! pages of a chunk → holes and zeros | whole pages        first rounds, and without a cache
//!                                      sent from where they are
//!                  → holes | parallel delta encoder        with a cache, after the first round
//! ```

use std::ops::Range;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use xbzrle::Cache;
use xbzrle::parallel::{self, Kind, LivePage, Output};

use super::super::guest::DirtyLog;
use super::super::progress::Counters;
use super::Error;
use super::look::{self, Looked};
use super::packets::Packets;
use crate::io::{Gather, Ring, SocketWriter};
use crate::memory::{PAGE_BYTES, PageSet};
use crate::pages::{
    CHUNK_PAGES, ChunkMask, PageSource, RecordLayout, and, and_not, chunk_of, count, mask_ranges,
};
use crate::sabotage::{self, Fault};
use crate::stream::godwit::Frame;
use crate::stream::ram::{FLAG_EOS, FLAG_PAGE, RamWriter};
use crate::stream::{SectionHeader, SectionKind};

/// A batch leaves when it has this many bytes: large enough to keep the peer busy while the next is
/// prepared.
const BATCH_BYTES: usize = 1 << 20;
/// A batch leaves when it has this many pieces: two per page of a chunk, and room for the next
/// chunk's.
const BATCH_PIECES: usize = 480;
/// Pages encoded at once: 8 MiB, enough work for several threads.
const ENCODE_PAGES: usize = 2048;
/// How often the first round looks which pages were dirtied again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How pages are framed.
pub enum Framing {
    /// Godwit's frames: runs and ranges, records only for deltas.
    Frames,
    /// QEMU's records in PART sections.
    Records(SectionHeader),
    /// QEMU's multifd packets.
    Packets(Packets),
}

/// Where a channel with packets leaves its pages of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPages {
    /// In its own packets.
    InPackets,
    /// On the main channel, which sends them once the channels have sent theirs: what a QEMU before
    /// 9.0 understands.
    OnMain,
}

/// What a lane sends in one round, shared by all lanes.
pub struct Round<'a> {
    /// Pages by block.
    pub pages: &'a [PageSet],
    pub kind: parallel::Round,
    pub log: &'a dyn DirtyLog,
    /// The first round: everything was cleared beforehand, and pages found dirty again are left for
    /// the next round.
    pub again: Option<&'a Again<'a>>,
    pub counters: &'a Counters,
    pub pool: &'a ThreadPool,
    pub detect_zeros: bool,
    pub zero_pages: ZeroPages,
    pub lanes: u64,
    /// The target's RAM is known to be zero where nothing was sent.
    pub target_is_zero: bool,
    pub guest_runs: bool,
}

/// Pages dirtied again during the first round. They are not sent in it: they would only be sent
/// twice. What they say of the guest is told as soon as it is known.
pub struct Again<'a> {
    pages: RwLock<PageSet>,
    looked: RwLock<Instant>,
    /// Hears how many there are, each time more were looked for.
    found: Box<dyn Fn(u64) + Send + Sync + 'a>,
}

impl<'a> Again<'a> {
    pub fn new(bound: u64, found: impl Fn(u64) + Send + Sync + 'a) -> Self {
        let (pages, looked) = (RwLock::new(PageSet::new(bound)), RwLock::new(Instant::now()));
        Self { pages, looked, found: Box::new(found) }
    }

    pub(super) fn mask(&self, log: &dyn DirtyLog, chunk: u64) -> Result<ChunkMask, Error> {
        if self.looked.read().unwrap().elapsed() >= LOOK_AGAIN {
            let mut pages = self.pages.write().unwrap();
            *self.looked.write().unwrap() = Instant::now();
            log.harvest(&mut pages)?;
            (self.found)(pages.count());
        }
        Ok(chunk_of(&self.pages.read().unwrap(), chunk))
    }

    /// All that was found.
    pub fn into_pages(self) -> PageSet {
        self.pages.into_inner().unwrap()
    }
}

pub struct Lane {
    /// Position among the lanes; decides which chunks are its own.
    pub index: u64,
    /// Not the main channel.
    pub is_channel: bool,
    pub ring: Ring,
    pub writer: SocketWriter,
    pub framing: Framing,
    pub sources: Vec<PageSource>,
    pub layout: RecordLayout,
    pub cache: Option<Cache>,
    output: Output,
    batch: Batch,
    records: RamWriter,
    /// Pages of zeros left to the main channel: block, pages.
    zeros_for_main: Vec<(u8, Range<u64>)>,
    /// Bytes of the writer already counted.
    counted: u64,
}

/// The send being filled.
#[derive(Default)]
struct Batch {
    gather: Option<Gather>,
    /// A range of zeros that may still grow: block, pages.
    zeros: Option<(u8, Range<u64>)>,
    section_open: bool,
}

impl Lane {
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per lane, each part made by its caller"
    )]
    pub fn new(
        index: u64,
        is_channel: bool,
        ring: Ring,
        writer: SocketWriter,
        framing: Framing,
        sources: Vec<PageSource>,
        layout: RecordLayout,
        cache: Option<Cache>,
    ) -> Self {
        Self {
            index,
            is_channel,
            ring,
            writer,
            framing,
            sources,
            layout,
            cache,
            output: Output::new(),
            batch: Batch::default(),
            records: RamWriter::default(),
            zeros_for_main: Vec::new(),
            counted: 0,
        }
    }

    /// Sends this lane's part of a round.
    pub fn round(&mut self, round: &Round<'_>) -> Result<(), Error> {
        let mut sources = std::mem::take(&mut self.sources);
        let result = self.blocks(round, &mut sources);
        self.sources = sources;
        result
    }

    fn blocks(&mut self, round: &Round<'_>, sources: &mut [PageSource]) -> Result<(), Error> {
        let deltas = self.cache.is_some() && round.kind != parallel::Round::Bulk;
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
        look::each_chunk(round, source, pages, chunks, |source, looked| {
            self.whole_chunk(round, source, &looked)
        })?;
        // A packet holds pages of one block.
        self.packet(source)
    }

    fn whole_chunk(
        &mut self,
        round: &Round<'_>,
        source: &PageSource,
        looked: &Looked,
    ) -> Result<(), Error> {
        // An entry that is not what the receiver gets now would turn later deltas into garbage.
        if let Some(cache) = &mut self.cache
            && !cache.is_empty()
        {
            let first = looked.chunk * CHUNK_PAGES;
            cache.forget(
                mask_ranges(&looked.pages()).flatten().map(|page| source.number(first + page)),
            );
        }
        self.emit_chunk(round, source, looked.chunk, &looked.zeros, &looked.data)?;
        round.counters.settle(count(&looked.pages()));
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
                self.zeros(round, source, base + range.start..base + range.end)?;
            } else {
                let range = run_ranges.next().expect("just seen");
                Counters::add(&round.counters.normal, range.end - range.start);
                self.run(source, base + range.start..base + range.end)?;
            }
            self.flush_if_full(round)?;
        }
        self.flush_if_full(round)
    }

    fn zeros(
        &mut self,
        round: &Round<'_>,
        source: &PageSource,
        pages: Range<u64>,
    ) -> Result<(), Error> {
        match &mut self.framing {
            Framing::Records(_) => {
                self.open_batch()?;
                let gather = self.batch.gather.as_mut().expect("just opened");
                for page in pages {
                    self.records.zero(
                        gather.own(),
                        source.index().into(),
                        source.name(),
                        page * PAGE_BYTES,
                    );
                }
            }
            Framing::Packets(_) if round.zero_pages == ZeroPages::OnMain => {
                self.zeros_for_main.push((source.index(), pages));
            }
            Framing::Packets(_) => {
                for page in pages {
                    self.packet_page(source, |packets| packets.zero(page))?;
                }
            }
            Framing::Frames if round.target_is_zero && round.kind == parallel::Round::Bulk => {}
            Framing::Frames => match &mut self.batch.zeros {
                Some((block, range)) if *block == source.index() && range.end == pages.start => {
                    range.end = pages.end
                }
                _ => {
                    self.close_zeros()?;
                    self.batch.zeros = Some((source.index(), pages));
                }
            },
        }
        Ok(())
    }

    fn run(&mut self, source: &PageSource, pages: Range<u64>) -> Result<(), Error> {
        if let Framing::Packets(_) = self.framing {
            for page in pages {
                self.packet_page(source, |packets| packets.page(page))?;
            }
            return Ok(());
        }
        self.close_zeros()?;
        self.open_batch()?;
        let gather = self.batch.gather.as_mut().expect("just opened");
        if let Framing::Frames = self.framing {
            let bytes = (pages.end - pages.start) * PAGE_BYTES;
            Frame::Run { block: source.index(), offset: pages.start * PAGE_BYTES, bytes }
                .write(gather.own());
            source.gather(pages, gather);
            return Ok(());
        }
        for page in pages {
            let (block, offset) = (source.index().into(), page * PAGE_BYTES);
            self.records.page_header(gather.own(), FLAG_PAGE, block, source.name(), offset);
            source.gather(page..page + 1, gather);
        }
        Ok(())
    }

    /// Adds one page to the packet being filled; a full one goes into the send.
    fn packet_page(
        &mut self,
        source: &PageSource,
        add: impl FnOnce(&mut Packets) -> bool,
    ) -> Result<(), Error> {
        let Framing::Packets(packets) = &mut self.framing else {
            unreachable!("only with packets")
        };
        if add(packets) { self.packet(source) } else { Ok(()) }
    }

    /// Puts the packet being filled into the send, if there is one.
    fn packet(&mut self, source: &PageSource) -> Result<(), Error> {
        if !matches!(&self.framing, Framing::Packets(packets) if !packets.is_empty()) {
            return Ok(());
        }
        self.open_batch()?;
        let gather = self.batch.gather.as_mut().expect("just opened");
        let Framing::Packets(packets) = &mut self.framing else { unreachable!("just seen") };
        packets.write(source, gather)
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
            let Some((mask, data)) = look::open_chunk(round, source, pages, chunk)? else {
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
        self.close_zeros()?;
        self.open_batch()?;
        let gather = self.batch.gather.as_mut().expect("just opened");
        if let Framing::Frames = self.framing {
            Frame::Records { bytes: self.output.len() as u32 }.write(gather.own());
        }
        self.output.append_to(gather.own());
        self.flush_if_full(round)
    }

    /// Chunks of this lane that have members in `pages`. The first round starts in the middle of
    /// the block: which pages are busy shows while it runs, and what it sends at its beginning it
    /// sends blindly. Small kernels and their heaps lie low, large guests allocate from the top.
    fn chunks<'p>(
        &self,
        round: &Round<'_>,
        pages: &'p PageSet,
    ) -> impl Iterator<Item = u64> + use<'p> {
        let (index, lanes) = (self.index, round.lanes);
        let chunks = (pages.words().len() as u64).div_ceil(CHUNK_PAGES / 64);
        let first = if round.kind == parallel::Round::Bulk { chunks / 2 } else { 0 };
        (first..chunks)
            .chain(0..first)
            .filter(move |chunk| chunk % lanes == index && chunk_of(pages, *chunk) != [0; 4])
    }

    fn open_batch(&mut self) -> Result<(), Error> {
        if self.batch.gather.is_none() {
            self.batch.gather = Some(self.writer.gather(&mut self.ring)?);
        }
        let gather = self.batch.gather.as_mut().expect("just put there");
        if let Framing::Records(section) = &self.framing
            && !self.batch.section_open
        {
            section.write(SectionKind::Part, gather.own());
            self.batch.section_open = true;
        }
        Ok(())
    }

    fn close_zeros(&mut self) -> Result<(), Error> {
        let Some((block, pages)) = self.batch.zeros.take() else { return Ok(()) };
        self.open_batch()?;
        let (offset, bytes) = (pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES);
        let gather = self.batch.gather.as_mut().expect("just opened");
        Frame::Zero { block, offset, bytes }.write(gather.own());
        Ok(())
    }

    fn flush_if_full(&mut self, round: &Round<'_>) -> Result<(), Error> {
        let full =
            |gather: &Gather| gather.bytes() >= BATCH_BYTES || gather.pieces() >= BATCH_PIECES;
        match &self.batch.gather {
            Some(gather) if full(gather) => self.flush(round.counters, round.guest_runs),
            // Nothing to send is no reason not to be cancelled.
            _ if self.ring.waker().is_cancelled() => Err(crate::io::Error::Cancelled.into()),
            _ => Ok(()),
        }
    }

    /// Hands the batch to the kernel.
    fn flush(&mut self, counters: &Counters, guest_runs: bool) -> Result<(), Error> {
        self.close_zeros()?;
        let Some(mut gather) = self.batch.gather.take() else { return Ok(()) };
        if let (Framing::Records(section), true) = (&self.framing, self.batch.section_open) {
            gather.own().extend_from_slice(&FLAG_EOS.to_be_bytes());
            section.write_footer(gather.own());
            self.batch.section_open = false;
        }
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
        if self.is_channel {
            Counters::add(&counters.channel_bytes, fresh);
        }
        if !guest_runs {
            Counters::add(&counters.downtime_bytes, fresh);
        }
        counters.tick();
    }

    /// The pages of zeros that this lane left to the main channel.
    pub fn take_zeros_for_main(&mut self) -> Vec<(u8, Range<u64>)> {
        std::mem::take(&mut self.zeros_for_main)
    }

    /// Sends what the channels left to the main channel, and that they have come to the end of a
    /// round.
    pub fn end_packets(
        &mut self,
        round: &Round<'_>,
        zeros: &[(u8, Range<u64>)],
    ) -> Result<(), Error> {
        let sources = std::mem::take(&mut self.sources);
        let result = zeros.iter().try_for_each(|(block, pages)| {
            self.zeros(round, &sources[usize::from(*block)], pages.clone())?;
            self.flush_if_full(round)
        });
        self.sources = sources;
        result?;
        self.open_batch()?;
        RamWriter::flush(self.batch.gather.as_mut().expect("just opened").own());
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

impl Drop for Lane {
    fn drop(&mut self) {
        self.writer.abandon(&mut self.ring);
    }
}
