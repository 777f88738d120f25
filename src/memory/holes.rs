//! Where a backing has memory and where holes, found out without touching either.
//!
//! | backing | holes are told by |
//! | --- | --- |
//! | private anonymous memory | the page map of this process |
//! | a file or memfd, shared | the file: `SEEK_DATA` |
//! | a file, private, or laid over memory; a shared one that has lost pages (see [`super::full`]) | both: a page is a hole if the file has one there and this process has no page of its own |
//! | hugetlb memory that only this process knows | the page map |
//! | a file system that cannot tell | nobody: all is data |
//!
//! A file that somebody cut short while it is mapped has no holes behind its end, but memory that
//! is lost: asking there fails, so that nobody takes it for zeros, or reads it and is hit by SIGBUS.
//!
//! Unsafe because it asks the kernel in calls that no crate has.
#![allow(unsafe_code)]

use super::backing::{Backing, Mapped};
use super::pages::PAGE_BYTES;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Number of the system call, the same on all architectures (asm-generic/unistd.h).
const SYS_CACHESTAT: libc::c_long = 451;
/// Entries of the page map read at once, at most; less in the beginning, for who wants to know
/// about one page.
const ENTRIES: usize = 512;
const ENTRIES_FIRST: usize = 8;

/// Of a page map's entry: the page is a file's, or shared (Documentation/admin-guide/mm/pagemap.rst).
const FILE_PAGE: u64 = 1 << 61;

