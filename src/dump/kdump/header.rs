//! The two headers of a kdump file.
//!
//! `disk_dump_header`, 64 bits (32 bits where it differs):
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | `"KDUMP   "` |
//! | 8 | 4 | version 6 |
//! | 12 | 6 x 65 | utsname: sysname, nodename, release, version, machine, domainname |
//! | 408 (404) | 16 (8) | time stamp, 0 |
//! | 424 (412) | 4 | status: the codec's bit |
//! | +4 | 4 | block size 4096 |
//! | +8 | 4 | blocks of the sub header and the notes |
//! | +12 | 4 | blocks of both bitmaps |
//! | +16 | 4 | end of the last page number, cut to 32 bits |
//! | +20 | 4 x 4 | total, device and written blocks, current CPU: 0 |
//! | +36 | 4 | CPUs |
//!
//! `kdump_sub_header`, 104 (80) bytes; "long" is 8 (4) bytes, the others say it:
//!
//! | field | bytes |
//! | --- | --- |
//! | phys_base, signed | long |
//! | dump level 1, split 0 | 4 + 4 |
//! | start and end page of a split dump, 0 | long + long |
//! | offset and size of the VMCOREINFO text | 8 + long |
//! | offset and size of the notes | 8 + long |
//! | offset and size of erase information, 0 | 8 + long |
//! | start and end page of a split dump, 0; end of the last page number | 8 + 8 + 8 |

use std::ops::Range as Span;

use crate::dump::cpu::Cpu;
use crate::dump::ranges::{PAGE, Range};

const VERSION: u32 = 6;
const DUMP_LEVEL: u32 = 1;
/// Bytes of one string of `struct utsname`.
const UTS_BYTES: usize = 65;

/// How wide a "long" of the guest's kernel is, and with it the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Bits32,
    Bits64,
}

impl Width {
    /// As the ELF core's class: 32 bits for a guest outside long mode with all its memory below 4
    /// GiB.
    pub(super) fn of(cpus: &[Cpu], memory: &[Range]) -> Width {
        let long_mode = cpus.first().is_some_and(Cpu::long_mode);
        let low = memory.iter().all(|range| range.end() <= u64::from(u32::MAX));
        if !long_mode && low { Width::Bits32 } else { Width::Bits64 }
    }

    fn machine(self) -> &'static str {
        match self {
            Width::Bits32 => "i686",
            Width::Bits64 => "x86_64",
        }
    }

    fn status_at(self) -> usize {
        match self {
            Width::Bits32 => 412,
            Width::Bits64 => 424,
        }
    }

    fn sub_header_bytes(self) -> u64 {
        match self {
            Width::Bits32 => 80,
            Width::Bits64 => 104,
        }
    }

    fn long(self, out: &mut Vec<u8>, value: u64) {
        match self {
            Width::Bits32 => out.extend((value as u32).to_le_bytes()),
            Width::Bits64 => out.extend(value.to_le_bytes()),
        }
    }
}

/// What the headers say, and where that puts the rest.
pub(super) struct Header {
    pub width: Width,
    pub status: u32,
    pub release: Option<String>,
    pub phys_base: i64,
    pub cpus: u32,
    /// the number after the last page's
    pub pages_end: u64,
    pub notes_bytes: u64,
    /// the text of VMCOREINFO within the notes
    pub vmcoreinfo: Option<Span<usize>>,
}

impl Header {
    pub(super) fn notes_at(&self) -> u64 {
        PAGE as u64 + self.width.sub_header_bytes()
    }

    pub(super) fn bitmaps_at(&self) -> u64 {
        (1 + self.sub_header_blocks()) * PAGE as u64
    }

    /// Bytes of one bitmap, a multiple of the block size.
    pub(super) fn bitmap_bytes(&self) -> u64 {
        self.pages_end.div_ceil(8).next_multiple_of(PAGE as u64)
    }

    fn sub_header_blocks(&self) -> u64 {
        (self.width.sub_header_bytes() + self.notes_bytes).div_ceil(PAGE as u64)
    }

    /// Block 0. Readers tell the architecture by the machine name, and none of the strings may be
    /// empty but the last.
    pub(super) fn dump_header(&self) -> Vec<u8> {
        let mut out = b"KDUMP   ".to_vec();
        out.extend(VERSION.to_le_bytes());
        let release = self.release.as_deref().unwrap_or("unknown");
        for (index, text) in
            ["Linux", "(none)", release, "#1", self.width.machine(), ""].iter().enumerate()
        {
            let kept = &text.as_bytes()[..text.len().min(UTS_BYTES - 1)];
            out.extend_from_slice(kept);
            out.resize(12 + (index + 1) * UTS_BYTES, 0);
        }
        out.resize(self.width.status_at(), 0);
        let blocks = |bytes: u64| u32::try_from(bytes / PAGE as u64).unwrap_or(u32::MAX);
        let pages_end = u32::try_from(self.pages_end).unwrap_or(u32::MAX);
        let [total_ram, device, written, current_cpu] = [0; 4];
        let fields = [
            self.status,
            PAGE as u32,
            self.sub_header_blocks() as u32,
            blocks(2 * self.bitmap_bytes()),
            pages_end,
            total_ram,
            device,
            written,
            current_cpu,
            self.cpus,
        ];
        out.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        out.resize(PAGE, 0);
        out
    }

    pub(super) fn sub_header(&self) -> Vec<u8> {
        let width = self.width;
        let mut out = Vec::new();
        width.long(&mut out, self.phys_base as u64);
        for word in [DUMP_LEVEL, 0] {
            out.extend(word.to_le_bytes());
        }
        width.long(&mut out, 0);
        width.long(&mut out, 0);
        let text = self
            .vmcoreinfo
            .as_ref()
            .map_or((0, 0), |at| (self.notes_at() + at.start as u64, at.len() as u64));
        for (offset, size) in [text, (self.notes_at(), self.notes_bytes), (0, 0)] {
            out.extend(offset.to_le_bytes());
            width.long(&mut out, size);
        }
        for value in [0, 0, self.pages_end] {
            out.extend(value.to_le_bytes());
        }
        debug_assert_eq!(out.len() as u64, width.sub_header_bytes());
        out
    }
}
