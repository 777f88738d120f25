//! The header that a mapped-ram file has for each block: where its bitmap and its pages lie in the
//! file.
//!
//! ```text
//! be32 1   be64 page size   be64 offset of the bitmap   be64 offset of the pages
//! ```
//!
//! The bitmap follows the header, one bit per page in little-endian 64-bit words; the pages stand
//! in order at the next multiple of 1 MiB. A page whose bit is 0 is zero, whatever the file holds
//! there. Offsets count from the start of the file, also where the stream begins further on.

use super::cursor::Cursor;
use super::error::{Error, Problem};
use super::limits::PAGE_BYTES;

/// Pages begin on such a boundary, so that they can be written around the page cache.
const PAGES_ALIGN: u64 = 1 << 20;

/// Where a block lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedHeader {
    pub bitmap_offset: u64,
    pub pages_offset: u64,
}

impl MappedHeader {
    pub(crate) const BYTES: usize = 28;

    /// The header that stands at `at` in the file, of a block of `block_bytes`.
    pub(crate) fn new(at: u64, block_bytes: u64) -> Self {
        let bitmap_offset = at + Self::BYTES as u64;
        let bitmap_end = bitmap_offset + Self::bitmap_bytes(block_bytes);
        Self { bitmap_offset, pages_offset: bitmap_end.next_multiple_of(PAGES_ALIGN) }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&1u32.to_be_bytes());
        for word in [PAGE_BYTES as u64, self.bitmap_offset, self.pages_offset] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }

    /// Where the stream goes on behind a block of `block_bytes`.
    pub(crate) fn end(&self, block_bytes: u64) -> u64 {
        self.pages_offset + block_bytes
    }

    /// Word `index` of the bitmap of block `name`, which has `pages` pages: page 64 · `index` is its
    /// lowest bit.
    ///
    /// # Errors
    /// A bit behind the block's last page is set.
    pub(crate) fn word(
        &self,
        index: u64,
        bytes: [u8; 8],
        name: &str,
        pages: u64,
    ) -> Result<u64, Error> {
        let word = u64::from_le_bytes(bytes);
        let in_block = match pages.saturating_sub(index * 64) {
            0 => 0,
            left @ ..64 => u64::MAX >> (64 - left),
            _ => u64::MAX,
        };
        if word & !in_block == 0 {
            return Ok(word);
        }
        let page = index * 64 + u64::from((word & !in_block).trailing_zeros());
        let problem = Problem::Says(format!("page {page} of {name}, which has {pages}"));
        Err(Error::new("section ram", "mapped-ram bitmap", self.bitmap_offset + 8 * index, problem))
    }

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
        let mut out = Vec::new();
        header.write(&mut out);
        out
    }

    #[test]
    fn headers_stand_where_they_were_recorded() {
        let first = MappedHeader { bitmap_offset: 0x8c, pages_offset: 0x10_0000 };
        assert_eq!(MappedHeader::new(0x70, 16 << 20), first);
        assert_eq!(MappedHeader::parse(&bytes(first), 0x70, 16 << 20), Ok(first));
        let second = MappedHeader { bitmap_offset: 0x110_002c, pages_offset: 0x120_0000 };
        assert_eq!(MappedHeader::parse(&bytes(second), 0x110_0010, 64 << 10), Ok(second));
        assert_eq!(MappedHeader::new(0x110_0010, 64 << 10), second);
    }

    #[test]
    fn bits_behind_the_last_page_are_refused() {
        let header = MappedHeader { bitmap_offset: 0x8c, pages_offset: 0x10_0000 };
        let word = |index, word: u64, pages| header.word(index, word.to_le_bytes(), "b", pages);
        assert_eq!(word(0, u64::MAX, 64), Ok(u64::MAX));
        assert_eq!(word(1, 0x3f, 70), Ok(0x3f));
        let error = word(1, 0x40, 70).unwrap_err().to_string();
        let expected =
            "section ram, field mapped-ram bitmap, offset 0x94: page 70 of b, which has 70";
        assert_eq!(error, expected);
        assert!(word(2, 1, 70).is_err() && word(1, 1 << 63, 70).is_err());
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
