//! QEMU's multifd packets, written to one channel: pages are collected until a packet is full,
//! which leaves as a header and the pages behind it, from where they are or compressed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::{Compress, Compression, FlushCompress};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, get_error_name};

use super::Error;
use crate::io::{self, Gather};
use crate::memory::PAGE_BYTES;
use crate::migrate::settings::Settings;
use crate::pages::PageSource;
use crate::stream::multifd::{Method, PACKET_PAGES_MAX, Packet};

/// Makes the packets of one channel.
pub struct Packets {
    /// One count over all channels.
    numbers: Arc<AtomicU64>,
    /// Where the compression's level is looked up for each packet.
    settings: Arc<Settings>,
    packer: Packer,
    /// Byte offsets of the pages of the packet being filled, all of one block.
    normal: Vec<u64>,
    zero: Vec<u64>,
}

/// What makes a packet's data. Compressed data are one endless stream per channel, flushed at each
/// packet.
///
/// Inside a stream zlib-rs fails to change the level, and zstd ignores it. So one that is set while
/// a migration runs begins another after the packet then being made, in a way that the reader of
/// the first, a QEMU too, goes on to read.
enum Packer {
    None,
    /// The other stream has no header: to the reader its blocks are more of the first. They refer
    /// to nothing before them.
    Zlib {
        stream: Compress,
        level: u8,
    },
    /// The stream is ended in the packet's last block, as the reader stops when it has all pages.
    Zstd {
        stream: CCtx<'static>,
        level: u8,
    },
}

impl Packets {
    pub fn new(numbers: Arc<AtomicU64>, settings: Arc<Settings>) -> Result<Self, Error> {
        let parameters = settings.parameters();
        let packer = match parameters.multifd_compression {
            "zlib" => {
                let level = parameters.multifd_zlib_level;
                Packer::Zlib { stream: Compress::new(Compression::new(level.into()), true), level }
            }
            "zstd" => {
                let level = parameters.multifd_zstd_level;
                Packer::Zstd { stream: zstd_stream(level)?, level }
            }
            _ => Packer::None,
        };
        Ok(Self { numbers, settings, packer, normal: Vec::new(), zero: Vec::new() })
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

    /// Puts the packet being filled, whose pages are all from `source`, into a send. Pages are read
    /// only now, or by the kernel when it sends: their dirty bits were cleared before they were
    /// added.
    pub fn write(&mut self, source: &PageSource, gather: &mut Gather) -> Result<(), Error> {
        let compressed = match &self.packer {
            _ if self.normal.is_empty() => None,
            Packer::None => None,
            _ => {
                let mut pages = vec![0; self.normal.len() * PAGE_BYTES as usize];
                let (rooms, _) = pages.as_chunks_mut();
                for (offset, room) in self.normal.iter().zip(rooms) {
                    source.copy(offset / PAGE_BYTES, room);
                }
                Some(self.packer.pack(&pages, &self.settings)?)
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
            Self::Zlib { .. } => Method::Zlib,
            Self::Zstd { .. } => Method::Zstd,
        }
    }

    /// The next part of the channel's endless stream, which gives all of `pages` to a reader that
    /// has what came before. If another level was set meanwhile, the parts after it are made with
    /// that.
    fn pack(&mut self, pages: &[u8], settings: &Settings) -> Result<Vec<u8>, Error> {
        // Room for pages that cannot be compressed: nine bits for a byte are the most that zlib's
        // format has.
        let mut out = vec![0; pages.len() + pages.len() / 8 + 1024];
        let (read, made) = match self {
            Self::None => (pages.len(), 0),
            Self::Zlib { stream, level } => {
                let (read_before, made_before) = (stream.total_in(), stream.total_out());
                stream.compress(pages, &mut out, FlushCompress::Sync).map_err(broken)?;
                let moved = (stream.total_in() - read_before, stream.total_out() - made_before);
                let wanted = settings.parameters().multifd_zlib_level;
                if wanted != *level {
                    *stream = Compress::new(Compression::new(wanted.into()), false);
                    *level = wanted;
                }
                (moved.0 as usize, moved.1 as usize)
            }
            Self::Zstd { stream, level } => {
                let wanted = settings.parameters().multifd_zstd_level;
                let end = match wanted == *level {
                    true => ZSTD_EndDirective::ZSTD_e_flush,
                    false => ZSTD_EndDirective::ZSTD_e_end,
                };
                let (mut input, mut space) =
                    (InBuffer::around(pages), OutBuffer::around(&mut out[..]));
                let mut left = 1;
                while left > 0 && space.pos() < space.capacity() {
                    left = stream
                        .compress_stream2(&mut space, &mut input, end)
                        .map_err(|code| broken(get_error_name(code)))?;
                }
                if wanted != *level {
                    (*stream, *level) = (zstd_stream(wanted)?, wanted);
                }
                (input.pos, if left == 0 { space.pos() } else { out.len() })
            }
        };
        if read < pages.len() || made == out.len() {
            return Err(broken("pages grew by more than a packet has room for"));
        }
        out.truncate(made);
        Ok(out)
    }
}

fn zstd_stream(level: u8) -> Result<CCtx<'static>, Error> {
    let mut stream = CCtx::create();
    let set = stream.set_parameter(CParameter::CompressionLevel(level.into()));
    set.map_err(|code| broken(get_error_name(code)))?;
    Ok(stream)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Io(io::Error::System(std::io::Error::other(format!("multifd compression: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::incoming::Unpacker;

    /// Packets of pages that are much like each other, but for every third, which nothing makes
    /// smaller.
    fn packet(number: u64) -> Vec<u8> {
        let mut random = 1_u64;
        let mut next = |word: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if number == 2 { random ^ random >> 29 } else { word / 7 * (number + 1) }
        };
        (0..PACKET_PAGES_MAX as u64 * 512).flat_map(|word| next(word).to_le_bytes()).collect()
    }

    #[test]
    fn a_level_set_between_packets_acts_and_the_reader_goes_on() {
        for (compression, low, high) in [("zlib", 1, 9), ("zstd", 1, 19)] {
            let settings = Arc::new(Settings::default());
            let set = |name: &str, value: serde_json::Value| {
                let changes = serde_json::json!({name: value});
                settings.set_parameters(
                    settings.parameters().with(changes.as_object().unwrap()).unwrap(),
                );
            };
            let level = format!("multifd-{compression}-level");
            set("multifd-compression", compression.into());
            let mut packets = Packets::new(Arc::default(), settings.clone()).unwrap();
            let mut unpacker = Unpacker::default();
            let mut sizes = Vec::new();
            for number in 0..14 {
                // It acts from the packet after the next on.
                set(&level, if (4..10).contains(&number) { high } else { low }.into());
                let pages = packet(number % 3);
                let data = packets.packer.pack(&pages, &settings).unwrap();
                let mut out = vec![9; pages.len()];
                unpacker.unpack(packets.packer.method(), &data, &mut out).unwrap();
                assert!(out == pages, "{compression} {number}");
                sizes.push(data.len());
            }
            assert!(sizes[9] < sizes[3] && sizes[12] > sizes[9], "{compression}: {sizes:?}");
        }
    }
}
