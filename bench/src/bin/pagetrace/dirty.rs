//! Which pages of a process were written since the last look: userfaultfd in asynchronous
//! write-protect mode (Linux 6.7), asked and reset in one step by `PAGEMAP_SCAN`.
//!
//! Numbers and structs are those of `linux/userfaultfd.h` and `linux/fs.h`, Linux 6.18.
//!
//! Unsafe because of ioctls and of reading another process.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use xbzrle::PAGE_SIZE;
use xbzrle::cache::Page;

use super::maps::{self, Mapping};
use super::target::Target;

const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Regions asked for at a time.
const REGIONS: usize = 1024;

/// Pages read from the process at a time.
const READ_PAGES: u64 = 256;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The written pages of one process.
pub(crate) struct DirtyLog {
    pid: i32,
    uffd: OwnedFd,
    pagemap: File,
    watched: HashSet<Mapping>,
}

impl DirtyLog {
    /// Starts the log of a stopped process.
    pub(crate) fn start(target: &mut Target) -> io::Result<DirtyLog> {
        let uffd = target.userfaultfd()?;
        let features =
            UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
        let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
        // SAFETY: UFFDIO_API reads and writes one uffdio_api.
        check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API as _, &raw mut api) })?;
        let pagemap = File::open(format!("/proc/{}/pagemap", target.pid))?;
        let mut log = DirtyLog { pid: target.pid, uffd, pagemap, watched: HashSet::new() };
        log.watch_new_mappings()?;
        Ok(log)
    }

    /// Gives `each` the written pages since the last harvest, ascending. A page is write-protected
    /// again first and read then, so that a write in between is found in the next harvest.
    pub(crate) fn harvest(&mut self, mut each: impl FnMut(u64, &Page)) -> io::Result<()> {
        let mappings = self.watch_new_mappings()?;
        // The list is not read in one moment: a mapping that moves or grows meanwhile can appear
        // twice.
        let mut done = 0;
        for mapping in mappings {
            let mut from = mapping.start.max(done);
            done = done.max(mapping.end);
            while from < mapping.end {
                let (regions, to) = match self.scan(from, &mapping) {
                    Ok(found) => found,
                    // The mapping is gone or was made in this moment: next time.
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => break,
                    Err(error) => return Err(error),
                };
                regions.iter().for_each(|region| self.read(region, &mut each));
                from = to;
            }
        }
        Ok(())
    }

    /// All writable mappings, those that are new registered.
    fn watch_new_mappings(&mut self) -> io::Result<Vec<Mapping>> {
        let mappings = maps::writable(self.pid)?;
        if mappings.is_empty() {
            return Err(io::ErrorKind::NotFound.into()); // it has given its memory back and is about to end
        }
        for mapping in &mappings {
            if self.watched.insert(mapping.clone()) {
                let (start, len) = (mapping.start, mapping.end - mapping.start);
                let mut register =
                    UffdioRegister { start, len, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
                // SAFETY: UFFDIO_REGISTER reads and writes one uffdio_register.
                let registered = unsafe {
                    libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_REGISTER as _, &raw mut register)
                };
                if registered != 0 {
                    self.watched.remove(mapping); // special memory, or gone already
                }
            }
        }
        Ok(mappings)
    }

    /// Written pages from `from` on, and where to go on.
    fn scan(&self, from: u64, mapping: &Mapping) -> io::Result<(Vec<PageRegion>, u64)> {
        // Pages of zeros never written, and file pages of private mappings only read, show as
        // written: left out.
        let not = PAGE_IS_PFNZERO | if mapping.shared { 0 } else { PAGE_IS_FILE };
        let mut regions = vec![PageRegion::default(); REGIONS];
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            start: from,
            end: mapping.end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            max_pages: 0,
            category_inverted: not,
            category_mask: PAGE_IS_WRITTEN | not,
            category_anyof_mask: 0,
            return_mask: PAGE_IS_WRITTEN,
        };
        // SAFETY: PAGEMAP_SCAN reads and writes one pm_scan_arg of the size it names, and writes at
        // most `vec_len` regions to `vec`, which has room for them.
        let found =
            unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) };
        check(found)?;
        regions.truncate(found as usize);
        Ok((regions, arg.walk_end.max(from + PAGE_SIZE as u64)))
    }

    fn read(&self, region: &PageRegion, each: &mut impl FnMut(u64, &Page)) {
        let mut bytes = vec![0_u8; READ_PAGES as usize * PAGE_SIZE];
        for start in (region.start..region.end).step_by(READ_PAGES as usize * PAGE_SIZE) {
            let len = (region.end - start).min(bytes.len() as u64) as usize;
            let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
            let remote = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len };
            // SAFETY: the local vector is our buffer; the remote one is checked by the kernel.
            let read = unsafe {
                libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
            };
            let whole = &bytes[..read.max(0) as usize];
            let first = start / PAGE_SIZE as u64;
            whole
                .as_chunks::<PAGE_SIZE>()
                .0
                .iter()
                .zip(first..)
                .for_each(|(page, number)| each(number, page));
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
