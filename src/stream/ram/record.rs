//! What the records say: their flags, and each as the parser gives it.

use crate::stream::limits::PAGE_BYTES;
use crate::stream::mapped::MappedHeader;

pub(crate) const FLAG_ZERO: u64 = 0x002;
pub(crate) const FLAG_MEM_SIZE: u64 = 0x004;
pub(crate) const FLAG_PAGE: u64 = 0x008;
pub(crate) const FLAG_EOS: u64 = 0x010;
pub(crate) const FLAG_CONTINUE: u64 = 0x020;
pub(crate) const FLAG_XBZRLE: u64 = 0x040;
pub(crate) const FLAG_MULTIFD_FLUSH: u64 = 0x200;
pub(super) const FLAGS: u64 = PAGE_BYTES as u64 - 1;

/// Which page: `block` counts in the order of [`RamParser::blocks`](super::RamParser::blocks), `offset` is in bytes and page
/// aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt {
    pub block: u32,
    pub offset: u64,
}

/// One record. Page records are checked to lie inside their block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// The block list begins; the sizes that follow add up to this.
    Blocks {
        bytes: u64,
    },
    /// One block of the list, to be found in [`RamParser::blocks`](super::RamParser::blocks).
    Block {
        block: u32,
    },
    /// mapped-ram only: the pages are elsewhere in the file; the stream goes on at this offset.
    Skip {
        to: u64,
    },
    Zero {
        at: PageAt,
    },
    Page {
        at: PageAt,
        bytes: &'a [u8; PAGE_BYTES],
    },
    /// An XBZRLE delta against what the target has.
    Delta {
        at: PageAt,
        delta: &'a [u8],
    },
    /// All multifd channels have sent a SYNC packet.
    Flush,
    /// End of this section's payload.
    End,
}

impl Record<'_> {
    /// Whether the record says what one page holds.
    pub(crate) fn is_page(&self) -> bool {
        matches!(self, Self::Zero { .. } | Self::Page { .. } | Self::Delta { .. })
    }
}

/// A block as the stream lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBlock {
    pub name: String,
    pub bytes: u64,
    /// Only from a source with postcopy and huge pages.
    pub page_bytes: Option<u64>,
    /// Only with x-ignore-shared.
    pub guest_address: Option<u64>,
    /// Only with mapped-ram.
    pub mapped: Option<MappedHeader>,
}

/// What the capabilities of the connection add to the block list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RamRules {
    /// `x-ignore-shared`: each block tells its guest-physical address.
    pub ignore_shared: bool,
    /// `mapped-ram`: each block has a header, and no page travels as a record.
    pub mapped: bool,
    /// Blocks whose entry carries a page size (postcopy, huge pages). The stream does not say
    /// which: the target knows.
    pub huge_blocks: Vec<String>,
}
