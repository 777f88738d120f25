//! The header that a mapped-ram file has for each block: where its bitmap and its pages lie in the
//! file.
//!
//! ```text
//! be32 1   be64 page size   be64 offset of the bitmap   be64 offset of the pages
//! ```
//!
//! The bitmap follows the header, one bit per page in little-endian 64-bit words; the pages stand
//! in order at the next multiple of 1 MiB. A page whose bit is 0 is zero, whatever the file holds
//! there. Offsets count from the start of the file.

use super::cursor::Cursor;
use super::error::{Error, Problem};
use super::limits::PAGE_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedHeader {
    pub bitmap_offset: u64,
    pub pages_offset: u64,
}

impl MappedHeader {
    pub(crate) const BYTES: usize = 28;

    /// Bytes of the bitmap of a block: whole 64-bit words.
    pub(crate) fn bitmap_bytes(block_bytes: u64) -> u64 {
        (block_bytes / PAGE_BYTES as u64).div_ceil(64) * 8
    }

    /// Reads a header that stands at `at` in the file, for a block of `block_bytes`. The bitmap
    /// lies behind the header and before the pages, and the pages end below 2^63.
    pub(crate) fn parse(bytes: &[u8], at: u64, block_bytes: u64) -> Result<Self, Error> {
        let refuse = |field: &str, ahead, problem| {
            Err(Error::new("section ram, mapped-ram header", field, at + ahead, problem))
        };
        let mut cursor = Cursor::new(bytes);
        let (Some(version), Some(page), Some(bitmap_offset), Some(pages_offset)) =
            (cursor.u32(), cursor.u64(), cursor.u64(), cursor.u64())
        else {
            return refuse("version", 0, Problem::Ends);
        };
        if version != 1 {
            return refuse(
                "version",
                0,
                Problem::Unexpected { found: version.into(), expected: 1 },
            );
        }
        if page != PAGE_BYTES as u64 {
            let problem = Problem::Unexpected { found: page, expected: PAGE_BYTES as u64 };
            return refuse("page size", 4, problem);
        }
        let expected = at + Self::BYTES as u64;
        if bitmap_offset < expected {
            return refuse(
                "bitmap offset",
                12,
                Problem::Unexpected { found: bitmap_offset, expected },
            );
        }
        let bitmap_end = bitmap_offset.checked_add(Self::bitmap_bytes(block_bytes));
        let pages_end = pages_offset.checked_add(block_bytes).filter(|end| *end <= i64::MAX as u64);
        if pages_end.is_none()
            || bitmap_end.is_none_or(|end| end > pages_offset)
            || pages_offset % PAGE_BYTES as u64 != 0
        {
            return refuse("pages offset", 20, Problem::Invalid { found: pages_offset });
        }
        Ok(Self { bitmap_offset, pages_offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(header: MappedHeader) -> Vec<u8> {
        let words = [PAGE_BYTES as u64, header.bitmap_offset, header.pages_offset];
        let words = words.iter().flat_map(|word| word.to_be_bytes());
        1u32.to_be_bytes().into_iter().chain(words).collect()
    }

    #[test]
    fn headers_stand_where_they_were_recorded() {
        let first = MappedHeader { bitmap_offset: 0x8c, pages_offset: 0x10_0000 };
        assert_eq!(MappedHeader::parse(&bytes(first), 0x70, 16 << 20), Ok(first));
        let second = MappedHeader { bitmap_offset: 0x110_002c, pages_offset: 0x120_0000 };
        assert_eq!(MappedHeader::parse(&bytes(second), 0x110_0010, 64 << 10), Ok(second));
    }

    #[test]
    fn headers_that_overlap_or_overflow_are_refused() {
        let parse = |bitmap_offset, pages_offset, bytes| {
            let header = self::bytes(MappedHeader { bitmap_offset, pages_offset });
            MappedHeader::parse(&header, 0x70, bytes)
        };
        assert!(parse(0x8c, 0x1000, 1 << 20).is_ok());
        assert!(parse(0x10, 0x1000, 1 << 20).is_err());
        assert!(parse(0x8c, 0x1000, 1 << 30).is_err());
        assert!(parse(0x8c, 0x1001, 1 << 20).is_err());
        assert!(parse(u64::MAX - 4, 0x1000, 1 << 20).is_err());
        assert!(parse(0x8c, !0xfff, 1 << 20).is_err());
    }
}
