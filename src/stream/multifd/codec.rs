//! How the pages of packets are compressed. A channel's compressed data are one endless stream, of
//! which each packet holds a part that gives all of its pages to a reader that has what came
//! before; so the compressor and the decompressor of a channel stay from packet to packet.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, Operation};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, get_error_name};

use super::packet::Method;

/// The window of the highest level that a source may set (20) has 2^25 bytes; larger ones would
/// only take memory here.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// Why pages could not be packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("compression \"{}\" is not built in", .0.name())]
    NotBuiltIn(Method),
    #[error("fewer pages than the header says")]
    CutShort,
    #[error("there are data behind the pages")]
    TooLong,
    #[error("pages grew by more than a packet has room for")]
    Grew,
    #[error("{0}")]
    Library(String),
}

/// Makes the data of a channel's packets.
///
/// Inside a stream zlib-rs fails to change the level, and zstd ignores it. So one that is set while
/// a migration runs begins another after the packet then being made, in a way that the reader of
/// the first, a QEMU too, goes on to read.
pub(crate) enum Compressor {
    /// The other stream has no header: to the reader its blocks are more of the first. They refer
    /// to nothing before them.
    Zlib { stream: Compress, level: u8 },
    /// The stream is ended in the packet's last block, as the reader stops when it has all pages.
    Zstd { stream: CCtx<'static>, level: u8 },
}

impl Compressor {
    pub(crate) fn zlib(level: u8) -> Self {
        Self::Zlib { stream: Compress::new(Compression::new(level.into()), true), level }
    }

    pub(crate) fn zstd(level: u8) -> Result<Self, CodecError> {
        Ok(Self::Zstd { stream: zstd_stream(level)?, level })
    }

    pub(crate) fn method(&self) -> Method {
        match self {
            Self::Zlib { .. } => Method::Zlib,
            Self::Zstd { .. } => Method::Zstd,
        }
    }

    /// Appends the next part of the stream, which holds all of `pages`; how many bytes it has. The
    /// parts after it are made with `level`.
    pub(crate) fn pack(
        &mut self,
        pages: &[u8],
        level: u8,
        out: &mut Vec<u8>,
    ) -> Result<usize, CodecError> {
        // Room for pages that cannot be compressed: nine bits for a byte are the most that zlib's
        // format has.
        let start = out.len();
        out.resize(start + pages.len() + pages.len() / 8 + 1024, 0);
        let room = &mut out[start..];
        let (read, made) = match self {
            Self::Zlib { stream, level: now } => {
                let (read_before, made_before) = (stream.total_in(), stream.total_out());
                stream.compress(pages, room, FlushCompress::Sync).map_err(library)?;
                let moved = (stream.total_in() - read_before, stream.total_out() - made_before);
                if level != *now {
                    *stream = Compress::new(Compression::new(level.into()), false);
                    *now = level;
                }
                (moved.0 as usize, moved.1 as usize)
            }
            Self::Zstd { stream, level: now } => {
                let end = match level == *now {
                    true => ZSTD_EndDirective::ZSTD_e_flush,
                    false => ZSTD_EndDirective::ZSTD_e_end,
                };
                let (mut input, mut space) =
                    (InBuffer::around(pages), OutBuffer::around(&mut *room));
                let mut left = 1;
                while left > 0 && space.pos() < space.capacity() {
                    left = stream
                        .compress_stream2(&mut space, &mut input, end)
                        .map_err(|code| library(get_error_name(code)))?;
                }
                if level != *now {
                    (*stream, *now) = (zstd_stream(level)?, level);
                }
                (input.pos, if left == 0 { space.pos() } else { space.capacity() })
            }
        };
        if read < pages.len() || made == room.len() {
            return Err(CodecError::Grew);
        }
        out.truncate(start + made);
        Ok(made)
    }
}

fn zstd_stream(level: u8) -> Result<CCtx<'static>, CodecError> {
    let mut stream = CCtx::create();
    let set = stream.set_parameter(CParameter::CompressionLevel(level.into()));
    set.map_err(|code| library(get_error_name(code)))?;
    Ok(stream)
}

/// Takes pages out of a channel's compressed packets.
#[derive(Default)]
pub(crate) struct Decompressor {
    zlib: Option<Decompress>,
    zstd: Option<Decoder<'static>>,
}

