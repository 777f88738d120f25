//! Pages on their way in: bytes, zeros and deltas into guest memory.
//!
//! Whole pages go straight to memory that was there and has been mapped while the target waited for
//! its source. Elsewhere they are written through the block's descriptor where it has one: what the
//! memory of a fresh target costs is then half, and nothing is mapped that the guest may never
//! touch. Deltas are applied in place.
//!
//! No vCPU runs yet, and each page is written by one thread at a time: that of the channel it
//! travels on, or the one that has its chunk of a batch.

use std::cell::OnceCell;
use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Error;
use crate::io::{Ring, SocketReader};
use crate::memory::{GuestRam, PAGE_BYTES, RamBlock};
use crate::pages::CHUNK_PAGES;
use crate::sabotage::{self, Fault};
use crate::stream::ram::{ListedBlock, PageAt};
use crate::stream::{Layouts, Reader, Record};

/// Records parsed at once: as many as one receive brings.
pub(super) const BATCH_RECORDS: usize = 4096;
/// Pages that one write takes at most.
const PIECES_MAX: usize = 256;
/// Records of a batch that are worth sharing out: some 100 µs of work.
const SHARED_RECORDS: usize = 256;

/// The blocks of the stream's list, as they are here. Clones are the same blocks.
#[derive(Clone, Default)]
pub(crate) struct Blocks(Vec<RamBlock>);

impl Blocks {
    /// Finds the listed block here. One that belongs to no device here is kept as it comes.
    pub(crate) fn add(&mut self, ram: &GuestRam, listed: &ListedBlock) -> Result<(), Error> {
        let block = match ram.block(&listed.name) {
            Some(block) => block,
            None => ram.keep_block(&listed.name, listed.bytes)?,
        };
        if block.bytes() != listed.bytes {
            let (name, here, there) = (listed.name.clone(), block.bytes(), listed.bytes);
            return Err(Error::BlockSize { name, here, there });
        }
        self.0.push(block.clone());
        Ok(())
    }

    /// Applies page records in order.
    pub(crate) fn apply(&self, records: &[Record<'_>]) -> Result<(), Error> {
        self.apply_in_order(records.iter())
    }

    /// Applies a batch of page records by several threads, each with the chunks of 256 pages that
    /// fall to it, so that the records of one page are applied in order.
    pub(crate) fn apply_by(&self, threads: &Threads, records: &[Record<'_>]) -> Result<(), Error> {
        let Some(pool) = (records.len() >= SHARED_RECORDS).then(|| threads.pool()).flatten() else {
            return self.apply(records);
        };
        let threads = pool.current_num_threads();
        let thread_of = |record: &Record<'_>| match record {
            Record::Page { at, .. } | Record::Zero { at } | Record::Delta { at, .. } => {
                (at.offset / (CHUNK_PAGES * PAGE_BYTES)) as usize % threads
            }
            _ => 0,
        };
        pool.install(|| {
            (0..threads).into_par_iter().try_for_each(|thread| {
                self.apply_in_order(records.iter().filter(|record| thread_of(record) == thread))
            })
        })
    }

    fn apply_in_order<'r>(
        &self,
        records: impl Iterator<Item = &'r Record<'r>>,
    ) -> Result<(), Error> {
        let mut pages = WholePages::default();
        // Pages of zeros come one by one from a QEMU; whether they are zero already is asked for
        // many at once.
        let mut zeros: Option<(u8, Range<u64>)> = None;
        let clear = |zeros: &mut Option<(u8, Range<u64>)>| match zeros.take() {
            Some((block, range)) => self.zero(block, range.start, range.end - range.start),
            None => Ok(()),
        };
        for record in records {
            match record {
                Record::Page { at, bytes } => {
                    clear(&mut zeros)?;
                    pages.push(self, *at, *bytes)?;
                }
                Record::Zero { at } => {
                    pages.write(self)?;
                    let block = at.block as u8;
                    match &mut zeros {
                        Some((same, range)) if *same == block && range.end == at.offset => {
                            range.end = range.end.saturating_add(PAGE_BYTES)
                        }
                        _ => {
                            clear(&mut zeros)?;
                            zeros = Some((block, at.offset..at.offset.saturating_add(PAGE_BYTES)));
                        }
                    }
                }
                Record::Delta { at, delta } => {
                    clear(&mut zeros)?;
                    pages.write(self)?;
                    let range = self.range(at.block as u8, at.offset, PAGE_BYTES)?;
                    self.0[at.block as usize]
                        .apply_delta(range.start, delta)?
                        .map_err(|source| Error::Delta { offset: at.offset, source })?;
                }
                _ => return Err(Error::Command("a record that is no page among pages")),
            }
        }
        clear(&mut zeros)?;
        pages.write(self)
    }

