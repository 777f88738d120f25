//! Which pages a kdump holds, and what becomes of each.

use std::ops::Range as Span;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::dump::codec::{Codec, Compressor, ROOM_BYTES};
use crate::dump::error::Error;
use crate::dump::pipeline;
use crate::dump::ranges::{self, PAGE, Range};
use crate::dump::view::GuestView;
use crate::io::gather::{BUFFER_BYTES, Buffer};

/// The pages that memory touches, also those it fills only in part.
pub(super) struct PageMap {
    /// page-aligned, sorted, disjoint
    ranges: Vec<Range>,
}

impl PageMap {
    pub(super) fn new(memory: &[Range]) -> PageMap {
        let page = PAGE as u64;
        let aligned: Vec<_> = memory
            .iter()
            .map(|range| {
                let start = range.start - range.start % page;
                Range { start, len: range.end().next_multiple_of(page) - start }
            })
            .collect();
        PageMap { ranges: ranges::cut(&aligned, None) }
    }

    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    pub(super) fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.len / PAGE as u64).sum()
    }

    /// How many pages come before the one at `address`, which is one of them.
    pub(super) fn rank(&self, address: u64) -> u64 {
        let before = |range: &Range| range.len.min(address.saturating_sub(range.start));
        self.ranges.iter().map(before).sum::<u64>() / PAGE as u64
    }

    /// The number after the last page's.
    pub(super) fn pages_end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end() / PAGE as u64)
    }

    /// One bit for each page number, in pieces of at most `piece` bytes, `bytes` in all.
    pub(super) fn bitmap(&self, bytes: u64, piece: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
        (0..bytes).step_by(piece as usize).map(move |at| {
            let len = piece.min(bytes - at);
            let mut bits = vec![0u8; len as usize];
            let page = PAGE as u64;
            for range in ranges::overlaps(&self.ranges, at * 8 * page, len * 8 * page) {
                let first = range.start / page - at * 8;
                set_bits(&mut bits, first as usize, (range.len / page) as usize);
            }
            bits
        })
    }
}

fn set_bits(bits: &mut [u8], first: usize, count: usize) {
    let end = first + count;
    let (low, high) = (first.next_multiple_of(8).min(end), end - end % 8);
    let ragged = if low <= high { (first..low).chain(high..end) } else { (first..end).chain(0..0) };
    ragged.for_each(|bit| bits[bit / 8] |= 1 << (bit % 8));
    if low < high {
        bits[low / 8..high / 8].fill(0xff);
    }
}

/// What the file says about a page: where its data starts, how many bytes, and the codec's flag or
/// 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descriptor {
    Zero,
    Plain,
    Packed(u16),
}

impl Descriptor {
    pub(super) const BYTES: u64 = 24;
}

/// The part of a write buffer that one thread fills.
const SLOT_BYTES: usize = BUFFER_BYTES / 8;
/// Pages that one thread compresses in a row, into a slot: less, so that the last has room for its
/// worst case.
const STRIP_BYTES: usize = SLOT_BYTES - ROOM_BYTES;
/// Write buffers of a chunk.
pub(super) const CHUNK_BUFFERS: usize = 2;
/// Bytes of a chunk: large enough that a pool has work for all its threads in one.
pub(super) const CHUNK_BYTES: u64 =
    (CHUNK_BUFFERS * BUFFER_BYTES / SLOT_BYTES * STRIP_BYTES) as u64;

/// Turns chunks of memory into descriptors and data. A page is copied once, so that nobody changes
/// it while it is compressed, and compressed straight into the buffer that is written.
pub(super) struct Encoder<'a> {
    view: &'a dyn GuestView,
    codec: Codec,
    /// what exists; a page may stick out of it
    memory: &'a [Range],
    zero_page_at: u64,
    /// with room for a strip as it was read
    idle: Mutex<Vec<(Compressor, Vec<u8>)>>,
}

/// A chunk, ready to be written.
pub(super) struct Chunk {
    /// How many pages come before its first.
    pub rank: u64,
    flag: u32,
    zero_page_at: u64,
    descriptors: Vec<Descriptor>,
    /// Pages in order, packed or plain, zero pages left out: each buffer with the parts of it that
    /// hold data.
    pub data: Vec<(Buffer, Vec<Span<usize>>)>,
}

