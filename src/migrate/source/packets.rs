//! QEMU's multifd packets, written to one channel: pages are collected until a packet is full, which leaves as a header
//! and the pages behind it, from where they are or compressed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::{Compress, Compression, FlushCompress};
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

use super::Error;
use crate::encode::PageSource;
use crate::io::{self, Gather};
use crate::memory::PAGE_BYTES;
use crate::migrate::parameters::Parameters;
use crate::stream::multifd::{Method, PACKET_PAGES_MAX, Packet};

/// Makes the packets of one channel.
pub struct Packets {
    /// One count over all channels.
    numbers: Arc<AtomicU64>,
    packer: Packer,
    /// Byte offsets of the pages of the packet being filled, all of one block.
    normal: Vec<u64>,
    zero: Vec<u64>,
}

/// What makes a packet's data. Compressed data are one endless stream per channel, flushed at each packet; a level set
/// later holds for the next migration, as in QEMU, because neither library changes it inside a stream that a QEMU reads.
enum Packer {
    None,
    Zlib(Compress),
    Zstd(Encoder<'static>),
}

impl Packets {
    pub fn new(numbers: Arc<AtomicU64>, parameters: &Parameters) -> Result<Self, Error> {
        let packer = match parameters.multifd_compression {
            "zlib" => {
                Packer::Zlib(Compress::new(Compression::new(parameters.multifd_zlib_level.into()), true))
            }
            "zstd" => Packer::Zstd(Encoder::new(parameters.multifd_zstd_level.into()).map_err(broken)?),
            _ => Packer::None,
        };
        Ok(Self { numbers, packer, normal: Vec::new(), zero: Vec::new() })
    }

    /// Adds a page to be sent whole. True if the packet is full.
    pub fn page(&mut self, page: u64) -> bool {
        self.normal.push(page * PAGE_BYTES);
        self.is_full()
    }

    /// Adds a page of zeros. True if the packet is full.
    pub fn zero(&mut self, page: u64) -> bool {
        self.zero.push(page * PAGE_BYTES);
        self.is_full()
    }

    pub fn is_empty(&self) -> bool {
        self.normal.is_empty() && self.zero.is_empty()
    }

    fn is_full(&self) -> bool {
        self.normal.len() + self.zero.len() == PACKET_PAGES_MAX
    }

    /// Puts the packet being filled, whose pages are all from `source`, into a send. Pages are read only now, or by the
    /// kernel when it sends: their dirty bits were cleared before they were added.
    pub fn write(&mut self, source: &PageSource, gather: &mut Gather) -> Result<(), Error> {
        let compressed = match &self.packer {
            _ if self.normal.is_empty() => None,
            Packer::None => None,
            _ => {
                let mut pages = Vec::with_capacity(self.normal.len() * PAGE_BYTES as usize);
                for offset in &self.normal {
                    source.copy(offset / PAGE_BYTES, &mut pages);
                }
                Some(self.packer.pack(&pages)?)
            }
        };
        let data_bytes =
            compressed.as_ref().map_or(self.normal.len() * PAGE_BYTES as usize, |data| data.len());
        let mut offsets = std::mem::take(&mut self.normal);
        let normal = offsets.len();
        offsets.append(&mut self.zero);
        let packet = Packet {
            sync: false,
            method: self.packer.method(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            block: source.name().to_owned(),
            normal: normal as u32,
            data_bytes: data_bytes as u32,
            offsets,
        };
        packet.write(gather.own());
        match compressed {
            Some(data) => gather.own().extend_from_slice(&data),
            None => {
                for run in packet.normal_pages().chunk_by(|a, b| a + PAGE_BYTES == *b) {
                    let first = run[0] / PAGE_BYTES;
                    source.gather(first..first + run.len() as u64, gather);
                }
            }
        }
        self.normal = packet.offsets;
        self.normal.clear();
        Ok(())
    }

    /// The packet that ends a round.
    pub fn write_sync(&mut self, out: &mut Vec<u8>) {
        assert!(self.is_empty(), "a packet is left at the end of a round");
        Packet {
            sync: true,
            method: self.packer.method(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            block: String::new(),
            normal: 0,
            data_bytes: 0,
            offsets: Vec::new(),
        }
        .write(out);
    }
}

impl Packer {
    fn method(&self) -> Method {
        match self {
            Self::None => Method::None,
            Self::Zlib(_) => Method::Zlib,
            Self::Zstd(_) => Method::Zstd,
        }
    }

    /// The next part of the channel's endless stream, which gives all of `pages` to a reader that has what came before.
    fn pack(&mut self, pages: &[u8]) -> Result<Vec<u8>, Error> {
        // Room for pages that cannot be compressed: both libraries then add some bytes per block of 16 KiB or more.
        let mut out = vec![0; pages.len() + pages.len() / 64 + 1024];
        let (read, made) = match self {
            Self::None => (pages.len(), 0),
            Self::Zlib(stream) => {
                let (read_before, made_before) = (stream.total_in(), stream.total_out());
                stream.compress(pages, &mut out, FlushCompress::Sync).map_err(broken)?;
                ((stream.total_in() - read_before) as usize, (stream.total_out() - made_before) as usize)
            }
            Self::Zstd(stream) => {
                let (mut input, mut space) = (InBuffer::around(pages), OutBuffer::around(&mut out[..]));
                while input.pos() < pages.len() && space.pos() < space.capacity() {
                    stream.run(&mut input, &mut space).map_err(broken)?;
                }
                let left = stream.flush(&mut space).map_err(broken)?;
                (input.pos(), if left == 0 { space.pos() } else { out.len() })
            }
        };
        if read < pages.len() || made == out.len() {
            return Err(broken("pages grew by more than a packet has room for"));
        }
        out.truncate(made);
        Ok(out)
    }
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Io(io::Error::System(std::io::Error::other(format!("multifd compression: {error}"))))
}
