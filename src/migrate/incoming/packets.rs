//! QEMU's multifd packets, read from one channel.

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::Error;
use super::apply::Blocks;
use crate::io::{Ring, SocketReader};
use crate::memory::PAGE_BYTES;
use crate::stream::Record;
use crate::stream::multifd::{Method, PACKET_BYTES, PACKET_PAGES_MAX, Packet};
use crate::stream::ram::PageAt;

/// The window of the highest level that a source may set (20) has 2^25 bytes; larger ones would
/// only take memory here.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// Reads packets.
#[derive(Default)]
pub struct Packets {
    unpacker: Unpacker,
    pages: Vec<u8>,
    offset: u64,
}

/// Takes pages out of compressed packets. A channel's compressed data are one endless stream, so
/// that the decompressor stays.
#[derive(Default)]
pub struct Unpacker {
    zlib: Option<Decompress>,
    zstd: Option<Decoder<'static>>,
}

impl Packets {
    /// Reads and applies one packet; true if it ends the channel's part of a round. `names` are the
    /// listed blocks.
    pub fn read(
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
        self.unpacker.unpack(packet.method, data, pages)?;
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

impl Unpacker {
    /// Fills `pages` from `data`, all of it.
    pub fn unpack(&mut self, method: Method, data: &[u8], pages: &mut [u8]) -> Result<(), Error> {
        match method {
            Method::Zlib => {
                inflate(self.zlib.get_or_insert_with(|| Decompress::new(true)), data, pages)
            }
            Method::Zstd => {
                if self.zstd.is_none() {
                    let mut decoder = Decoder::new().map_err(broken)?;
                    decoder
                        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                        .map_err(broken)?;
                    self.zstd = Some(decoder);
                }
                unpack(self.zstd.as_mut().expect("just made"), data, pages)
            }
            _ => Err(Error::Command("a multifd compression that is not built in")),
        }
    }
}

fn inflate(zlib: &mut Decompress, data: &[u8], pages: &mut [u8]) -> Result<(), Error> {
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
            .map_err(broken)?;
        let moved = zlib.total_in() - read_before - read as u64 + zlib.total_out()
            - made_before
            - made as u64;
        if moved == 0 {
            return if made == pages.len() { Ok(()) } else { Err(broken("a packet is cut short")) };
        }
    }
}

fn unpack(zstd: &mut Decoder<'_>, data: &[u8], pages: &mut [u8]) -> Result<(), Error> {
    let (mut read, mut made) = (0, 0);
    while made < pages.len() {
        let status = zstd.run_on_buffers(&data[read..], &mut pages[made..]).map_err(broken)?;
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Err(broken("a packet is cut short"));
        }
        read += status.bytes_read;
        made += status.bytes_written;
    }
    if read < data.len() {
        return Err(broken("a packet has data behind its pages"));
    }
    Ok(())
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Packet(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn endless_streams_are_read_packet_by_packet() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let (mut inflater, mut decoder) = (Decompress::new(true), Decoder::new().unwrap());
        for round in 0..4u8 {
            let pages: Vec<u8> = (0..3 * 4096u32).map(|i| (i as u8).wrapping_mul(round)).collect();
            zlib.write_all(&pages).unwrap();
            zlib.flush().unwrap();
            zstd.write_all(&pages).unwrap();
            zstd.flush().unwrap();
            let mut out = vec![9; pages.len()];
            inflate(&mut inflater, &std::mem::take(zlib.get_mut()), &mut out).unwrap();
            assert!(out == pages, "zlib {round}");
            out.fill(9);
            unpack(&mut decoder, &std::mem::take(zstd.get_mut()), &mut out).unwrap();
            assert!(out == pages, "zstd {round}");
        }
        assert!(unpack(&mut decoder, &[], &mut [0; 4096]).is_err());
    }
}
