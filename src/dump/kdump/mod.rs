//! kdump-compressed files, as makedumpfile makes them (`diskdump_mod.h`, header version 6).
//!
//! | block of 4096 bytes | what |
//! | --- | --- |
//! | 0 | [`header::Header::dump_header`] |
//! | 1.. | [`header::Header::sub_header`], then the notes |
//! | then | bitmap 1 (pages that exist), bitmap 2 (pages in the file); equal here, since nothing is filtered |
//! | then | page descriptors, 24 bytes each, in page order |
//! | then | page data, unaligned: one page of zeros that all zero pages share, then the pages, as they were read |
//!
//! In the raw form this is the file. In the flattened form it travels as records, see [`image`].

mod header;
mod image;
mod pages;

use rayon::ThreadPool;

use self::header::{Header, Width};
use self::image::Image;
use self::pages::{CHUNK_BUFFERS, CHUNK_BYTES, Chunk, Descriptor, Encoder, PageMap};
use super::note::Notes;
use super::output::Writer;
use super::pipeline::{self, Order, Sink};
use crate::dump::codec::Codec;
use crate::dump::error::{Error, What};
use crate::dump::guest::GuestState;
use crate::dump::progress::Progress;
use crate::dump::ranges::{PAGE, Range};
use crate::dump::vmcoreinfo;
use crate::io::gather::Buffer;

/// The bitmaps are made in pieces of this size, which the heap has even where memory is short.
const BITMAP_PIECE_BYTES: u64 = 64 << 10;

#[expect(clippy::too_many_arguments, reason = "the parts of one dump, each used once")]
pub(super) fn write(
    guest: &GuestState<'_>,
    codec: Codec,
    raw: bool,
    memory: &[Range],
    notes: &Notes,
    output: Writer,
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
    let mut pages = Pages { image, descriptors_at, next_data: data_at + PAGE as u64, count: 0 };
    let order = Order::urgent_first(map.ranges(), CHUNK_BYTES, guest.view);
    let encode = |chunk: Range, room| encoder.chunk(chunk, map.rank(chunk.start), room);
    pipeline::run(pool, order, progress, encode, &mut pages)?;
    debug_assert_eq!(pages.count, map.count(), "one descriptor for each page");
    guest.view.check().map_err(Error::Lost)?;
    pages.image.finish(pages.next_data)
}

/// Puts descriptors where the page's rank has them, and data one after the other, whatever the
/// order.
struct Pages {
    image: Image,
    descriptors_at: u64,
    next_data: u64,
    count: u64,
}

impl Sink for Pages {
    type Room = Vec<Buffer>;
    type Chunk = Chunk;

    fn room(&mut self) -> Result<Vec<Buffer>, Error> {
        (0..CHUNK_BUFFERS).map(|_| self.image.buffer()).collect()
    }

    fn put(&mut self, chunk: Chunk) -> Result<(), Error> {
        let table = chunk.descriptors(self.next_data);
        self.image.put(
            What::PageDescriptors,
            self.descriptors_at + chunk.rank * Descriptor::BYTES,
            &table,
        )?;
        self.count += table.len() as u64 / Descriptor::BYTES;
        for (buffer, parts) in chunk.data {
            self.next_data +=
                self.image.put_parts(What::PageData, self.next_data, buffer, &parts)?;
        }
        Ok(())
    }
}
