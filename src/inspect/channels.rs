//! Multifd channels: read round by round, in step with the main channel.

use super::error::{Failure, read_failure};
use super::image::Image;
use super::report::ChannelReport;
use super::source::Source;
use crate::stream::multifd::{HELLO_BYTES, Hello, MAGIC, Method, PACKET_BYTES, Packet};
use crate::stream::{Error, ListedBlock, PAGE_BYTES, Problem};
use flate2::{Decompress, FlushDecompress, Status};
use std::path::{Path, PathBuf};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// One channel's file.
pub struct Channel {
    path: PathBuf,
    source: Source,
    offset: u64,
    unpacker: Unpacker,
    ended: bool,
    pub report: ChannelReport,
}

/// What the packets so far were compressed with; one endless stream per channel.
enum Unpacker {
    None,
    Zlib(Box<Decompress>),
    Zstd(Box<Decoder<'static>>),
}

impl Channel {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let source = Source::open(path).map_err(read_failure(path))?;
        let mut channel = Self {
            path: path.to_owned(),
            source,
            offset: 0,
            unpacker: Unpacker::None,
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
    pub fn read_round(
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
        let wanted = packet.normal as usize * PAGE_BYTES;
        let data = unpack(&mut self.unpacker, packet.method, &self.source.input()[..bytes], wanted)
            .map_err(|why| self.refuse("multifd packet", "data", Problem::Says(why)))?;
        if packet.normal > 0 {
            self.report.method = packet.method.name();
        }
        self.consume(bytes);
        let Some((image, _)) = image.as_mut().filter(|(_, number)| *number == block as u32) else {
            return Ok(());
        };
        for (offset, page) in packet.normal_pages().iter().zip(data.as_chunks().0) {
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

/// Unpacks exactly `wanted` bytes; the rest of the compressor's stream follows with the next
/// packet.
fn unpack(
    unpacker: &mut Unpacker,
    method: Method,
    packed: &[u8],
    wanted: usize,
) -> Result<Vec<u8>, String> {
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let mut out = vec![0; wanted];
    match method {
        Method::None => out.copy_from_slice(packed),
        Method::Zlib => {
            if !matches!(unpacker, Unpacker::Zlib(_)) {
                *unpacker = Unpacker::Zlib(Box::new(Decompress::new(true)));
            }
            let Unpacker::Zlib(inflate) = unpacker else { return Err("no inflater".into()) };
            inflate_all(inflate, packed, &mut out)?;
        }
        Method::Zstd => {
            if !matches!(unpacker, Unpacker::Zstd(_)) {
                *unpacker =
                    Unpacker::Zstd(Box::new(Decoder::new().map_err(|error| error.to_string())?));
            }
            let Unpacker::Zstd(decoder) = unpacker else { return Err("no decoder".into()) };
            decode_all(decoder, packed, &mut out)?;
        }
        other => return Err(format!("compressed with {}, which needs hardware", other.name())),
    }
    Ok(out)
}

fn inflate_all(inflate: &mut Decompress, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let (in_start, out_start) = (inflate.total_in(), inflate.total_out());
    loop {
        let (taken, made) =
            ((inflate.total_in() - in_start) as usize, (inflate.total_out() - out_start) as usize);
        if made == out.len() {
            return Ok(());
        }
        let status = inflate
            .decompress(&packed[taken..], &mut out[made..], FlushDecompress::Sync)
            .map_err(|error| error.to_string())?;
        let stuck = inflate.total_in() - in_start == taken as u64
            && inflate.total_out() - out_start == made as u64;
        if stuck || status == Status::StreamEnd {
            return Err("fewer pages than the header says".into());
        }
    }
}

fn decode_all(decoder: &mut Decoder<'static>, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut input = InBuffer::around(packed);
    let wanted = out.len();
    let mut output = OutBuffer::around(out);
    while output.pos() < wanted {
        let before = (input.pos, output.pos());
        decoder.run(&mut input, &mut output).map_err(|error| error.to_string())?;
        if before == (input.pos, output.pos()) {
            return Err("fewer pages than the header says".into());
        }
    }
    Ok(())
}
