//! Guest memory as whoever sends it, saves it, dumps it or compares it reads it: the one place that
//! knows holes from pages of zeros from data, and the only one that reads pages by their address.
//!
//! | memory | of a guest that | by |
//! | --- | --- | --- |
//! | live | runs: a page may change while it is read, and is dirty again if it does | [`PageSource`]: chunks of 256 pages as masks, bytes from where they are |
//! | stopped | stands still | [`Still::stopped`], and all that is there for live memory |
//! | frozen | runs, write-protected since one moment | [`Still::frozen`]: bytes of that moment |
//!
//! Holes are asked for before anything is read, from [`crate::memory::RamBlock`], and asking is
//! reading: dirty bits are cleared first. A hole is asked for again each time. Reading makes no
//! memory, and memory that went away is an error of who read it ([`PageSource::check`]).
//!
//! A page's way out of a running guest (a reader follows it downwards):
//!
//! ```text
//! rounds ─► channel: chunks ─► scan: dirty bits cleared ─► PageSource::data_mask   holes
//!                                                        ─► PageSource::zero_mask   zeros
//!                             ─► Gather::memory, sent from where it is | PageSource::live, to the delta encoder
//! ```
//!
//! and into a dump:
//!
//! ```text
//! pipeline::run: its chunks ─► Encoder::strip ─► pipeline::read ─► Still::extent   holes
//!                                                                ─► Still::read     one copy
//!                                             ─► Compressor::page, into the buffer that is written
//!                           ─► Writer::put_parts ─► FileWriter::write
//! ```

mod hash;
mod mask;
mod qemu_records;
mod read;
mod source;
mod still;

pub use hash::hash_ram;
pub use mask::{CHUNK_PAGES, ChunkMask, and, and_not, chunk_of, count, mask_ranges, or};
pub use qemu_records::QemuRecords;
pub use read::read;
pub use source::{PageSource, sources};
pub use still::Still;

/// What is known about a piece of memory without reading it. The number is its length in bytes, at
/// least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Never written: reads as zeros, and is better not read, since reading may allocate it.
    Hole(u64),
    Data(u64),
}
