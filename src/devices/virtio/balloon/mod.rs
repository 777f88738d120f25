//! `-device virtio-balloon-device`: memory that the guest does without goes back to the host.
//!
//! The guest puts pages into the balloon when it is told to (QMP's `balloon`), or reports such as are
//! free. Either reads as zeros afterwards, and is marked, so that a migration's target does not have
//! it either. Memory that the host does not take back stays with the guest: a file that is mapped
//! privately, and less than a huge page of a huge page.
//!
//! | queue | what |
//! |---|---|
//! | 0, 1 | numbers of pages that go into the balloon, and come out of it |
//! | 2 | statistics; the device keeps the buffer until it wants newer ones |
//! | 3 | pages that are free, with `free-page-reporting` |

pub(in crate::devices) mod control;
mod options;
mod part;
#[cfg(test)]
mod tests;

pub use control::BalloonControl;
pub(super) use options::{DRIVER, KEYS, Wanted};
pub(crate) use part::{Balloon, build};

use super::model::{Model, Next, Wait, Wake};
use super::queue::{Chain, Fault, Queue};
use super::{BalloonState, VirtioDevice, VirtioKind};
use crate::memory::GuestRam;
use control::{BALLOON_PAGE_BYTES, STATISTIC_BYTES};
use options::feature;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORT: usize = 3;
const QUEUES: usize = 4;

/// Chains of each queue in one turn.
const CHAINS: usize = 8;
/// Of one chain in one turn: numbers of pages, and memory that is free.
const NUMBERS_BYTES: usize = 4096;
const FREE_BYTES: u64 = 64 << 20;
/// Statistics that are listened to; there are 16.
const STATISTICS_MAX: usize = 64;

/// The device.
pub(super) struct BalloonModel {
    control: Arc<BalloonControl>,
    reports: bool,
    /// What free pages hold in this guest, if not zeros.
    poison: u32,
    /// How much of the next chain of each queue was done.
    done: [u64; QUEUES],
    /// The buffer of statistics: its head, and the bytes that were in it.
    kept: Option<(u16, u32)>,
}

impl BalloonModel {
    pub(super) fn new(wanted: &Wanted, control: Arc<BalloonControl>) -> BalloonModel {
        BalloonModel {
            control,
            reports: wanted.has(feature::REPORTING),
            poison: 0,
            done: [0; QUEUES],
            kept: None,
        }
    }

    /// Takes pages from a queue.
    fn take_pages(
        &mut self,
        which: usize,
        ram: &GuestRam,
        queue: &mut Queue,
    ) -> Result<Next, Fault> {
        for _ in 0..CHAINS {
            let Some(chain) = queue.pop(ram)? else { return Ok(Next::Wait) };
            let at = self.done[which];
            let (pages, end, all) = match which {
                REPORT => free(ram, &chain, at),
                _ => numbered(ram, &chain, at)?,
            };
            let stay = which == DEFLATE || which == REPORT && self.poison != 0;
            if !stay {
                for range in pages {
                    // What the host does not take stays.
                    let _ = ram.discard(range);
                }
            }
            if end < all {
                self.done[which] = end;
                queue.unpop();
                return Ok(Next::More);
            }
            self.done[which] = 0;
            queue.push(ram, chain.head, 0)?;
        }
        Ok(Next::More)
    }

    /// Listens to what is new, and asks for more when it is time.
    fn take_statistics(&mut self, ram: &GuestRam, queue: &mut Queue) -> Result<Next, Fault> {
        if let Some((head, bytes)) = self.kept
            && self.control.due().is_some_and(|due| due <= Instant::now())
        {
            self.control.asked();
            self.kept = None;
            queue.push(ram, head, bytes)?;
        }
        // A source that kept the buffer, too, had taken it.
        while self.kept.is_none() && queue.under_way() > 0 {
            queue.unpop();
        }
        for _ in 0..CHAINS {
            let Some(chain) = queue.pop(ram)? else { return Ok(Next::Wait) };
            // A driver has one buffer.
            if let Some((head, _)) = self.kept.take() {
                queue.push(ram, head, 0)?;
            }
            let mut told = [0; STATISTICS_MAX * STATISTIC_BYTES];
            let bytes = chain.read(ram, 0, &mut told)?;
            self.control.take_statistics(&told[..bytes]);
            self.kept = Some((chain.head, (bytes - bytes % STATISTIC_BYTES) as u32));
        }
        Ok(Next::More)
    }
}

/// Offsets of pages in RAM that a chain names, and how far they were read, of how much.
type Pages = (Vec<Range<u64>>, u64, u64);

