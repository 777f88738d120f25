//! What a dump is asked to be.

use super::format::Format;
use super::ranges::Filter;

/// What the dump looks like, and how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub format: Format,
    /// ELF only: one segment per virtual mapping, found by walking the page tables of each CPU.
    pub paging: bool,
    /// ELF only: dump this part of guest-physical memory.
    pub filter: Option<Filter>,
    /// Dump the guest as it is when it was stopped for a moment, while it runs on.
    pub live: bool,
    /// Threads that read and compress; the caller's thread writes. At least 1.
    pub threads: usize,
}

impl Options {
    /// A whole dump in `format`, on as many threads as the machine has.
    pub fn new(format: Format) -> Options {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Options { format, paging: false, filter: None, live: false, threads }
    }
}
