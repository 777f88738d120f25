//! Why guest RAM could not be had or reached.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot get {bytes} bytes of guest RAM: {source}{}", advice(source))]
    Map { bytes: u64, source: io::Error },
    #[error("cannot open guest RAM file {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot set the size of guest RAM file {}: {source}", path.display())]
    Resize { path: PathBuf, source: io::Error },
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
    Prealloc { source: io::Error },
    #[error("guest physical address {gpa:#x} with {bytes} bytes is not RAM")]
    Address { gpa: u64, bytes: usize },
    #[error("block {0:?} is already there with another size")]
    BlockExists(String),
    #[error("block {name:?} belongs to no device here, and {most} such blocks are there already")]
    TooManyBlocks { name: String, most: usize },
    #[error(
        "block {name:?} of {bytes} bytes belongs to no device here and is too large to be kept"
    )]
    BlockTooLarge { name: String, bytes: u64 },
    #[error("no memory for the guest at {offset:#x} of block {block}: {source}{}", advice(source))]
    Full { block: String, offset: u64, source: io::Error },
    #[error(
        "guest memory from {left:#x} of block {block} on is lost: what it lies on was cut short there"
    )]
    CutShort { block: String, left: u64 },
    #[error(
        "what the guest's memory is read from, block {block}, was written to: the guest would see both; start it anew, from a file that nobody writes to"
    )]
    Changed { block: String },
    #[error(
        "the snapshot cannot be mapped as block {block:?}: {why}; it takes private anonymous memory, \
         x-godwit-restore=eager reads it into any"
    )]
    NotLaidOver { block: String, why: &'static str },
    #[error(
        "cannot map the snapshot as block {block:?}: {source}; x-godwit-restore=eager reads it"
    )]
    NotMapped { block: String, source: io::Error },
    #[error("the image of guest RAM was lost: write faults could not be answered")]
    SnapshotLost,
    #[error(
        "the image of guest RAM was given up: its pages found no more room because they are read too slowly, and the \
         guest was to be stopped or reset"
    )]
    SnapshotGaveWay,
    #[error("cannot find or punch holes in block {block}: {source}")]
    Hole { block: String, source: io::Error },
}

fn advice(e: &io::Error) -> &'static str {
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
