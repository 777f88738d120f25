//! Guest RAM: where it comes from, where the guest sees it, and which of its pages this process
//! wrote.
//!
//! A machine has one [`GuestRam`]. It is made of [`RamBlock`]s, the unit migration streams name and
//! number pages in; each block is one mapping in this process and appears to the guest in one or
//! more [`Region`]s (RAM above 3 GiB continues at 4 GiB). KVM logs what vCPUs write; everything
//! this process writes by guest address goes through [`GuestRam::write`], or `vm-memory` between
//! [`GuestRam::ask_to_write`] and the end of the write, and is marked in a bitmap of its own, see
//! [`GuestRam::take_vmm_dirty`].
//!
//! A [`Snapshot`] is RAM as it was at one moment, read while the guest goes on; whoever writes is
//! made to wait until the page was copied.

mod arrive;
mod backing;
mod full;
mod holes;
mod mapped;
mod pages;
mod ram;
mod snapshot;
mod uffd;
mod watch;

pub use full::survive_missing_pages;
pub use pages::PageSet;
pub(crate) use ram::layout;
pub use ram::{GuestRam, Mem, RamBlock, Region};
pub use snapshot::{POOL_BYTES, Snapshot};
pub use uffd::Unavailable;
pub use watch::WriteGuard;

use std::path::PathBuf;

/// Bytes of a guest page, and the unit of every [`PageSet`].
pub const PAGE_BYTES: u64 = 4096;

/// Why guest RAM could not be had or reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot get {bytes} bytes of guest RAM: {source}{}", advice(source))]
    Map { bytes: u64, source: std::io::Error },
    #[error("cannot open guest RAM file {}: {source}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("cannot set the size of guest RAM file {}: {source}", path.display())]
    Resize { path: PathBuf, source: std::io::Error },
    #[error(
        "guest RAM file {} has {has} bytes and {needed} are needed; give an empty or a new file, one of this size, or \
         the guest as much as the file holds (size=)",
        path.display()
    )]
    TooShort { path: PathBuf, has: u64, needed: u64 },
    #[error(
        "guest RAM of {bytes} bytes is not a multiple of the {page_bytes}-byte pages of its backend"
    )]
    PageSize { bytes: u64, page_bytes: u64 },
    #[error("guest RAM cannot be read-only (readonly=on)")]
    ReadOnly,
    #[error("cannot touch all guest RAM in advance (prealloc=on): {source}{}", advice(source))]
    Prealloc { source: std::io::Error },
    #[error("guest physical address {gpa:#x} with {bytes} bytes is not RAM")]
    Address { gpa: u64, bytes: usize },
    #[error("block {0:?} is already there with another size")]
    BlockExists(String),
    #[error(
        "block {name:?} of {bytes} bytes belongs to no device here and is too large to be kept"
    )]
    BlockTooLarge { name: String, bytes: u64 },
    #[error("no memory for the guest at {offset:#x} of block {block}: {source}{}", advice(source))]
    Full { block: String, offset: u64, source: std::io::Error },
    #[error(
        "guest memory from {left:#x} of block {block} on is lost: what it lies on was cut short there"
    )]
    CutShort { block: String, left: u64 },
    #[error("the image of guest RAM was lost: write faults could not be answered")]
    SnapshotLost,
    #[error("cannot find or punch holes in block {block}: {source}")]
    Hole { block: String, source: std::io::Error },
}

fn advice(e: &std::io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; free some memory, give the guest less with -m, or raise the memory limit (ulimit -v, cgroup, \
             vm.nr_hugepages for huge pages)"
        }
        Some(libc::ENOSPC) => {
            "; what the memory lies on is full: free some space there, or use a larger file system"
        }
        Some(libc::EFAULT) => "; the host cannot supply this page, its own log (dmesg) may say why",
        Some(libc::EINVAL) => "; does the host support this backend and page size?",
        _ => "",
    }
}

/// Shared memory of so many bytes.
#[cfg(test)]
pub(crate) fn for_tests(bytes: u64) -> GuestRam {
    use crate::config::{Memory, MemoryBackend};
    let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
    let block = "ram".into();
    GuestRam::new(&Memory { bytes, block, backend, prealloc: false, merge: false, dump: true })
        .unwrap()
}
