//! One page made smaller.

use libdeflater::{CompressionLvl, Compressor as Deflate};
use lzokay::compress::Dict;

use super::ranges::PAGE;

/// How the pages of a kdump are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

impl Codec {
    /// The bit that names the codec in the header's `status` and in a page's flags.
    pub(crate) fn flag(self) -> u32 {
        match self {
            Codec::Zlib => 0x1,
            Codec::Lzo => 0x2,
            Codec::Snappy => 0x4,
            Codec::Zstd => 0x20,
        }
    }
}

/// libdeflate's level that is no larger than zlib's level 1, which QEMU uses, on every kind of data
/// measured.
const ZLIB_LEVEL: i32 = 1;
/// zstd's fastest ordinary level.
const ZSTD_LEVEL: i32 = 1;

/// What a page may need while it is compressed: twice a page holds the worst case of each codec.
pub(super) const ROOM_BYTES: usize = 2 * PAGE;

/// A codec with its working memory, used for many pages by one thread at a time.
pub(super) struct Compressor {
    engine: Engine,
}

enum Engine {
    Zlib(Deflate),
    Lzo(Box<Dict>),
    Snappy(Box<snap::raw::Encoder>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    pub(super) fn new(codec: Codec) -> Compressor {
        let engine = match codec {
            Codec::Zlib => {
                let level = CompressionLvl::new(ZLIB_LEVEL).expect("a level that libdeflate has");
                Engine::Zlib(Deflate::new(level))
            }
            Codec::Lzo => Engine::Lzo(Dict::new()),
            Codec::Snappy => Engine::Snappy(Box::new(snap::raw::Encoder::new())),
            Codec::Zstd => {
                let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("memory for zstd");
                // The page's size is the header's; a checksum would only make frames longer.
                zstd.include_checksum(false).expect("an option zstd has");
                Engine::Zstd(zstd)
            }
        };
        Compressor { engine }
    }

    /// Compresses a page to the start of `out`, which has [`ROOM_BYTES`], and says how many bytes
    /// it takes; nothing if that is not smaller than the page.
    pub(super) fn page(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        let out = &mut out[..ROOM_BYTES];
        let written = match &mut self.engine {
            // One byte less than a page: libdeflate gives up as soon as the result cannot be
            // smaller.
            Engine::Zlib(zlib) => zlib.zlib_compress(page, &mut out[..PAGE - 1]).ok()?,
            Engine::Lzo(dict) => lzokay::compress::compress_no_alloc(page, out, dict).ok()?,
            Engine::Snappy(snappy) => snappy.compress(page, out).ok()?,
            Engine::Zstd(zstd) => zstd.compress_to_buffer(page, &mut out[..PAGE - 1]).ok()?,
        };
        (written < page.len()).then_some(written)
    }
}