/// What became of a strip: a descriptor for each page, and how many bytes of the slot they take.
struct Strip {
    descriptors: Vec<Descriptor>,
    bytes: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(
        view: &'a dyn GuestView,
        codec: Codec,
        memory: &'a [Range],
        zero_page_at: u64,
    ) -> Encoder<'a> {
        Encoder { view, codec, memory, zero_page_at, idle: Mutex::default() }
    }

    /// `range` is page-aligned and at most [`CHUNK_BYTES`]; `rank` pages come before it.
    pub(super) fn chunk(
        &self,
        range: Range,
        rank: u64,
        mut room: Vec<Buffer>,
    ) -> Result<Chunk, Error> {
        let starts = (range.start..range.end()).step_by(STRIP_BYTES);
        let slots = room.iter_mut().flat_map(|buffer| buffer.room().chunks_exact_mut(SLOT_BYTES));
        let strips: Vec<(u64, &mut [u8])> = starts.zip(slots).collect();
        let strips: Result<Vec<Strip>, Error> = strips
            .into_par_iter()
            .map(|(start, slot)| {
                let len = (range.end() - start).min(STRIP_BYTES as u64);
                self.strip(Range { start, len }, slot)
            })
            .collect();
        let mut strips = strips?.into_iter();
        let mut chunk = Chunk {
            rank,
            flag: self.codec.flag(),
            zero_page_at: self.zero_page_at,
            descriptors: Vec::new(),
            data: Vec::new(),
        };
        for buffer in room {
            let filled = strips.by_ref().take(BUFFER_BYTES / SLOT_BYTES).enumerate();
            let parts = filled.map(|(slot, strip)| {
                chunk.descriptors.extend(strip.descriptors);
                slot * SLOT_BYTES..slot * SLOT_BYTES + strip.bytes
            });
            let parts = parts.collect();
            chunk.data.push((buffer, parts));
        }
        Ok(chunk)
    }

    fn strip(&self, range: Range, slot: &mut [u8]) -> Result<Strip, Error> {
        let idle = self.idle.lock().expect("no panic while held").pop();
        let (mut compressor, mut bytes) =
            idle.unwrap_or_else(|| (Compressor::new(self.codec), Vec::new()));
        bytes.resize(range.len as usize, 0);
        let mut strip = Strip { descriptors: Vec::new(), bytes: 0 };
        if self.read(range, &mut bytes)? {
            for page in bytes.chunks_exact(PAGE) {
                strip.page(page, &mut compressor, slot);
            }
        } else {
            strip.descriptors.resize(range.len as usize / PAGE, Descriptor::Zero);
        }
        self.idle.lock().expect("no panic while held").push((compressor, bytes));
        Ok(strip)
    }

    /// Fills `bytes` with what exists of `range`. False if all of it is hole.
    fn read(&self, range: Range, bytes: &mut [u8]) -> Result<bool, Error> {
        let mut any = false;
        let parts = || ranges::overlaps(self.memory, range.start, range.len);
        if !parts().any(|part| part.len == range.len) {
            bytes.fill(0);
        }
        for part in parts() {
            let at = (part.start - range.start) as usize;
            any |= pipeline::read(self.view, part.start, &mut bytes[at..at + part.len as usize])?;
            self.view.release(part);
        }
        Ok(any)
    }
}

impl Strip {
    fn page(&mut self, page: &[u8], compressor: &mut Compressor, slot: &mut [u8]) {
        let room = &mut slot[self.bytes..];
        let (descriptor, bytes) = if xbzrle::is_zero(page) {
            (Descriptor::Zero, 0)
        } else if let Some(packed) = compressor.page(page, room) {
            (Descriptor::Packed(packed as u16), packed)
        } else {
            room[..PAGE].copy_from_slice(page);
            (Descriptor::Plain, PAGE)
        };
        self.bytes += bytes;
        self.descriptors.push(descriptor);
    }
}

impl Chunk {
    /// The descriptors' bytes, if the chunk's data starts at `data_at`.
    pub(super) fn descriptors(&self, data_at: u64) -> Vec<u8> {
        let mut at = data_at;
        let mut table = Vec::with_capacity(self.descriptors.len() * Descriptor::BYTES as usize);
        for descriptor in &self.descriptors {
            let (offset, size, flags) = match descriptor {
                Descriptor::Zero => (self.zero_page_at, PAGE as u32, 0),
                Descriptor::Plain => (at, PAGE as u32, 0),
                Descriptor::Packed(size) => (at, u32::from(*size), self.flag),
            };
            if *descriptor != Descriptor::Zero {
                at += u64::from(size);
            }
            table.extend(offset.to_le_bytes());
            table.extend(size.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(0u64.to_le_bytes());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_one_by_one_and_in_bytes() {
        for (first, count) in
            [(0, 0), (0, 1), (3, 2), (3, 5), (3, 6), (7, 18), (8, 16), (0, 64), (63, 1)]
        {
            let mut bits = [0; 8];
            set_bits(&mut bits, first, count);
            let expected = (0..count).fold(0u64, |all, bit| all | 1 << (first + bit));
            assert_eq!(u64::from_le_bytes(bits), expected, "{first} {count}");
        }
    }

    #[test]
    fn a_bitmap_in_pieces_is_the_whole_bitmap() {
        let page = PAGE as u64;
        let memory = [
            Range { start: 5 * page + 1, len: 3 * page },
            Range { start: 40_000 * page, len: 9 * page },
        ];
        let map = PageMap::new(&memory);
        assert_eq!((map.count(), map.pages_end()), (4 + 9, 40_009));
        assert_eq!((map.rank(6 * page), map.rank(40_002 * page)), (1, 6));
        let whole: Vec<u8> = map.bitmap(8192, 8192).flatten().collect();
        let pieces: Vec<u8> = map.bitmap(8192, 64).flatten().collect();
        assert_eq!(whole, pieces);
        assert_eq!(whole.iter().map(|byte| byte.count_ones()).sum::<u32>(), 13);
        assert_eq!(whole[0] & 0x1f, 0);
    }
}
