//! Pages on their way in: bytes, zeros and deltas into guest memory.
//!
//! Unsafe because guest memory is written by address. No vCPU runs yet, and each page is written by one thread at a
//! time: the stream's, or that of the channel the page travels on.
#![allow(unsafe_code)]

use std::ops::Range;

use super::Error;
use crate::io::{Ring, SocketReader};
use crate::memory::{GuestRam, PAGE_BYTES, RamBlock};
use crate::stream::Record;
use crate::stream::ram::{ListedBlock, PageAt};

/// The blocks of the stream's list, as they are here.
#[derive(Clone, Default)]
pub struct Blocks(Vec<Block>);

#[derive(Clone)]
struct Block {
    ram: RamBlock,
    known: Known,
}

/// What the last question about holes told: none but holes from `from` to `data.start`, then data. Asking takes as long
/// as there are pages with data, so it must not be asked for each page.
#[derive(Clone, Default)]
struct Known {
    from: u64,
    data: Range<u64>,
}

impl Block {
    /// The next range at or after `at` that may hold something else than zeros; its start may lie before `at`.
    fn next_data(&mut self, at: u64) -> Result<Range<u64>, Error> {
        if !(self.known.from..self.known.data.end).contains(&at) {
            let end = self.ram.bytes()..self.ram.bytes();
            self.known = Known { from: at, data: self.ram.next_data(at)?.unwrap_or(end) };
        }
        Ok(self.known.data.clone())
    }

    /// Pages up to `end` are going to be written: what was known of holes before there is known no more.
    fn will_write(&mut self, end: u64) {
        self.known.from = self.known.from.max(end.min(self.known.data.start));
    }
}

impl Blocks {
    /// Finds the listed block here. One that belongs to no device here is kept as it comes.
    pub fn add(&mut self, ram: &GuestRam, listed: &ListedBlock) -> Result<(), Error> {
        let block = match ram.block(&listed.name) {
            Some(block) => block,
            None => ram.keep_block(&listed.name, listed.bytes)?,
        };
        if block.bytes() != listed.bytes {
            let (name, here, there) = (listed.name.clone(), block.bytes(), listed.bytes);
            return Err(Error::BlockSize { name, here, there });
        }
        self.0.push(Block { ram: block.clone(), known: Known::default() });
        Ok(())
    }

    /// Applies one page record.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), Error> {
        match record {
            Record::Page { at, bytes } => {
                let to = self.page(*at)?;
                // SAFETY: `page` gave a page of the block's mapping, and the record's bytes are the reader's buffer.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
                Ok(())
            }
            Record::Zero { at } => self.zero(at.block as u8, at.offset, PAGE_BYTES),
            Record::Delta { at, delta } => {
                let to = self.page(*at)?;
                // SAFETY: a page of the block's mapping, written by nobody else now; the delta is in the buffer.
                unsafe { xbzrle::decode_at(delta, to) }
                    .map_err(|source| Error::Delta { offset: at.offset, source })
            }
            other => unreachable!("{other:?} is no page record"),
        }
    }

    /// Makes a range zero without touching what is zero already, holes above all.
    pub fn zero(&mut self, block: u8, offset: u64, bytes: u64) -> Result<(), Error> {
        let range = self.range(block, offset, bytes)?;
        let block = &mut self.0[usize::from(block)];
        let mut at = range.start;
        while at < range.end {
            let data = block.next_data(at)?;
            let (start, end) = (data.start.max(at), data.end.min(range.end));
            for page in (start..end).step_by(PAGE_BYTES as usize) {
                // SAFETY: the page lies in the block's mapping, and nobody else writes it now.
                unsafe {
                    let to = block.ram.host().add(page as usize);
                    if !xbzrle::is_zero_live(to, PAGE_BYTES as usize) {
                        std::ptr::write_bytes(to, 0, PAGE_BYTES as usize);
                    }
                }
            }
            at = data.end.max(at + PAGE_BYTES);
        }
        Ok(())
    }

    /// Receives a run of pages straight into the block.
    pub fn receive(
        &mut self,
        ring: &mut Ring,
        reader: &mut SocketReader,
        block: u8,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let range = self.range(block, offset, bytes)?;
        let block = &mut self.0[usize::from(block)];
        block.will_write(range.end);
        // Page tables for the whole run at once: a fault for each page would cost half as much as the copy. A kernel
        // that does not know this (before 5.14) takes the faults.
        // SAFETY: the range lies in the block's mapping, and populating changes no byte.
        unsafe {
            let start = block.ram.host().add(range.start as usize);
            libc::madvise(start.cast(), bytes as usize, libc::MADV_POPULATE_WRITE);
        }
        // SAFETY: the range lies in the block's mapping, which `block` keeps.
        unsafe { reader.read_to(ring, block.ram.host().add(range.start as usize), bytes as usize) }?;
        Ok(())
    }

    fn page(&mut self, at: PageAt) -> Result<*mut u8, Error> {
        let range = self.range(at.block as u8, at.offset, PAGE_BYTES)?;
        let block = &mut self.0[at.block as usize];
        block.will_write(range.end);
        // SAFETY: `range` has checked that the page lies in the block.
        Ok(unsafe { block.ram.host().add(at.offset as usize) })
    }

    fn range(&self, block: u8, offset: u64, bytes: u64) -> Result<Range<u64>, Error> {
        let inside = |found: &&Block| {
            offset.is_multiple_of(PAGE_BYTES)
                && bytes.is_multiple_of(PAGE_BYTES)
                && offset.checked_add(bytes).is_some_and(|end| end <= found.ram.bytes())
        };
        match self.0.get(usize::from(block)).filter(inside) {
            Some(_) => Ok(offset..offset + bytes),
            None => Err(Error::Range { block, offset, bytes }),
        }
    }
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
        let (ram, mut blocks) = blocks();
        ram.write(8192, &[5; 4096]).unwrap();
        blocks.zero(0, 0, 1 << 20).unwrap();
        let mut byte = [1];
        ram.read(8192, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert_eq!(ram.main().data_pages().unwrap().iter().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn ranges_outside_and_unaligned_are_refused() {
        let (_ram, mut blocks) = blocks();
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
        let (ram, mut blocks) = blocks();
        ram.write(0, &[1; 4096]).unwrap();
        let at = PageAt { block: 0, offset: 0 };
        blocks.apply(&Record::Delta { at, delta: &[2, 1, 9] }).unwrap();
        let mut bytes = [0; 4];
        ram.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 9, 1]);
        assert!(blocks.apply(&Record::Delta { at, delta: &[0xff, 0xff] }).is_err());
    }
}
