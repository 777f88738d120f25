//! A snapshot in the background (capability `background-snapshot`): the guest as it was at one moment,
//! written while it runs on.
//!
//! ```text
//! list of blocks → RAM protected → guest stops, state read, image fixed → guest runs → pages, the state → end
//!                                  └──────────── milliseconds ────────┘
//! ```
//!
//! The image is a live dump's ([`Snapshot`]): whoever writes a page that was not read yet waits until
//! its old bytes are kept. Pages are copied out of it, once each, so that there are no rounds and no
//! dirty log; a page is given up as soon as it was copied. The guest stays here, whatever happens.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::error::{Error, guarded};
use super::handover::{end_of_ram, end_with};
use super::peer::Peer;
use super::rounds::list_blocks;
use super::source::Source;
use crate::machine::RunState;
use crate::memory::{PAGE_BYTES, PageSet, RamBlock, Snapshot};
use crate::migrate::guest::State;
use crate::migrate::progress::Counters;
use crate::migrate::status::Status;

/// Pages that are copied, and then written, at once.
const UNIT_PAGES: u64 = 256;

impl Source {
    /// Writes the guest as it is in a moment. It runs on, or stands as it stood. Each operation on the
    /// way to the reader has `time`.
    pub(super) fn write_in_background(
        &self,
        peer: &mut Peer,
        started: Instant,
        time: Duration,
    ) -> Result<(), Error> {
        if peer.return_path.is_some() || peer.is_two_way() {
            return Err(Error::BackgroundNeedsFile);
        }
        list_blocks(self, peer).map_err(|error| peer.silent(error, "the list of blocks", time))?;
        let image = Snapshot::prepare(self.guest.ram())?;
        self.progress.figures().setup = started.elapsed();
        self.enter(Status::Active)?;
        // What is written late keeps pages, and then the guest, waiting.
        let _lifted = self.settings.limit.lift();
        let before = self.guest.run_state();
        let stopped_at = Instant::now();
        let ran = self.guest.stop(RunState::FinishMigrate)?;
        let fixed = guarded(|| {
            // Reading it can write guest memory.
            let state = self.guest.save_here(ran)?;
            self.guest.ram().main().check_whole()?;
            image.fix()?;
            Ok(state)
        });
        self.resume(ran, before);
        self.progress.figures().downtime = Some(stopped_at.elapsed());
        let state = fixed?;
        // Whoever does not read is not waited for then.
        let waker = self.waker.clone();
        image.on_loss(move || waker.cancel());
        let sent = self.send_image(peer, &image);
        // Why the image was lost says more than what broke off for it.
        let sent = image.check().map_err(Error::from).and(sent);
        drop(image);
        sent.map_err(|error| peer.silent(error, "the guest's memory", time))?;
        peer.write_bitmaps(&self.progress.counters)?;
        self.send_state(peer, state.as_ref(), time)
    }

    fn send_image(&self, peer: &mut Peer, image: &Snapshot) -> Result<(), Error> {
        let (ram, counters) = (self.guest.ram(), &self.progress.counters);
        let pages = ram.blocks().iter().map(RamBlock::pages).sum();
        counters.remaining.store(pages, Ordering::Relaxed);
        for (number, block) in ram.blocks().iter().enumerate() {
            match number {
                0 => copy_image(peer, counters, block, image)?,
                // Nobody writes a block that the guest does not see.
                _ => copy_block(peer, counters, number, block)?,
            }
        }
        peer.page_channels()[0].finish_copies(counters)
    }

    fn send_state(&self, peer: &mut Peer, state: &dyn State, time: Duration) -> Result<(), Error> {
        let mut out = Vec::new();
        end_of_ram(&mut out);
        end_with(&mut out, state)?;
        peer.main.send_bytes(&self.progress.counters, true, &out)?;
        peer.end_stream(time)
    }
}

/// Sends the guest's RAM out of its image: what a writer waits for first, then in order.
fn copy_image(
    peer: &mut Peer,
    counters: &Counters,
    block: &RamBlock,
    image: &Snapshot,
) -> Result<(), Error> {
    // A page that was a hole at the moment and is written since reads as the image's zeros.
    let data = image.data_pages()?;
    let mut left = PageSet::full(block.pages());
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(first) = left.next(at) {
        at = first;
        let wanted = image.urgent().map(|bytes| bytes.start / PAGE_BYTES..bytes.end / PAGE_BYTES);
        let unit = wanted.unwrap_or(first..(first + UNIT_PAGES).min(block.pages()));
        let pages: Vec<Range<u64>> = runs(&left, unit.clone());
        for run in pages {
            copy_run(peer, counters, &data, image, run.clone(), &mut bytes)?;
            image.release(run.start * PAGE_BYTES..run.end * PAGE_BYTES);
        }
        left.remove_range(unit);
    }
    Ok(())
}

/// Sends pages that come one after another: those with data copied, the others as zeros.
fn copy_run(
    peer: &mut Peer,
    counters: &Counters,
    data: &PageSet,
    image: &Snapshot,
    pages: Range<u64>,
    bytes: &mut Vec<u8>,
) -> Result<(), Error> {
    let channel = &mut peer.page_channels()[0];
    let mut at = pages.start;
    for run in runs(data, pages.clone()) {
        channel.send_zeros(counters, 0, at..run.start)?;
        bytes.resize(((run.end - run.start) * PAGE_BYTES) as usize, 0);
        image.read(run.start * PAGE_BYTES, bytes)?;
        channel.send_copies(counters, 0, run.start, bytes)?;
        at = run.end;
    }
    channel.send_zeros(counters, 0, at..pages.end)
}

fn copy_block(
    peer: &mut Peer,
    counters: &Counters,
    number: usize,
    block: &RamBlock,
) -> Result<(), Error> {
    let channel = &mut peer.page_channels()[0];
    let mut bytes = Vec::new();
    for first in (0..block.pages()).step_by(UNIT_PAGES as usize) {
        let end = (first + UNIT_PAGES).min(block.pages());
        bytes.resize(((end - first) * PAGE_BYTES) as usize, 0);
        block.copy_out(first * PAGE_BYTES, &mut bytes);
        channel.send_copies(counters, number, first, &bytes)?;
    }
    Ok(())
}

/// The members of `set` in `within`, as ranges.
fn runs(set: &PageSet, within: Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut at = within.start;
    while let Some(start) = set.next(at).filter(|start| *start < within.end) {
        at = set.next_absent(start).min(within.end);
        found.push(start..at);
    }
    found
}
