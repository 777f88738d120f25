//! kdump-compressed files, as makedumpfile makes them (`diskdump_mod.h`, header version 6).
//!
//! | block of 4096 bytes | what |
//! | --- | --- |
//! | 0 | [`header::dump_header`] |
//! | 1.. | [`header::sub_header`], then the notes |
//! | then | bitmap 1 (pages that exist), bitmap 2 (pages in the file); equal here, since nothing is filtered |
//! | then | page descriptors, 24 bytes each, in page order |
//! | then | page data, unaligned: one page of zeros that all zero pages share, then the pages |
//!
//! In the raw form this is the file. In the flattened form it travels as records, see [`image`].

mod header;
mod image;
mod pages;

use rayon::ThreadPool;

use self::header::{Header, Width};
use self::image::Image;
use self::pages::{Descriptor, Encoder, PageMap};
use super::note::Notes;
use super::{Codec, Error, Guest, Output, PAGE, Progress, Range, What, pipeline, vmcoreinfo};

/// Bytes of a chunk: large enough that a pool has work for all its threads in one.
const CHUNK_BYTES: u64 = 4 << 20;
/// The bitmaps are made in pieces of this size.
const BITMAP_PIECE_BYTES: u64 = 1 << 20;

#[expect(clippy::too_many_arguments, reason = "the parts of one dump, each used once")]
pub fn write(
    guest: &Guest<'_>,
    codec: Codec,
    raw: bool,
    memory: &[Range],
    notes: &Notes,
    output: Output,
    pool: &ThreadPool,
    progress: &Progress,
) -> Result<(), Error> {
    let map = PageMap::new(memory);
    let text = notes.vmcoreinfo_text().unwrap_or_default();
    let header = Header {
        width: Width::of(guest.cpus, memory),
        status: codec.flag(),
        release: vmcoreinfo::value(text, "OSRELEASE").map(str::to_owned),
        phys_base: vmcoreinfo::phys_base(text).unwrap_or(0),
        cpus: guest.cpus.len() as u32,
        pages_end: map.pages_end(),
        notes_bytes: notes.bytes.len() as u64,
        vmcoreinfo: notes.vmcoreinfo.clone(),
    };
    let mut image = Image::new(output, raw)?;
    image.put(What::DumpHeader, 0, &header.dump_header())?;
    image.put(What::SubHeader, PAGE as u64, &header.sub_header())?;
    image.put(What::KdumpNotes, header.notes_at(), &notes.bytes)?;
    for copy in 0..2 {
        let mut at = header.bitmaps_at() + copy * header.bitmap_bytes();
        for piece in map.bitmap(header.bitmap_bytes(), BITMAP_PIECE_BYTES) {
            image.put(What::Bitmap, at, &piece)?;
            at += piece.len() as u64;
        }
    }
    let descriptors_at = header.bitmaps_at() + 2 * header.bitmap_bytes();
    let data_at = descriptors_at + map.count() * Descriptor::BYTES;
    image.put(What::ZeroPage, data_at, &[0; PAGE])?;

    let encoder = Encoder::new(guest.view, codec, memory, data_at);
    let mut descriptor_at = descriptors_at;
    let mut next_data = data_at + PAGE as u64;
    pipeline::run(
        pool,
        map.ranges(),
        CHUNK_BYTES,
        progress,
        |chunk| encoder.chunk(chunk),
        |chunk| {
            let table = chunk.descriptors(next_data);
            image.put(What::PageDescriptors, descriptor_at, &table)?;
            descriptor_at += table.len() as u64;
            for data in &chunk.data {
                image.put(What::PageData, next_data, data)?;
                next_data += data.len() as u64;
            }
            encoder.recycle(chunk);
            Ok(())
        },
    )?;
    debug_assert_eq!(descriptor_at, data_at, "one descriptor for each page");
    image.finish(next_data)
}
