//! Pages of a guest that arrives, written into its RAM while no vCPU runs. Nothing here marks pages
//! dirty.
//!
//! Unsafe because guest memory is written by address.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::ops::Range;

use super::block::RamBlock;
use super::error::Error;
use super::pages::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;

impl RamBlock {
    /// Writes whole pages, `pieces` one after another from `offset` (bytes into the block) on.
    ///
    /// # Panics
    /// When they do not lie in the block.
    pub(crate) fn fill(&self, offset: u64, pieces: &mut [IoSlice<'_>]) -> Result<(), Error> {
        let losses = self.losses();
        self.backing().fill(offset, pieces).map_err(|source| self.full(offset, source))?;
        self.check_losses(losses)
    }

    /// Copies `buf.len()` bytes from `offset` on, of a block that no vCPU sees.
    ///
    /// # Panics
    /// When they do not lie in the block, or when the guest could change them meanwhile.
    pub fn copy_out(&self, offset: u64, buf: &mut [u8]) {
        assert!(self.regions().is_empty(), "the guest sees {}", self.name());
        let end = offset.checked_add(buf.len() as u64);
        assert!(end.is_some_and(|end| end <= self.bytes()));
        let from = self.host().wrapping_add(offset as usize);
        // SAFETY: the range lies in the block's mapping, `buf` is memory of its own, and nobody writes
        // a block that the guest does not see but a stream, before its guest runs, and the block's own
        // device, which calls this at other times.
        unsafe { std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len()) }
    }

    /// Changes the page at `offset` by an XBZRLE delta. A delta that is none leaves the page partly
    /// changed.
    ///
    /// # Panics
    /// When the page does not lie in the block.
    pub(crate) fn apply_delta(
        &self,
        offset: u64,
        delta: &[u8],
    ) -> Result<Result<(), xbzrle::DecodeError>, Error> {
        let losses = self.losses();
        let page = self.page(offset);
        // SAFETY: a whole page of the block's mapping; the delta is borrowed memory, which no part
        // of guest RAM ever is.
        let done = unsafe { xbzrle::decode_at(delta, page) };
        self.check_losses(losses)?;
        Ok(done)
    }

    /// Makes a range (bytes, whole pages) zero without touching what is zero already, holes above
    /// all.
    pub(crate) fn clear(&self, range: Range<u64>) -> Result<(), Error> {
        /// Asked about at once.
        const PART_BYTES: u64 = 256 * PAGE_BYTES;
        let losses = self.losses();
        let mut at = range.start;
        while let Some(data) = self.first_data(at..range.end)? {
            let data = data / PAGE_BYTES * PAGE_BYTES;
            let part = data..range.end.min(data + PART_BYTES);
            at = part.end;
            if self.touched(part.clone(), |page| self.clear_page(page))? {
                continue;
            }
            // Where data end would take as long as there are pages behind the range.
            if self.is_in_memory(part.clone()) {
                part.step_by(PAGE).for_each(|page| self.clear_page(page));
                continue;
            }
            let mut next = part.start;
            while let Some(data) = self.first_data(next..part.end)? {
                self.clear_page(data / PAGE_BYTES * PAGE_BYTES);
                next = (data / PAGE_BYTES + 1) * PAGE_BYTES;
            }
        }
        self.check_losses(losses)
    }

    fn clear_page(&self, offset: u64) {
        let page = self.page(offset);
        // SAFETY: a whole page of the block's mapping.
        unsafe {
            if !xbzrle::is_zero_live(page, PAGE) {
                page.write_bytes(0, PAGE);
            }
        }
    }

    /// Makes memory and page tables for a whole range (bytes) at once: a fault for each page would
    /// cost half as much as copying to it.
    pub(crate) fn populate(&self, range: Range<u64>) -> Result<(), Error> {
        match self.backing().advise(range.clone(), libc::MADV_POPULATE_WRITE) {
            // A kernel that does not know this (before 5.14) takes the faults.
            Err(e)
                if !matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EAGAIN | libc::EINTR)) =>
            {
                Err(self.not_populated(range.start, e))
            }
            _ => Ok(()),
        }
    }

    fn not_populated(&self, offset: u64, error: io::Error) -> Error {
        match error.raw_os_error() {
            // What would have been SIGBUS (madvise(2)).
            Some(libc::EFAULT) => self.missing(offset),
            _ => self.full(offset, error),
        }
    }

    fn page(&self, offset: u64) -> *mut u8 {
        assert!(offset.checked_add(PAGE_BYTES).is_some_and(|end| end <= self.bytes()));
        self.host().wrapping_add(offset as usize)
    }
}
