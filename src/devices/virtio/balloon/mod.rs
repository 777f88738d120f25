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
//! | 3 | pages that are free while a migration asks for them ([`Hints`]), with `free-page-hint` |
//! | 3, or 4 behind hints | pages that are free, with `free-page-reporting` |

pub(in crate::devices) mod control;
mod options;
mod part;
#[cfg(test)]
mod tests;

pub use control::BalloonControl;
pub(super) use options::{DRIVER, KEYS, Wanted, complete};
pub(crate) use part::{Balloon, build};

use super::model::{Model, Next, Wait, Wake};
use super::queue::{Chain, Fault, Queue};
use super::{BalloonReport, BalloonState, VirtioDevice, VirtioKind};
use crate::memory::{GuestRam, HintPhase, Hints};
use control::{BALLOON_PAGE_BYTES, STATISTIC_BYTES};
use options::feature;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
/// The next are there as they are offered.
const FIRST_OFFERED: usize = 3;
const QUEUES: usize = 5;

/// Linux drops the pages that do not fit into the queue, and QEMU's has as many.
const HINT_SIZE: u16 = 1024;

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
    /// Queues that are there only if they are offered.
    hint: Option<usize>,
    report: Option<usize>,
    /// What free pages hold in this guest, if not zeros.
    poison: u32,
    /// How much of the next chain of each queue was done.
    done: [u64; QUEUES],
    /// The buffer of statistics: its head, and the bytes that were in it.
    kept: Option<(u16, u32)>,
}

impl BalloonModel {
    pub(super) fn new(wanted: &Wanted, control: Arc<BalloonControl>) -> BalloonModel {
        let mut offered = FIRST_OFFERED..;
        let mut queue = |feature| wanted.has(feature).then(|| offered.next()).flatten();
        BalloonModel {
            control,
            hint: queue(feature::HINTS),
            report: queue(feature::REPORTING),
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
                INFLATE | DEFLATE => numbered(ram, &chain, at)?,
                _ => free(ram, &chain, at),
            };
            let stay = which == DEFLATE || which != INFLATE && self.poison != 0;
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

    fn hints(&self) -> &Hints {
        self.control.hints()
    }

    /// A guest that wants to find something in its free pages would not find it at the target.
    fn can_hint(&self, features: u64) -> bool {
        features & feature::HINTS != 0 && self.poison == 0
    }

    /// Hears which pages are free: a chain begins with the number of the command that it answers, or
    /// has pages, or both. Such as nobody asked for are given back like all others.
    fn take_hints(
        &mut self,
        which: usize,
        ram: &GuestRam,
        queue: &mut Queue,
    ) -> Result<Next, Fault> {
        for _ in 0..CHAINS {
            let Some(chain) = queue.pop(ram)? else { return Ok(Next::Wait) };
            let at = self.done[which];
            if at == 0 && !chain.readable.is_empty() {
                let mut command = [0; 4];
                if chain.read(ram, 0, &mut command)? < command.len() {
                    return Err(Fault::Request(
                        "a command about free pages is shorter than four bytes",
                    ));
                }
                self.hints().hear(u32::from_le_bytes(command));
            }
            let (pages, end, all) = free(ram, &chain, at);
            pages.into_iter().for_each(|range| self.hints().name(range));
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

/// Why a balloon's part of a stream has no place here.
pub(super) fn check(part: &BalloonState) -> Result<(), String> {
    let status = part.free_page_report.map_or(0, |report| report.status);
    HintPhase::from_number(status).map(drop).ok_or_else(|| unknown_phase(status))
}

fn unknown_phase(status: u32) -> String {
    format!("free_page_hint_status: {status} is none of 0 to 3")
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
        let (hint, report) = (self.hint.map(|_| HINT_SIZE), self.report.map(|_| 32));
        [128, 128, 128].into_iter().chain(hint).chain(report).collect()
    }

    /// Pages that the guest shall give and that it gave, the command of hints, and what free pages
    /// hold.
    fn config(&self) -> Vec<u8> {
        let (target, actual) = self.control.pages();
        [target, actual, self.hints().command(), self.poison]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect()
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
        if self.poison != 0 {
            self.hints().set_able(false);
        }
    }

    fn connect(&mut self, wake: Wake) {
        self.control.connect(wake);
    }

    fn reset(&mut self) {
        (self.poison, self.done, self.kept) = (0, [0; QUEUES], None);
        self.hints().reset();
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
        self.hints().set_able(false);
    }

    fn take_config_change(&mut self) -> bool {
        self.control.take_news()
    }

    fn serve(
        &mut self,
        ram: &GuestRam,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Next, Fault> {
        self.hints().set_able(self.can_hint(features));
        let mut next = self.take_statistics(ram, &mut queues[STATS])?;
        for which in [INFLATE, DEFLATE].into_iter().chain(self.report) {
            if self.take_pages(which, ram, &mut queues[which])? == Next::More {
                next = Next::More;
            }
        }
        if let Some(which) = self.hint
            && self.take_hints(which, ram, &mut queues[which])? == Next::More
        {
            next = Next::More;
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
            free_page_report: (features & feature::HINTS != 0).then(|| {
                let (command_id, phase) = self.hints().save();
                BalloonReport { command_id, status: phase.number() }
            }),
            page_poison: (features & feature::PAGE_POISON != 0).then_some(self.poison),
        })
    }

    fn load(&mut self, from: &VirtioDevice, _ram: &GuestRam) -> Result<(), String> {
        self.reset();
        if let VirtioDevice::Balloon(from) = from {
            self.control.load((from.num_pages, from.actual));
            self.poison = from.page_poison.unwrap_or(0);
            if let Some(BalloonReport { command_id, status }) = from.free_page_report {
                let phase = HintPhase::from_number(status).ok_or_else(|| unknown_phase(status))?;
                self.hints().load(command_id, phase);
            }
        }
        Ok(())
    }
}