impl Decompressor {
    /// Fills `pages` from `data`, all of it.
    pub(crate) fn unpack(
        &mut self,
        method: Method,
        data: &[u8],
        pages: &mut [u8],
    ) -> Result<(), CodecError> {
        match method {
            Method::Zlib => {
                inflate(self.zlib.get_or_insert_with(|| Decompress::new(true)), data, pages)
            }
            Method::Zstd => {
                if self.zstd.is_none() {
                    let mut decoder = Decoder::new().map_err(library)?;
                    decoder
                        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                        .map_err(library)?;
                    self.zstd = Some(decoder);
                }
                decode(self.zstd.as_mut().expect("just made"), data, pages)
            }
            other => Err(CodecError::NotBuiltIn(other)),
        }
    }
}

fn inflate(zlib: &mut Decompress, data: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
    let (read_before, made_before) = (zlib.total_in(), zlib.total_out());
    loop {
        let (read, made) =
            ((zlib.total_in() - read_before) as usize, (zlib.total_out() - made_before) as usize);
        if made == pages.len() && read == data.len() {
            return Ok(());
        }
        // Once the pages are full, what is left of the input is the flush marker, which makes no
        // bytes.
        zlib.decompress(&data[read..], &mut pages[made..], FlushDecompress::Sync)
            .map_err(library)?;
        let moved = zlib.total_in() - read_before - read as u64 + zlib.total_out()
            - made_before
            - made as u64;
        if moved == 0 {
            return if made == pages.len() { Ok(()) } else { Err(CodecError::CutShort) };
        }
    }
}

fn decode(zstd: &mut Decoder<'_>, data: &[u8], pages: &mut [u8]) -> Result<(), CodecError> {
    let (mut read, mut made) = (0, 0);
    while made < pages.len() {
        let status = zstd.run_on_buffers(&data[read..], &mut pages[made..]).map_err(library)?;
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Err(CodecError::CutShort);
        }
        read += status.bytes_read;
        made += status.bytes_written;
    }
    if read < data.len() { Err(CodecError::TooLong) } else { Ok(()) }
}

fn library(error: impl std::fmt::Display) -> CodecError {
    CodecError::Library(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::PAGE_BYTES;
    use crate::stream::multifd::PACKET_PAGES_MAX;
    use std::io::Write;

    #[test]
    fn endless_streams_are_read_packet_by_packet() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let mut decompressor = Decompressor::default();
        for round in 0..4u8 {
            let pages: Vec<u8> = (0..3 * 4096u32).map(|i| (i as u8).wrapping_mul(round)).collect();
            zlib.write_all(&pages).unwrap();
            zlib.flush().unwrap();
            zstd.write_all(&pages).unwrap();
            zstd.flush().unwrap();
            for (method, stream) in [(Method::Zlib, zlib.get_mut()), (Method::Zstd, zstd.get_mut())]
            {
                let mut out = vec![9; pages.len()];
                decompressor.unpack(method, &std::mem::take(stream), &mut out).unwrap();
                assert!(out == pages, "{method:?} {round}");
            }
        }
        let mut unpack = |method| decompressor.unpack(method, &[], &mut [0; PAGE_BYTES]);
        assert_eq!(unpack(Method::Zlib), Err(CodecError::CutShort));
        assert_eq!(unpack(Method::Zstd), Err(CodecError::CutShort));
        assert_eq!(unpack(Method::Qpl), Err(CodecError::NotBuiltIn(Method::Qpl)));
    }

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
        let zlib = (Compressor::zlib(1), 9);
        let zstd = (Compressor::zstd(1).unwrap(), 19);
        for (mut compressor, high) in [zlib, zstd] {
            let mut decompressor = Decompressor::default();
            let mut sizes = Vec::new();
            for number in 0..14 {
                // It acts from the packet after the next on.
                let level = if (4..10).contains(&number) { high } else { 1 };
                let pages = packet(number % 3);
                let mut data = vec![7];
                let made = compressor.pack(&pages, level, &mut data).unwrap();
                let mut out = vec![9; pages.len()];
                decompressor.unpack(compressor.method(), &data[1..], &mut out).unwrap();
                assert!(out == pages, "{:?} {number}", compressor.method());
                assert_eq!(made, data.len() - 1);
                sizes.push(made);
            }
            assert!(sizes[9] < sizes[3] && sizes[12] > sizes[9], "{sizes:?}");
        }
    }
}
