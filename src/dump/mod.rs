//! Dumps of guest memory: ELF cores and kdump-compressed files.
//!
//! ```text
//! which pages       whose bytes         as what              laid out how        written by
//! ranges::Range  →  view::GuestView  →  codec::Compressor →  elf, kdump       →  output::Writer → io::FileWriter
//! ```
//!
//! The formats know nothing of KVM: a dump is made from a [`GuestView`] (which ranges of
//! guest-physical memory exist, and their bytes) and plain register structs ([`Cpu`]). A stopped
//! machine is one view; a migration file that is being turned into a core is another. [`Dumps`]
//! makes the dumps of a machine that lives, one at a time. [`read`] is an independent reader of the
//! same formats, for tests and fuzzing.
//!
//! The layouts are QEMU 10's with these differences, each of which made a reader fail:
//!
//! | what | QEMU 10.0.2 | here |
//! | --- | --- | --- |
//! | ELF program headers | behind two section headers | at offset 64 (52 in class 32), where makedumpfile reads them; section headers only when their count field is needed, and then last |
//! | ELF `e_ehsize` | 8 | 64 (52) |
//! | ELF memory | unaligned, zeros written | each page at its own offset modulo 4096; zero pages are holes where the file can have holes |
//! | `paging`, mapping over two RAM blocks | cut at the first block's end | one segment for each block |
//! | `paging`, low half of the address space | sign bits set | sign-extended from bit 47 or 56 |
//! | `paging`, page with protection-key or software bits | taken for I/O and left out | bits 52 to 63 are masked |
//! | kdump `utsname` | empty, machine "Unknown" | filled, with the guest's release if it told us |
//! | kdump `phys_base` | parsed as hexadecimal | signed decimal, as Linux writes it |
//!
//! A firmware ROM that is part of the guest's memory map is dumped as memory, as QEMU does;
//! Godwit's own direct boot has none. Windows dumps are not made.

mod codec;
mod cpu;
mod elf;
mod error;
mod format;
mod job;
mod kdump;
mod machine;
mod note;
mod output;
mod pipeline;
mod progress;
mod ram;
mod ranges;
pub mod read;
mod view;
mod vmcoreinfo;
mod walk;

pub use crate::pages::Extent;
pub use codec::Codec;
pub use cpu::{Cpu, Segment};
pub use error::{Error, What};
pub use format::Format;
pub use job::{Busy, Claim, Done, Dumpable, Dumps, Failure, QueryResult, Status};
pub use output::Output;
pub use progress::Progress;
pub use ram::RamView;
pub use ranges::{Filter, Range};
pub use view::{GuestView, ReadFailed, Slices};
pub use vmcoreinfo::{NoteRefused, VmCoreInfo};

/// Bytes in a page of every format and of every page table here.
pub const PAGE: usize = 4096;

/// What is dumped: memory, registers in CPU order, and where the guest put its note, if it said so.
pub struct GuestState<'a> {
    pub view: &'a dyn GuestView,
    pub cpus: &'a [Cpu],
    pub vmcoreinfo: Option<VmCoreInfo>,
}

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

/// What a finished dump has to say.
#[derive(Debug, Default)]
pub struct Report {
    /// Why the guest's note was left out, if it named one. The dump is complete without it.
    pub note_refused: Option<NoteRefused>,
}

/// Bytes of guest memory that a dump with this filter holds.
pub fn memory_bytes(view: &dyn GuestView, filter: Option<Filter>) -> u64 {
    ranges::cut(view.ranges(), filter).iter().map(|range| range.len).sum()
}

/// Writes a dump of `guest` to `output`, in the order a pipe can take unless the format is a raw
/// kdump.
///
/// `progress` counts bytes of guest memory and is asked for a cancel once per chunk. The memory
/// used is bounded: the writer's buffers of 8 MiB, for a kdump three chunks of 4 MiB and their
/// compressed copies, and the page-table mappings of a `paging` dump (24 bytes each, at most
/// `walk::MAPPINGS_MAX`).
pub fn write(
    guest: &GuestState<'_>,
    options: &Options,
    output: Output,
    progress: &Progress,
) -> Result<Report, Error> {
    let memory = ranges::cut(guest.view.ranges(), options.filter);
    if memory.is_empty() {
        return Err(Error::NoMemory);
    }
    progress.begin(memory.iter().map(|range| range.len).sum());
    let (guest_note, note_refused) = match guest.vmcoreinfo.map(|at| at.read(guest.view)) {
        Some(Ok(note)) => (Some(note), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    let notes = note::Notes::new(guest.cpus, guest_note);
    let pool = pipeline::pool(options.threads)?;
    let output = output.open(progress.waker())?;
    match options.format {
        Format::Elf => elf::write(guest, options.paging, &memory, &notes, output, &pool, progress)?,
        Format::Kdump { codec, raw } => {
            kdump::write(guest, codec, raw, &memory, &notes, output, &pool, progress)?
        }
    }
    Ok(Report { note_refused })
}
