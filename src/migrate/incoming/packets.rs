//! QEMU's multifd packets, read from one channel.

use super::Error;
use super::apply::Blocks;
use crate::io::{Ring, SocketReader};
use crate::memory::PAGE_BYTES;
use crate::stream::Record;
use crate::stream::multifd::{Decompressor, Method, PACKET_BYTES, PACKET_PAGES_MAX, Packet};
use crate::stream::ram::PageAt;

/// Reads packets.
#[derive(Default)]
pub(super) struct Packets {
    decompressor: Decompressor,
    pages: Vec<u8>,
    offset: u64,
}

impl Packets {
    /// Reads and applies one packet; true if it ends the channel's part of a round. `names` are the
    /// listed blocks.
    pub(super) fn read(
        &mut self,
        ring: &mut Ring,
        reader: &mut SocketReader,
        blocks: &Blocks,
        names: &[String],
    ) -> Result<bool, Error> {
        let header: &[u8; PACKET_BYTES] =
            reader.need(ring, PACKET_BYTES)?.try_into().expect("asked for as many");
        let packet = Packet::parse(header, self.offset)?;
        reader.consume(PACKET_BYTES);
        self.offset += PACKET_BYTES as u64 + u64::from(packet.data_bytes);
        if !packet.offsets.is_empty() {
            let block = names.iter().position(|name| *name == packet.block);
            let block =
                block.ok_or(Error::Command("a packet for a block that was not listed"))? as u8;
            self.normal_pages(ring, reader, blocks, block, &packet)?;
            for offset in packet.zero_pages() {
                blocks.zero(block, *offset, PAGE_BYTES)?;
            }
        }
        Ok(packet.sync)
    }

    fn normal_pages(
        &mut self,
        ring: &mut Ring,
        reader: &mut SocketReader,
        blocks: &Blocks,
        block: u8,
        packet: &Packet,
    ) -> Result<(), Error> {
        let offsets = packet.normal_pages();
        if offsets.is_empty() {
            return Ok(());
        }
        if packet.method == Method::None {
            for run in offsets.chunk_by(|a, b| a.checked_add(PAGE_BYTES) == Some(*b)) {
                blocks.receive(ring, reader, block, run[0], run.len() as u64 * PAGE_BYTES)?;
            }
            return Ok(());
        }
        let bytes = packet.data_bytes as usize;
        let data = reader.need(ring, bytes)?;
        self.pages.resize(PACKET_PAGES_MAX * PAGE_BYTES as usize, 0);
        let pages = &mut self.pages[..offsets.len() * PAGE_BYTES as usize];
        self.decompressor.unpack(packet.method, data, pages)?;
        reader.consume(bytes);
        let pages = offsets.iter().zip(pages.as_chunks::<{ PAGE_BYTES as usize }>().0);
        let records: Vec<_> = pages
            .map(|(offset, bytes)| Record::Page {
                at: PageAt { block: block.into(), offset: *offset },
                bytes,
            })
            .collect();
        blocks.apply(&records)
    }
}