/// Who knows a backing's holes.
enum Teller<'b> {
    PageMap,
    File(Mapped<'b>),
    Both(Mapped<'b>),
}

impl Backing {
    fn teller(&self) -> Teller<'_> {
        match self.file() {
            None => Teller::PageMap,
            Some(_) if self.is_own_hugetlb() => Teller::PageMap,
            Some(file) if self.is_shared() && !self.has_lost() => Teller::File(file),
            Some(file) => Teller::Both(file),
        }
    }

    /// Where the first data in `range` (bytes) begin, `None` if it holds only holes. In contrast to
    /// [`Backing::next_data`] its cost does not grow with the data, nor, beyond the range, with the
    /// hole.
    pub(crate) fn first_data(&self, range: Range<u64>) -> io::Result<Option<u64>> {
        let range = range.start..range.end.min(self.bytes());
        if range.is_empty() {
            return Ok(None);
        }
        match self.teller() {
            Teller::PageMap => self.first_present(range),
            Teller::File(file) => self.first_in_file(&file, range),
            Teller::Both(file) => {
                let first = self.first_in_file(&file, range.clone())?;
                let before = range.start..first.unwrap_or(range.end);
                Ok(self.first_present(before)?.or(first))
            }
        }
    }

    /// The first range at or after `from` that may hold something else than zeros; `None` if only
    /// holes follow. Nothing is touched. Where the kernel cannot tell, all is data.
    pub(crate) fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let all = from..self.bytes();
        if all.is_empty() {
            return Ok(None);
        }
        let file = match self.teller() {
            Teller::PageMap => return self.next_present(all),
            Teller::File(file) => file,
            Teller::Both(file) => {
                // A file that was cut short is an error where its end is, which is further on.
                let first = self.first_in_file(&file, all.clone()).ok().flatten();
                if let Some(own) = self.next_present(all.start..first.unwrap_or(all.end))? {
                    return Ok(Some(own));
                }
                file
            }
        };
        let Some(start) = self.first_in_file(&file, all)? else { return Ok(None) };
        let end = self.file_offset() + self.bytes();
        let stop =
            seek(&file, self.file_offset() + start, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        Ok(Some(start..stop - self.file_offset()))
    }

    /// True if all of `range` (bytes, whole pages) is in memory, and so has no hole. Costs some
    /// nanoseconds per page. False says nothing, as on kernels before 6.5.
    pub(crate) fn is_in_memory(&self, range: Range<u64>) -> bool {
        /// From linux/mman.h: the range asked about, and counts of pages, the first of those in
        /// memory.
        #[repr(C)]
        struct CacheRange(u64, u64);
        // On a disk's file system the cache holds holes that were read, and what it read ahead.
        let Some(file) = self.file().filter(|_| self.is_on_tmpfs()) else { return false };
        let (bytes, mut counts) = (range.end - range.start, [0u64; 5]);
        let asked = CacheRange(self.file_offset() + range.start, bytes);
        // SAFETY: cachestat reads a range and writes five counts, both of which outlive the call.
        let done = unsafe {
            libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut counts, 0)
        };
        done == 0 && counts[0] == bytes / PAGE_BYTES
    }

    /// Says which pages of `range` (bytes) were ever touched, by their offset, and that it could:
    /// only of memory whose page map is the whole answer. Costs one read of the page map for 512
    /// pages.
    pub(crate) fn touched(&self, range: Range<u64>, mut say: impl FnMut(u64)) -> io::Result<bool> {
        if !matches!(self.teller(), Teller::PageMap) || self.page_map().is_none() {
            return Ok(false);
        }
        self.present(range, |page, present| {
            if present {
                say(page);
            }
            false
        })?;
        Ok(true)
    }

    fn first_in_file(&self, file: &File, range: Range<u64>) -> io::Result<Option<u64>> {
        let offset = self.file_offset();
        let start = seek(file, offset + range.start, libc::SEEK_DATA)?;
        let start = start.map(|start| start - offset).filter(|start| *start < range.end);
        // Data are there; that there are none may only be so because the file's end is gone.
        if start.is_none() && file.metadata()?.len() < offset + range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(start)
    }

    fn first_present(&self, range: Range<u64>) -> io::Result<Option<u64>> {
        let mut first = None;
        self.present(range, |page, present| {
            first = present.then_some(page);
            first.is_some()
        })?;
        Ok(first)
    }

    /// Private memory has no holes to seek; the page map says which pages were ever touched. Where
    /// there is much of it, a part is returned, so that one call does not take as long as there are
    /// pages.
    fn next_present(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        const PART_BYTES: u64 = 256 << 20;
        let (mut start, mut end) = (None, range.end);
        self.present(range, |page, present| match (present, start) {
            (true, None) => {
                start = Some(page);
                false
            }
            (_, Some(start)) if !present || page - start >= PART_BYTES => {
                end = page;
                true
            }
            _ => false,
        })?;
        Ok(start.map(|start| start..end))
    }

    /// Tells of each page of a range on whether it was ever touched, until `see` returns true.
    fn present(&self, range: Range<u64>, mut see: impl FnMut(u64, bool) -> bool) -> io::Result<()> {
        // What a page of the file is, the file says.
        let own_only = matches!(self.teller(), Teller::Both(_));
        let Some(map) = self.page_map() else {
            let mut pages = range.step_by(PAGE_BYTES as usize);
            pages.find(|page| see(*page, true));
            return Ok(());
        };
        let mut entries = [0u8; ENTRIES * 8];
        let mut count = ENTRIES_FIRST;
        let mut at = range.start;
        while at < range.end {
            let want = count.min((range.end - at).div_ceil(PAGE_BYTES) as usize) * 8;
            map.read_exact_at(&mut entries[..want], (self.host() as u64 + at) / PAGE_BYTES * 8)?;
            for entry in entries[..want].chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                if see(at, is_there(entry) && !(own_only && entry & FILE_PAGE != 0)) {
                    return Ok(());
                }
                at += PAGE_BYTES;
            }
            count = ENTRIES;
        }
        Ok(())
    }
}

/// Whether a page map entry is that of a page that was ever touched
/// (Documentation/admin-guide/mm/pagemap.rst). Bit 63: present, bit 62: swapped out, bits 0 to 54:
/// where to.
///
/// A page that was never touched and is write-protected by userfaultfd (bit 57) seems to be swapped
/// out. The place of its marker is none of a swap file: type 31 (`SWP_PTE_MARKER`), offset 1
/// (`PTE_MARKER_UFFD_WP`, linux/swapops.h). The kernel shows places to root (CAP_SYS_ADMIN) only;
/// for others such a page counts as touched.
fn is_there(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const PROTECTED: u64 = 1 << 57;
    const PLACE: u64 = (1 << 55) - 1;
    const MARKER: u64 = 1 << 5 | 31;
    let marked = entry & (PRESENT | SWAPPED | PROTECTED | PLACE) == SWAPPED | PROTECTED | MARKER;
    entry & (PRESENT | SWAPPED) != 0 && !marked
}

/// `None`: only holes (or the end of the file) follow.
fn seek(file: &File, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes integers only. The file position it moves is used by nobody.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    if at >= 0 {
        return Ok(Some(at as u64));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        // No support for seeking holes: everything is data.
        e if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok((whence == libc::SEEK_DATA).then_some(offset))
        }
        e => Err(e),
    }
}