    /// Makes a range zero without touching what is zero already, holes above all.
    pub(crate) fn zero(&self, block: u8, offset: u64, bytes: u64) -> Result<(), Error> {
        let range = self.range(block, offset, bytes)?;
        Ok(self.0[usize::from(block)].clear(range)?)
    }

    /// Writes whole pages.
    pub(super) fn write(&self, block: u8, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = self.range(block, offset, bytes.len() as u64)?;
        Ok(self.0[usize::from(block)].fill(range.start, &mut [IoSlice::new(bytes)])?)
    }

    /// Maps a file from `offset` on in place of a block; `changed` is called when that is written to.
    pub(super) fn lay_over(
        &self,
        block: u8,
        file: File,
        offset: u64,
        changed: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        Ok(self.0[usize::from(block)].lay_over(file, offset, changed)?)
    }

    /// Receives a run of pages.
    pub(crate) fn receive(
        &self,
        ring: &mut Ring,
        reader: &mut SocketReader,
        block: u8,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        sabotage::panic_on(Fault::PanicInRound);
        let range = self.range(block, offset, bytes)?;
        let block = &self.0[usize::from(block)];
        if !block.is_filled_by_descriptor(&range) {
            if !block.is_mapped(&range) {
                block.populate(range.clone())?;
            }
            return Ok(reader.read_to(ring, block, range)?);
        }
        let mut at = range.start;
        while at < range.end {
            let left = (range.end - at) as usize;
            // Whole pages only: part of a page that is not there yet would be cleared first.
            let have = match reader.bytes().len() {
                have if have >= left => left,
                have => have / PAGE_BYTES as usize * PAGE_BYTES as usize,
            };
            if have == 0 {
                reader.fill(ring)?;
                continue;
            }
            block.fill(at, &mut [IoSlice::new(&reader.bytes()[..have])])?;
            reader.consume(have);
            at += have as u64;
        }
        Ok(())
    }

    fn range(&self, block: u8, offset: u64, bytes: u64) -> Result<Range<u64>, Error> {
        let inside = |found: &&RamBlock| {
            offset.is_multiple_of(PAGE_BYTES)
                && bytes.is_multiple_of(PAGE_BYTES)
                && offset.checked_add(bytes).is_some_and(|end| end <= found.bytes())
        };
        match self.0.get(usize::from(block)).filter(inside) {
            Some(_) => Ok(offset..offset + bytes),
            None => Err(Error::Range { block, offset, bytes }),
        }
    }
}

/// Threads that share out what comes on the main channel, started when there is something to share.
#[derive(Default)]
pub(crate) struct Threads(OnceCell<Option<ThreadPool>>);

impl Threads {
    /// `None` on a host with one processor, and where no thread can be had.
    fn pool(&self) -> Option<&ThreadPool> {
        let start = || {
            let threads =
                std::thread::available_parallelism().map_or(1, |threads| threads.get()).min(8);
            let builder =
                ThreadPoolBuilder::new().num_threads(threads).thread_name(|_| "apply".into());
            builder.build().ok().filter(|_| threads > 1)
        };
        self.0.get_or_init(start).as_ref()
    }
}

/// Whole pages that follow each other in a block, to be written at once.
#[derive(Default)]
struct WholePages<'r> {
    first: Option<PageAt>,
    pages: Vec<IoSlice<'r>>,
}

impl<'r> WholePages<'r> {
    fn push(&mut self, blocks: &Blocks, at: PageAt, bytes: &'r [u8]) -> Result<(), Error> {
        let follows = self.first.is_some_and(|first| {
            first.block == at.block
                && first.offset + self.pages.len() as u64 * PAGE_BYTES == at.offset
        });
        if !follows || self.pages.len() == PIECES_MAX {
            self.write(blocks)?;
            self.first = Some(at);
        }
        self.pages.push(IoSlice::new(bytes));
        Ok(())
    }