/// Pages by their numbers, each le32, from byte `at` on, joined where they are neighbours. What is no
/// RAM is left out.
fn numbered(ram: &GuestRam, chain: &Chain, at: u64) -> Result<Pages, Fault> {
    let mut numbers = [0; NUMBERS_BYTES];
    let bytes = chain.read(ram, at as usize, &mut numbers)?;
    let numbers = numbers[..bytes].chunks_exact(4);
    let gpa = |number: &[u8]| {
        u64::from(u32::from_le_bytes(std::array::from_fn(|at| number[at]))) * BALLOON_PAGE_BYTES
    };
    let mut pages: Vec<u64> = numbers.filter_map(|number| ram.main().offset(gpa(number))).collect();
    pages.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut().filter(|last| page <= last.end) {
            Some(last) => last.end = page + BALLOON_PAGE_BYTES,
            None => ranges.push(page..page + BALLOON_PAGE_BYTES),
        }
    }
    // The end of a chain is no number, if it is shorter than one.
    Ok((ranges, at + bytes as u64, chain.readable_bytes() / 4 * 4))
}

/// Buffers that are free, from byte `at` on.
fn free(ram: &GuestRam, chain: &Chain, at: u64) -> Pages {
    let (mut ranges, mut begin, end) = (Vec::new(), 0, at + FREE_BYTES);
    for buffer in &chain.writable {
        let bytes = u64::from(buffer.bytes);
        let part = at.max(begin)..end.min(begin + bytes);
        if let Some(offset) = ram.main().offset(buffer.gpa).filter(|_| !part.is_empty()) {
            ranges.push(offset + (part.start - begin)..offset + (part.end - begin));
        }
        begin += bytes;
    }
    (ranges, end.min(begin), begin)
}

impl Model for BalloonModel {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Balloon
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let report = self.reports.then_some(32);
        [128, 128, 128].into_iter().chain(report).collect()
    }

    /// Pages that the guest shall give and that it gave, the command of hints, and what free pages
    /// hold.
    fn config(&self) -> Vec<u8> {
        let (target, actual) = self.control.pages();
        [target, actual, 0, self.poison].into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        let mut config = self.config();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(place) = config.get_mut(at) {
                *place = *byte;
            }
        }
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| config[at + i]));
        self.control.set_actual(word(4));
        self.poison = if features & feature::PAGE_POISON != 0 { word(12) } else { 0 };
    }

    fn connect(&mut self, wake: Wake) {
        self.control.connect(wake);
    }

    fn reset(&mut self) {
        (self.poison, self.done, self.kept) = (0, [0; QUEUES], None);
    }

    fn queue_reset(&mut self, queue: usize) {
        if let Some(done) = self.done.get_mut(queue) {
            *done = 0;
        }
        if queue == STATS {
            self.kept = None;
        }
    }

    fn broken(&mut self) {
        self.kept = None;
    }

    fn take_config_change(&mut self) -> bool {
        self.control.take_news()
    }

    fn serve(&mut self, ram: &GuestRam, queues: &mut [Queue], _: u64) -> Result<Next, Fault> {
        let mut next = self.take_statistics(ram, &mut queues[STATS])?;
        for which in [INFLATE, DEFLATE, REPORT] {
            if let Some(queue) = queues.get_mut(which)
                && self.take_pages(which, ram, queue)? == Next::More
            {
                next = Next::More;
            }
        }
        Ok(next)
    }

    /// The buffer of statistics is taken again, here or elsewhere.
    fn quiesce(&mut self, _ram: &GuestRam, queues: &mut [Queue]) -> Result<(), Fault> {
        if self.kept.take().is_some() {
            queues[STATS].unpop();
        }
        self.done = [0; QUEUES];
        Ok(())
    }

    fn waits_for(&self) -> Wait {
        let until = self.control.due().filter(|_| self.kept.is_some());
        Wait { until, ..Wait::default() }
    }

    fn save(&self, features: u64) -> VirtioDevice {
        let (num_pages, actual) = self.control.pages();
        VirtioDevice::Balloon(BalloonState {
            num_pages,
            actual,
            free_page_report: None,
            page_poison: (features & feature::PAGE_POISON != 0).then_some(self.poison),
        })
    }

    fn load(&mut self, from: &VirtioDevice, _ram: &GuestRam) -> Result<(), String> {
        self.reset();
        if let VirtioDevice::Balloon(from) = from {
            self.control.load((from.num_pages, from.actual));
            self.poison = from.page_poison.unwrap_or(0);
        }
        Ok(())
    }
}
