//! RAM at fixed places of a file (capability `mapped-ram`): a page has its place from the beginning,
//! a later version of it goes over the one before, and pages of zeros are not written. Which pages
//! count says a bitmap for each block, which is written when all pages are there.
//!
//! Pages are written by channels of their own, all over one descriptor, at positions and in any
//! order; the main channel writes the stream around them, and passes over their places.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xbzrle::parallel::Output;

use super::channel::Channel;
use super::error::Error;
use super::framing::{Framing, ZeroRules};
use super::peer::Peer;
use super::source::Source;
use crate::io::{Gather, Ring, Writer};
use crate::memory::{GuestRam, PAGE_BYTES};
use crate::migrate::capabilities::Capability;
use crate::migrate::progress::Counters;
use crate::pages::PageSource;
use crate::stream::mapped::MappedHeader;
use crate::stream::ram::RamWriter;

/// Words of a bitmap that are written at once: those of 2 GiB.
const PART_WORDS: usize = 8 << 10;

/// Where the blocks lie, and which of their pages count.
pub(super) struct MappedFile(Vec<MappedBlock>);

struct MappedBlock {
    header: MappedHeader,
    /// Bits of pages that were written and not zero since. A channel changes bits of its own pages,
    /// of which there are whole words.
    written: Vec<AtomicU64>,
}

impl MappedBlock {
    fn new(header: MappedHeader, pages: u64) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0));
        Self { header, written: words.collect() }
    }

    fn set(&self, pages: Range<u64>, count: bool) {
        for word in pages.start / 64..pages.end.div_ceil(64) {
            let first = pages.start.max(word * 64) % 64;
            let last = (pages.end.min(word * 64 + 64) - 1) % 64;
            let bits = u64::MAX << first & u64::MAX >> (63 - last);
            let word = &self.written[word as usize];
            match count {
                true => word.fetch_or(bits, Ordering::Relaxed),
                false => word.fetch_and(!bits, Ordering::Relaxed),
            };
        }
    }
}

/// Lays out pages at their places in the file.
struct AtPlaces(Arc<MappedFile>);

impl AtPlaces {
    fn block(&self, source: &PageSource) -> &MappedBlock {
        &self.0.0[usize::from(source.index())]
    }
}

impl Framing for AtPlaces {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        _: ZeroRules,
        _: &mut Gather,
    ) -> Result<(), Error> {
        self.block(source).set(pages, false);
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        gather.memory(source.block(), pages.start * PAGE_BYTES..pages.end * PAGE_BYTES);
        self.block(source).set(pages, true);
        Ok(())
    }

    fn copied(
        &mut self,
        source: &PageSource,
        page: u64,
        bytes: &[u8],
        gather: &mut Gather,
    ) -> Result<(), Error> {
        gather.own().extend_from_slice(bytes);
        self.block(source).set(page..page + 1, true);
        Ok(())
    }

    fn deltas(&mut self, _: &Output, _: &mut Gather) {
        unreachable!("xbzrle does not go with mapped-ram")
    }

    fn place(&self, source: &PageSource, page: u64) -> Option<u64> {
        Some(self.block(source).header.pages_offset + page * PAGE_BYTES)
    }
}

impl Peer {
    /// Writes the list of blocks, each with its place in the file, behind `out`, and makes the
    /// channels that write pages there.
    pub(super) fn place_blocks(&mut self, source: &Source, mut out: Vec<u8>) -> Result<(), Error> {
        let (ram, counters) = (source.guest.ram(), &source.progress.counters);
        RamWriter::list_head(&mut out, ram.blocks().iter().map(|block| block.bytes()).sum());
        let mut placed = Vec::new();
        for block in ram.blocks() {
            RamWriter::list_entry(&mut out, block.name(), block.bytes());
            let place = self.main.writer.place().ok_or(Error::MappedNeedsFile)?;
            let header = MappedHeader::new(place + out.len() as u64, block.bytes());
            header.write(&mut out);
            self.main.send_bytes(counters, true, &out)?;
            self.main.writer.go_on_at(&mut self.main.ring, header.end(block.bytes()))?;
            placed.push(MappedBlock::new(header, block.pages()));
            out.clear();
        }
        let file = Arc::new(MappedFile(placed));
        let multifd = source.settings.has(Capability::Multifd);
        let channels = if multifd { source.settings.parameters().multifd_channels } else { 1 };
        for number in 0..channels {
            self.channels.push(self.place_channel(source, number, &file, ram)?);
        }
        self.mapped = Some(file);
        Ok(())
    }

    fn place_channel(
        &self,
        source: &Source,
        number: u8,
        file: &Arc<MappedFile>,
        ram: &GuestRam,
    ) -> Result<Channel, Error> {
        let ring = Ring::new(source.waker.clone())?;
        let writer = Writer::positioned(self.file(), source.settings.limit.clone());
        let is_further = source.settings.has(Capability::Multifd);
        let framing = AtPlaces(file.clone());
        Ok(Channel::new(number.into(), is_further, ring, writer, framing, ram))
    }

    /// Says in the file which pages count. All of them have been written.
    pub(super) fn write_bitmaps(&mut self, counters: &Counters) -> Result<(), Error> {
        let (Some(file), Some(channel)) = (&self.mapped, self.channels.first_mut()) else {
            return Ok(());
        };
        for block in &file.0 {
            let mut place = block.header.bitmap_offset;
            for part in block.written.chunks(PART_WORDS) {
                let words = part.iter().map(|word| word.load(Ordering::Relaxed));
                let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                channel.send_bytes_at(counters, &bytes, place)?;
                place += bytes.len() as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_the_last_version_of_a_page() {
        let block = MappedBlock::new(MappedHeader::new(0, 200 * PAGE_BYTES), 200);
        let bits = |block: &MappedBlock| {
            let set = |page: &u64| {
                block.written[(page / 64) as usize].load(Ordering::Relaxed) >> (page % 64) & 1 == 1
            };
            (0..256).filter(set).collect::<Vec<u64>>()
        };
        block.set(3..4, true);
        block.set(60..200, true);
        assert_eq!(bits(&block), [3].into_iter().chain(60..200).collect::<Vec<_>>());
        block.set(63..129, false);
        block.set(0..64, false);
        assert_eq!(bits(&block), (129..200).collect::<Vec<_>>());
        block.set(64..128, true);
        assert_eq!(bits(&block), (64..128).chain(129..200).collect::<Vec<_>>());
    }
}
