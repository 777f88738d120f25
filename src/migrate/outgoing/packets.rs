//! QEMU's multifd packets, written to one channel: pages are collected until a packet is full,
//! which leaves as a header and the pages behind it, from where they are or compressed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xbzrle::parallel::Output;

use super::error::Error;
use super::framing::{Framing, ZeroRules, Zeros};
use crate::io::Gather;
use crate::memory::PAGE_BYTES;
use crate::migrate::settings::Settings;
use crate::pages::PageSource;
use crate::stream::multifd::{Compressor, Method, PACKET_BYTES, PACKET_PAGES_MAX, Packet};

/// Makes the packets of one channel.
pub(super) struct Packets {
    /// One count over all channels.
    numbers: Arc<AtomicU64>,
    /// Where the compression's level is looked up for each packet.
    settings: Arc<Settings>,
    /// `None`: pages travel as they are.
    compressor: Option<Compressor>,
    /// Byte offsets of the pages of the packet being filled, all of one block.
    normal: Vec<u64>,
    zero: Vec<u64>,
    zeros_for_main: Vec<Zeros>,
}

impl Packets {
    pub(super) fn new(numbers: Arc<AtomicU64>, settings: Arc<Settings>) -> Result<Self, Error> {
        let parameters = settings.parameters();
        let compressor = match parameters.multifd_compression {
            "zlib" => Some(Compressor::zlib(parameters.multifd_zlib_level)),
            "zstd" => Some(Compressor::zstd(parameters.multifd_zstd_level)?),
            _ => None,
        };
        let (normal, zero, zeros_for_main) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { numbers, settings, compressor, normal, zero, zeros_for_main })
    }

    /// Puts the packet being filled, whose pages are all from `source`, into a send if it has
    /// `least` pages. Pages are read only now, or by the kernel when it sends: their dirty bits
    /// were cleared before they were added.
    fn write(
        &mut self,
        least: usize,
        source: &PageSource,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        if self.normal.len() + self.zero.len() < least {
            return Ok(());
        }
        let mut offsets = std::mem::take(&mut self.normal);
        let normal = offsets.len();
        // The header says how many bytes are behind it.
        let own = gather.own();
        let header_at = own.len();
        own.resize(header_at + PACKET_BYTES, 0);
        let data_bytes = match &mut self.compressor {
            Some(compressor) if normal > 0 => {
                let mut pages = vec![0; normal * PAGE_BYTES as usize];
                for (offset, room) in offsets.iter().zip(pages.as_chunks_mut().0) {
                    source.copy(offset / PAGE_BYTES, room);
                }
                let parameters = self.settings.parameters();
                let level = match compressor.method() {
                    Method::Zlib => parameters.multifd_zlib_level,
                    _ => parameters.multifd_zstd_level,
                };
                compressor.pack(&pages, level, own)?
            }
            _ => normal * PAGE_BYTES as usize,
        };
        offsets.append(&mut self.zero);
        let packet = Packet {
            block: source.block().name().to_owned(),
            normal: normal as u32,
            data_bytes: data_bytes as u32,
            offsets,
            ..self.empty()
        };
        let mut header = Vec::with_capacity(PACKET_BYTES);
        packet.write(&mut header);
        gather.own()[header_at..header_at + PACKET_BYTES].copy_from_slice(&header);
        if self.compressor.is_none() {
            for run in packet.normal_pages().chunk_by(|a, b| a + PAGE_BYTES == *b) {
                gather.memory(source.block(), run[0]..run[run.len() - 1] + PAGE_BYTES);
            }
        }
        self.normal = packet.offsets;
        self.normal.clear();
        Ok(())
    }

    /// The channel's next packet, without pages.
    fn empty(&self) -> Packet {
        Packet {
            sync: false,
            method: self.compressor.as_ref().map_or(Method::None, Compressor::method),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            block: String::new(),
            normal: 0,
            data_bytes: 0,
            offsets: Vec::new(),
        }
    }
}

impl Framing for Packets {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        rules: ZeroRules,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        if rules.on_main {
            self.zeros_for_main.push((source.index(), pages));
            return Ok(());
        }
        for page in pages {
            self.zero.push(page * PAGE_BYTES);
            self.write(PACKET_PAGES_MAX, source, gather)?;
        }
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        for page in pages {
            self.normal.push(page * PAGE_BYTES);
            self.write(PACKET_PAGES_MAX, source, gather)?;
        }
        Ok(())
    }

    fn deltas(&mut self, _: &Output, _: &mut Gather) {
        unreachable!("deltas and packets were refused together");
    }

    /// A packet holds pages of one block.
    fn end_block(&mut self, source: &PageSource, gather: &mut Gather) -> Result<(), Error> {
        self.write(1, source, gather)
    }

    fn end_round(&mut self, _: u32, out: &mut Vec<u8>) {
        assert!(
            self.normal.is_empty() && self.zero.is_empty(),
            "a packet is left at the end of a round"
        );
        Packet { sync: true, ..self.empty() }.write(out);
    }

    fn take_zeros_for_main(&mut self) -> Vec<Zeros> {
        std::mem::take(&mut self.zeros_for_main)
    }
}
