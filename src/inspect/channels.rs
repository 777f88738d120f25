//! Multifd channels: read round by round, in step with the main channel.

use super::error::{Failure, read_failure};
use super::image::Image;
use super::report::ChannelReport;
use super::source::Source;
use crate::stream::multifd::{
    Decompressor, HELLO_BYTES, Hello, MAGIC, Method, PACKET_BYTES, Packet,
};
use crate::stream::{Error, ListedBlock, PAGE_BYTES, Problem};
use std::path::{Path, PathBuf};

/// One channel's file.
pub(super) struct Channel {
    path: PathBuf,
    source: Source,
    offset: u64,
    decompressor: Decompressor,
    ended: bool,
    pub report: ChannelReport,
}

impl Channel {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let source = Source::open(path).map_err(read_failure(path))?;
        let mut channel = Self {
            path: path.to_owned(),
            source,
            offset: 0,
            decompressor: Decompressor::default(),
            ended: false,
            report: ChannelReport::default(),
        };
        if !channel.fill(HELLO_BYTES)? {
            return Err(channel.refuse("multifd hello", "magic", Problem::Ends));
        }
        let hello = channel.source.input().first_chunk().expect("filled");
        let hello =
            Hello::parse(hello).map_err(|error| Failure::Stream(channel.path.clone(), error))?;
        channel.report.id = hello.channel;
        channel.consume(HELLO_BYTES);
        Ok(channel)
    }

    /// Reads up to and including the next SYNC packet, or to the end; false if nothing was left.
    pub(super) fn read_round(
        &mut self,
        blocks: &[ListedBlock],
        image: &mut Option<(Image, u32)>,
    ) -> Result<bool, Failure> {
        let mut any = false;
        while !self.ended {
            if !self.fill(PACKET_BYTES)? {
                if !self.source.input().is_empty() && !self.is_tls_end() {
                    return Err(self.refuse("multifd packet", "header", Problem::Ends));
                }
                self.ended = true;
                break;
            }
            any = true;
            let head = self.source.input().first_chunk().expect("filled");
            let packet = Packet::parse(head, self.offset)
                .map_err(|error| Failure::Stream(self.path.clone(), error))?;
            self.consume(PACKET_BYTES);
            self.pages(&packet, blocks, image)?;
            if packet.sync {
                self.report.syncs += 1;
                break;
            }
        }
        Ok(any)
    }

    fn pages(
        &mut self,
        packet: &Packet,
        blocks: &[ListedBlock],
        image: &mut Option<(Image, u32)>,
    ) -> Result<(), Failure> {
        self.report.packets += 1;
        self.report.pages += u64::from(packet.normal);
        self.report.zero += packet.zero_pages().len() as u64;
        self.report.data_bytes += u64::from(packet.data_bytes);
        if packet.offsets.is_empty() {
            return Ok(());
        }
        let found = blocks.iter().position(|block| block.name == packet.block);
        let Some(block) = found else {
            return Err(self.refuse(
                "multifd packet",
                "block name",
                Problem::Unknown { name: packet.block.clone() },
            ));
        };
        if let Some(&found) = packet.offsets.iter().find(|offset| **offset >= blocks[block].bytes) {
            let limit = blocks[block].bytes - PAGE_BYTES as u64;
            return Err(self.refuse(
                "multifd packet",
                "page offset",
                Problem::TooLarge { found, limit },
            ));
        }
        let bytes = packet.data_bytes as usize;
        if !self.fill(bytes)? {
            return Err(self.refuse("multifd packet", "data", Problem::Ends));
        }
        let mut pages = vec![0; packet.normal as usize * PAGE_BYTES];
        let packed = &self.source.input()[..bytes];
        match packet.method {
            _ if pages.is_empty() => {}
            Method::None => pages.copy_from_slice(packed),
            method => self.decompressor.unpack(method, packed, &mut pages).map_err(|why| {
                self.refuse("multifd packet", "data", Problem::Says(why.to_string()))
            })?,
        }
        if packet.normal > 0 {
            self.report.method = packet.method.name();
        }
        self.consume(bytes);
        let Some((image, _)) = image.as_mut().filter(|(_, number)| *number == block as u32) else {
            return Ok(());
        };
        for (offset, page) in packet.normal_pages().iter().zip(pages.as_chunks().0) {
            image.write(*offset, page).map_err(Failure::Image)?;
        }
        packet
            .zero_pages()
            .iter()
            .try_for_each(|offset| image.zero(*offset))
            .map_err(Failure::Image)
    }

    /// A recorded TLS connection may end with a few bytes of its own; anything shorter than a magic
    /// is not a packet.
    fn is_tls_end(&self) -> bool {
        self.source.input().first_chunk().is_none_or(|magic| u32::from_be_bytes(*magic) != MAGIC)
            && self.source.input().len() < 64
    }

    fn fill(&mut self, bytes: usize) -> Result<bool, Failure> {
        self.source.fill(bytes).map_err(read_failure(&self.path))
    }

    fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.offset += bytes as u64;
    }

    fn refuse(&self, section: &str, field: &str, problem: Problem) -> Failure {
        Failure::Stream(self.path.clone(), Error::new(section, field, self.offset, problem))
    }
}
