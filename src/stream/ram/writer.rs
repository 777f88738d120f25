//! Writing records.

use super::record::{
    FLAG_CONTINUE, FLAG_EOS, FLAG_MEM_SIZE, FLAG_MULTIFD_FLUSH, FLAG_PAGE, FLAG_XBZRLE, FLAG_ZERO,
    FLAGS,
};
use crate::stream::cursor::put_pstr;
use crate::stream::limits::PAGE_BYTES;

/// Appends the records of one channel; remembers the block named last, so that it is named only
/// when it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RamWriter {
    last: Option<u32>,
}

impl RamWriter {
    /// The block list that opens the section. `blocks` are (name, size in bytes).
    pub fn block_list<'a>(
        out: &mut Vec<u8>,
        blocks: impl IntoIterator<Item = (&'a str, u64)> + Clone,
    ) {
        Self::list_head(out, blocks.clone().into_iter().map(|(_, bytes)| bytes).sum());
        for (name, bytes) in blocks {
            Self::list_entry(out, name, bytes);
        }
    }

    /// What stands before the entries of the list: `bytes` of all blocks follow.
    pub(crate) fn list_head(out: &mut Vec<u8>, bytes: u64) {
        out.extend_from_slice(&(bytes | FLAG_MEM_SIZE).to_be_bytes());
    }

    pub(crate) fn list_entry(out: &mut Vec<u8>, name: &str, bytes: u64) {
        put_pstr(out, name);
        out.extend_from_slice(&bytes.to_be_bytes());
    }

    /// The word and, where the block changes, the block's name: what stands before the data of a
    /// page record. `kind` is [`FLAG_ZERO`], [`FLAG_PAGE`] or [`FLAG_XBZRLE`].
    pub(crate) fn page_header(
        &mut self,
        out: &mut Vec<u8>,
        kind: u64,
        block: u32,
        name: &str,
        offset: u64,
    ) {
        debug_assert!(offset & FLAGS == 0, "records are of whole pages");
        if self.last == Some(block) {
            out.extend_from_slice(&(offset | kind | FLAG_CONTINUE).to_be_bytes());
        } else {
            out.extend_from_slice(&(offset | kind).to_be_bytes());
            put_pstr(out, name);
            self.last = Some(block);
        }
    }

    pub fn zero(&mut self, out: &mut Vec<u8>, block: u32, name: &str, offset: u64) {
        self.page_header(out, FLAG_ZERO, block, name, offset);
        out.push(0);
    }

    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: u32,
        name: &str,
        offset: u64,
        bytes: &[u8; PAGE_BYTES],
    ) {
        self.page_header(out, FLAG_PAGE, block, name, offset);
        out.extend_from_slice(bytes);
    }

    /// # Panics
    /// When the delta is longer than a page.
    pub fn delta(&mut self, out: &mut Vec<u8>, block: u32, name: &str, offset: u64, delta: &[u8]) {
        assert!(delta.len() <= PAGE_BYTES, "a delta is no longer than a page");
        self.page_header(out, FLAG_XBZRLE, block, name, offset);
        out.push(1);
        out.extend_from_slice(&(delta.len() as u16).to_be_bytes());
        out.extend_from_slice(delta);
    }

    /// Ends the section's payload.
    pub fn end(out: &mut Vec<u8>) {
        out.extend_from_slice(&FLAG_EOS.to_be_bytes());
    }

    pub(crate) fn flush(out: &mut Vec<u8>) {
        out.extend_from_slice(&FLAG_MULTIFD_FLUSH.to_be_bytes());
    }
}
