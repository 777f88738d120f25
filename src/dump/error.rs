//! Why a dump was not made.

use std::{fmt, io};

use super::view::ReadFailed;

/// The part of the file that was being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    ElfHeader,
    ProgramHeaders,
    ElfNotes,
    Memory,
    SectionHeaders,
    FlatHeader,
    FlatEnd,
    DumpHeader,
    SubHeader,
    KdumpNotes,
    Bitmap,
    ZeroPage,
    PageDescriptors,
    PageData,
    FileEnd,
}

impl What {
    fn text(self) -> &'static str {
        match self {
            What::ElfHeader => "elf header",
            What::ProgramHeaders => "program header table",
            What::ElfNotes => "elf notes",
            What::Memory => "memory",
            What::SectionHeaders => "section header table",
            What::FlatHeader => "start flat header",
            What::FlatEnd => "end flat header",
            What::DumpHeader => "disk dump header",
            What::SubHeader => "kdump sub header",
            What::KdumpNotes => "notes",
            What::Bitmap => "bitmaps",
            What::ZeroPage => "zero page",
            What::PageDescriptors => "page desc",
            What::PageData => "page data",
            What::FileEnd => "end of file",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ranges, cut by the filter, are empty.
    #[error("dump: no guest memory to dump")]
    NoMemory,
    #[error("dump: failed to write {what}: {}", Errno(source))]
    Write { what: What, source: io::Error },
    /// A raw kdump goes back and forth in its file.
    #[error("kdump-raw formats require a seekable file")]
    NotSeekable,
    /// The destination could not be looked at.
    #[error("dump: cannot use the target: {}", Errno(.0))]
    Destination(io::Error),
    #[error("dump: cannot set up io_uring: {0}")]
    Ring(crate::io::Error),
    #[error("dump: {0}")]
    Read(#[from] ReadFailed),
    /// What was written need not be the guest's memory.
    #[error("dump: {0}")]
    Lost(String),
    /// Page tables can describe far more mappings than there is memory, above all when they refer
    /// to themselves.
    #[error(
        "dump: the guest's page tables describe more than {limit} separate mappings; dump without paging"
    )]
    TooManyMappings { limit: usize },
    #[error("dump: cannot start compression threads: {0}")]
    Threads(#[source] rayon::ThreadPoolBuildError),
    #[error("dump: cancelled")]
    Cancelled,
}

/// The kernel's words without Rust's "(os error 28)", as QEMU prints them.
pub(super) struct Errno<'a>(pub &'a io::Error);

impl fmt::Display for Errno<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error ").next().unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_error_reads_as_qemu_prints_it() {
        let error = Error::Write {
            what: What::ElfHeader,
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        };
        assert_eq!(error.to_string(), "dump: failed to write elf header: No space left on device");
    }
}
