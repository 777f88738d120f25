//! Dumps of guest memory: ELF cores and kdump-compressed files.
//!
//! ```text
//! which pages       whose bytes         as what              laid out how        written by
//! ranges::Range  →  view::GuestView  →  codec::Compressor →  elf, kdump       →  output::Writer → io::Writer
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
mod guest;
mod job;
mod kdump;
mod machine;
mod note;
mod options;
mod output;
mod pipeline;
mod progress;
mod ram;
mod ranges;
pub mod read;
mod view;
mod vmcoreinfo;
mod walk;
mod write;

pub use codec::Codec;
pub use cpu::Cpu;
pub use error::Error;
pub use format::Format;
pub use guest::GuestState;
pub(crate) use job::{Claim, Done, QueryResult};
pub use job::{Dumpable, Dumps};
pub use options::Options;
pub use output::Output;
pub use progress::Progress;
pub use ram::RamView;
pub use ranges::Filter;
pub use view::{GuestView, Slices};
pub use vmcoreinfo::VmCoreInfo;
pub use write::{Report, memory_bytes, write};
