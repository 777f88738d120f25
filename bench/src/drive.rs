//! Drives the batch encoder through a trace, with memory behind it, and takes the time.
//!
//! Unsafe because live pages are made from this module's own memory.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use xbzrle::parallel::{self, Body, LivePage, Output, Pass, Record, RecordFormat, Tally};
use xbzrle::{Cache, PAGE_SIZE};

use crate::random::Random;
use crate::synthetic::{GUEST_PAGES, Rounds};
use crate::trace::{Change, Replay, Trace};

/// Pages encoded at a time: 16 MiB.
const BATCH_PAGES: usize = 4096;

/// What a run through a trace came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// Pages by kind.
    pub tally: Tally,
    /// Time spent in the encoder.
    pub time: Duration,
}

impl Run {
    /// Pages encoded in a second.
    pub fn pages_per_second(&self) -> f64 {
        self.tally.pages() as f64 / self.time.as_secs_f64()
    }

    /// Bytes of a delta record on average.
    pub fn bytes_per_delta(&self) -> f64 {
        self.tally.delta_bytes as f64 / (self.tally.delta as f64).max(1.0)
    }

    fn encode(
        &mut self,
        round: Pass,
        cache: &mut Cache,
        pages: &[LivePage<'_>],
        output: &mut Output,
    ) {
        for batch in pages.chunks(BATCH_PAGES) {
            let started = Instant::now();
            parallel::encode(round, Some(cache), batch, &Stream, output);
            self.time += started.elapsed();
            self.tally += output.tally();
        }
    }
}

/// Records as in the peer's stream, within one block.
pub struct Stream;

impl RecordFormat for Stream {
    fn header(&self, record: &Record, _after: Option<u64>, out: &mut Vec<u8>) {
        let (flag, tail): (u64, &[u8]) = match record.body {
            Body::Zero => (0x02, &[0]),
            Body::Whole => (0x08, &[]),
            Body::Delta(len) => (0x40, &[1, (len >> 8) as u8, len as u8]),
        };
        out.extend_from_slice(&(record.page << 12 | 0x20 | flag).to_be_bytes());
        out.extend_from_slice(tail);
    }
}

/// A synthetic guest: 1 GiB, filled on first use.
pub struct Guest {
    memory: MmapMut,
}

impl Guest {
    /// # Panics
    /// If there is no memory for it.
    #[expect(clippy::new_without_default, reason = "a GiB is no default")]
    pub fn new() -> Guest {
        let mut memory = MmapMut::map_anon(GUEST_PAGES as usize * PAGE_SIZE).expect("1 GiB");
        let _ = memory.advise(Advice::HugePage);
        let mut random = Random::new(9);
        memory
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .for_each(|word| *word = random.next().to_ne_bytes());
        Guest { memory }
    }

    /// Plays a synthetic trace: each visit changes `words` aligned words of the page.
    pub fn play(&mut self, rounds: &Rounds, words: usize, cache: &mut Cache) -> Run {
        let (mut run, mut output, mut random) = (Run::default(), Output::new(), Random::new(10));
        for pages in rounds {
            for &page in pages {
                for _ in 0..words {
                    let words = self.memory.as_chunks_mut::<8>().0;
                    let word =
                        &mut words[page as usize * (PAGE_SIZE / 8) + random.below(512) as usize];
                    *word = (u64::from_ne_bytes(*word) ^ random.next()).to_ne_bytes();
                }
            }
            let live: Vec<LivePage<'_>> = pages.iter().map(|&page| self.live(page)).collect();
            run.encode(Pass::Delta, cache, &live, &mut output);
        }
        run
    }

    /// Page `page`.
    pub fn live(&self, page: u64) -> LivePage<'_> {
        let bytes = &self.memory[page as usize * PAGE_SIZE..][..PAGE_SIZE];
        // SAFETY: the bytes are borrowed for as long as the result, so nobody writes them
        // meanwhile.
        unsafe { LivePage::new(page, bytes.as_ptr()) }
    }

    /// Changes `bytes` random bytes of each of the first `pages` pages.
    ///
    /// # Panics
    /// If the guest has fewer pages.
    pub fn scatter(&mut self, pages: usize, bytes: usize, random: &mut Random) {
        for page in self.memory.as_chunks_mut::<PAGE_SIZE>().0.iter_mut().take(pages) {
            for _ in 0..bytes {
                page[random.below(PAGE_SIZE as u64) as usize] = random.next() as u8;
            }
        }
    }
}

/// Plays a recorded trace with its contents.
pub fn play_recorded(trace: &Trace, cache: &mut Cache) -> Run {
    let (mut run, mut output, mut replay) = (Run::default(), Output::new(), Replay::default());
    for round in &trace.rounds {
        round.iter().for_each(|(page, change): &(u64, Change)| replay.apply(*page, change));
        let live = round.iter().map(|(page, _)| {
            let bytes = replay.page(*page).expect("a page that was just changed");
            // SAFETY: the page is borrowed from `replay` for as long as the result.
            unsafe { LivePage::new(*page, bytes.as_ptr()) }
        });
        run.encode(Pass::Delta, cache, &live.collect::<Vec<_>>(), &mut output);
    }
    run
}
