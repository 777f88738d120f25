//! RAM at fixed places of a file (capability `mapped-ram`), as a peer writes it. Which pages count says
//! a bitmap for each block, which is written when all pages are there.
//!
//! Pages are written by channels of their own, all over one descriptor, at positions and in any
//! order; the main channel writes the stream around them, and passes over their places.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::channel::Channel;
use super::error::Error;
use super::peer::Peer;
use super::places::{AtPlaces, MappedBlock, MappedFile};
use super::source::Source;
use crate::io::{Ring, Writer};
use crate::memory::GuestRam;
use crate::migrate::capabilities::Capability;
use crate::migrate::progress::Counters;
use crate::stream::mapped::MappedHeader;
use crate::stream::ram::RamWriter;

/// Words of a bitmap that are written at once: those of 2 GiB.
const PART_WORDS: usize = 8 << 10;

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
        self.go_on_behind_pages()?;
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