    fn write(&mut self, blocks: &Blocks) -> Result<(), Error> {
        if let Some(at) = self.first.take() {
            let bytes = self.pages.len() as u64 * PAGE_BYTES;
            let range = blocks.range(at.block as u8, at.offset, bytes)?;
            blocks.0[at.block as usize].fill(range.start, &mut self.pages)?;
            self.pages.clear();
        }
        Ok(())
    }
}

/// Applies the records of a frame as far as they have come; waits for more if none has.
pub(crate) fn apply_records<L: Layouts>(
    frames: &mut Reader<L>,
    ring: &mut Ring,
    socket: &mut SocketReader,
    apply: impl Fn(&[Record<'_>]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut batch = Vec::with_capacity(BATCH_RECORDS);
    let used = frames.ram_batch(socket.bytes(), BATCH_RECORDS, &mut batch)?;
    let idle = batch.is_empty();
    apply(&batch)?;
    drop(batch);
    socket.consume(used);
    if idle {
        socket.fill(ring)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};

    fn blocks() -> (GuestRam, Blocks) {
        let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        let memory = Memory {
            bytes: 1 << 20,
            block: "ram".into(),
            backend,
            prealloc: false,
            merge: false,
            dump: true,
        };
        let ram = GuestRam::new(&memory).unwrap();
        let mut blocks = Blocks::default();
        let listed = ListedBlock {
            name: "ram".into(),
            bytes: 1 << 20,
            page_bytes: None,
            guest_address: None,
            mapped: None,
        };
        blocks.add(&ram, &listed).unwrap();
        (ram, blocks)
    }

    #[test]
    fn zeros_leave_holes_holes() {
        let (ram, blocks) = blocks();
        ram.write(8192, &[5; 4096]).unwrap();
        blocks.zero(0, 0, 1 << 20).unwrap();
        let mut byte = [1];
        ram.read(8192, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert_eq!(ram.main().data_pages().unwrap().iter().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn zeros_reach_every_page_that_has_data_and_no_other() {
        // Pages that have data: all, none, alternating in places, runs across the parts asked about.
        let wholly: fn(u64) -> bool = |_| true;
        for has_data in [wholly, |_| false, |page| page % 3 == 1, |page| !(90..140).contains(&page)]
        {
            let (ram, blocks) = blocks();
            let pages: Vec<u64> = (0..256).filter(|page| has_data(*page)).collect();
            for page in &pages {
                ram.write(page * PAGE_BYTES, &[*page as u8 | 1; 4096]).unwrap();
            }
            blocks.zero(0, 5 * PAGE_BYTES, 240 * PAGE_BYTES).unwrap();
            for page in 0..256 {
                if has_data(page) {
                    let mut bytes = [9; 4096];
                    ram.read(page * PAGE_BYTES, &mut bytes).unwrap();
                    let kept = if (5..245).contains(&page) { 0 } else { page as u8 | 1 };
                    assert_eq!(bytes, [kept; 4096], "page {page}");
                }
            }
            assert_eq!(ram.main().data_pages().unwrap().iter().collect::<Vec<_>>(), pages);
        }
    }

    #[test]
    fn ranges_outside_and_unaligned_are_refused() {
        let (_ram, blocks) = blocks();
        for (block, offset, bytes) in [
            (1, 0, 4096),
            (0, 1 << 20, 4096),
            (0, 0, (1 << 20) + 4096),
            (0, 1, 4096),
            (0, 0, 1),
            (0, u64::MAX - 4095, 8192),
        ] {
            assert!(blocks.zero(block, offset, bytes).is_err(), "{block} {offset} {bytes}");
        }
    }

    #[test]
    fn deltas_change_the_page_in_place() {
        let (ram, blocks) = blocks();
        ram.write(0, &[1; 4096]).unwrap();
        let at = PageAt { block: 0, offset: 0 };
        blocks.apply(&[Record::Delta { at, delta: &[2, 1, 9] }]).unwrap();
        let mut bytes = [0; 4];
        ram.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 9, 1]);
        assert!(blocks.apply(&[Record::Delta { at, delta: &[0xff, 0xff] }]).is_err());
    }
}
