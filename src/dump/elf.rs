//! The ELF core.
//!
//! | where | what |
//! | --- | --- |
//! | 0 | ELF header, 64 bytes (52 in class 32) |
//! | behind it | program headers of 56 (32) bytes: one `PT_NOTE`, then a `PT_LOAD` for each mapping |
//! | then | notes, without padding before or after |
//! | from the next page on | memory in ascending order, each byte at its guest-physical address modulo 4096 |
//! | last, only with 65535 program headers or more | two section headers, the first of which counts them, and `.shstrtab` |
//!
//! Class 64 and machine `EM_X86_64` if CPU 0 is in long mode, else `EM_386`, with class 32 if every
//! address and every file offset fits in 32 bits.

use rayon::ThreadPool;

use super::error::{Error, What};
use super::guest::GuestState;
use super::note::Notes;
use super::output::Writer;
use super::pipeline::{self, Order, Sink};
use super::progress::Progress;
use super::ranges::{self, PAGE, Range};
use super::walk::{self, Mapping};
use crate::io::gather::{BUFFER_BYTES, Buffer};

const ET_CORE: u16 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `e_phnum` when the real count is in section 0's `sh_info`.
const PN_XNUM: u16 = 0xffff;
const SHT_STRTAB: u32 = 3;
const SHSTRTAB: &[u8] = b"\0.shstrtab\0";
/// Program headers written at once: few enough that the heap has room for them even where memory is
/// short.
const HEADERS_AT_ONCE: usize = 1024;
/// Memory is read in pieces of this size: small enough that what was read is still in the
/// second-level cache when it is written.
const CHUNK_BYTES: u64 = BUFFER_BYTES as u64;

/// Writes the core. `memory` is sorted, disjoint, joined and not empty.
pub(super) fn write(
    guest: &GuestState<'_>,
    paging: bool,
    memory: &[Range],
    notes: &Notes,
    mut output: Writer,
    pool: &ThreadPool,
    progress: &Progress,
) -> Result<(), Error> {
    let mappings = if paging { walk::mappings(guest.view, guest.cpus, memory)? } else { None };
    let mappings = mappings.unwrap_or_else(|| identity(memory));
    // The page tables were the last that anybody wanted of what is not dumped.
    for range in ranges::without(guest.view.ranges(), memory) {
        guest.view.release(range);
    }
    let long_mode = guest.cpus.first().is_some_and(|cpu| cpu.long_mode());
    let plan = FilePlan::new(long_mode, memory, &mappings, notes.bytes.len() as u64);

    output.put(What::ElfHeader, 0, &plan.header())?;
    let mut at = plan.class.header_bytes();
    for table in plan.program_headers(&mappings) {
        output.put(What::ProgramHeaders, at, &table)?;
        at += table.len() as u64;
    }
    debug_assert_eq!(at, plan.notes_at);
    output.put(What::ElfNotes, plan.notes_at, &notes.bytes)?;
    write_memory(guest, &plan, memory, &mut output, pool, progress)?;
    if plan.sections_at.is_some() {
        output.put(What::SectionHeaders, plan.memory_end, &plan.sections())?;
    }
    guest.view.check().map_err(Error::Lost)?;
    output.finish(plan.end)
}

/// Without paging, memory is seen at its own addresses.
fn identity(memory: &[Range]) -> Vec<Mapping> {
    memory
        .iter()
        .map(|range| Mapping { pa: range.start, va: range.start, len: range.len })
        .collect()
}

/// A chunk of memory, and which of its pages need writing.
struct Chunk {
    start: u64,
    buffer: Buffer,
    len: usize,
    /// runs that are not zeros
    runs: Vec<std::ops::Range<usize>>,
}

/// Puts chunks where the plan has them, from the buffers they were read into.
struct Memory<'s> {
    plan: &'s FilePlan<'s>,
    output: &'s mut Writer,
}

impl Sink for Memory<'_> {
    type Room = Buffer;
    type Chunk = Chunk;

    fn room(&mut self) -> Result<Buffer, Error> {
        self.output.buffer()
    }

    fn put(&mut self, chunk: Chunk) -> Result<(), Error> {
        let Chunk { start, buffer, len, runs } = chunk;
        self.output.put_runs(What::Memory, self.plan.offset(start), buffer, len, &runs)
    }
}

fn write_memory(
    guest: &GuestState<'_>,
    plan: &FilePlan<'_>,
    memory: &[Range],
    output: &mut Writer,
    pool: &ThreadPool,
    progress: &Progress,
) -> Result<(), Error> {
    let view = guest.view;
    let read = |range: Range, mut buffer: Buffer| -> Result<Chunk, Error> {
        let bytes = &mut buffer.room()[..range.len as usize];
        let any = pipeline::read(view, range.start, bytes)?;
        view.release(range);
        let runs = if any { runs(range.start, bytes) } else { Vec::new() };
        Ok(Chunk { start: range.start, buffer, len: range.len as usize, runs })
    };
    let order = match output.any_order() {
        true => Order::urgent_first(memory, CHUNK_BYTES, view).skipping_holes(),
        false => Order::rising(memory, CHUNK_BYTES),
    };
    pipeline::run(pool, order, progress, read, &mut Memory { plan, output })
}

/// The runs of pages that hold something other than zeros.
fn runs(start: u64, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for page in pipeline::pages(start, bytes).filter(|page| !xbzrle::is_zero(&bytes[page.clone()]))
    {
        match runs.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => runs.push(page),
        }
    }
    runs
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Bits32,
    Bits64,
}

impl Class {
    fn header_bytes(self) -> u64 {
        if self == Class::Bits64 { 64 } else { 52 }
    }

    fn program_header_bytes(self) -> u64 {
        if self == Class::Bits64 { 56 } else { 32 }
    }

    fn section_header_bytes(self) -> u64 {
        if self == Class::Bits64 { 64 } else { 40 }
    }

    /// An address, offset or size as wide as the class has it.
    fn word(self, out: &mut Vec<u8>, value: u64) {
        match self {
            Class::Bits64 => out.extend(value.to_le_bytes()),
            Class::Bits32 => {
                debug_assert!(
                    u32::try_from(value).is_ok(),
                    "{value:#x} in an ELF file of class 32"
                );
                out.extend((value as u32).to_le_bytes());
            }
        }
    }
}

/// Where everything stands.
struct FilePlan<'m> {
    class: Class,
    machine: u16,
    /// program headers, the note's included
    segments: u64,
    notes_at: u64,
    notes_bytes: u64,
    memory: &'m [Range],
    /// the file offset of each range of memory
    offsets: Vec<u64>,
    memory_end: u64,
    sections_at: Option<u64>,
    end: u64,
}

impl<'m> FilePlan<'m> {
    fn new(
        long_mode: bool,
        memory: &'m [Range],
        mappings: &[Mapping],
        notes_bytes: u64,
    ) -> FilePlan<'m> {
        let machine = if long_mode { EM_X86_64 } else { EM_386 };
        let plan =
            |class| FilePlan::in_class(class, machine, memory, mappings.len() as u64, notes_bytes);
        let narrow = !long_mode && memory.iter().all(|range| range.end() <= u64::from(u32::MAX));
        if narrow {
            let plan = plan(Class::Bits32);
            if u32::try_from(plan.end).is_ok() {
                return plan;
            }
        }
        plan(Class::Bits64)
    }

    fn in_class(
        class: Class,
        machine: u16,
        memory: &'m [Range],
        loads: u64,
        notes_bytes: u64,
    ) -> FilePlan<'m> {
        let segments = loads + 1;
        let notes_at = class.header_bytes() + segments * class.program_header_bytes();
        let page = PAGE as u64;
        let mut end = (notes_at + notes_bytes).next_multiple_of(page);
        let offsets = memory.iter().map(|range| {
            // The next offset that agrees with the address modulo a page.
            let at = end + (range.start % page + page - end % page) % page;
            end = at + range.len;
            at
        });
        let offsets = offsets.collect();
        let memory_end = end.next_multiple_of(8);
        let sections_at = (segments >= u64::from(PN_XNUM)).then_some(memory_end);
        let end = match sections_at {
            Some(at) => at + 2 * class.section_header_bytes() + SHSTRTAB.len() as u64,
            None => end,
        };
        FilePlan {
            class,
            machine,
            segments,
            notes_at,
            notes_bytes,
            memory,
            offsets,
            memory_end,
            sections_at,
            end,
        }
    }

    /// The file offset of a guest-physical address in memory.
    fn offset(&self, address: u64) -> u64 {
        let index = self.memory.partition_point(|range| range.end() <= address);
        self.offsets[index] + (address - self.memory[index].start)
    }

    fn header(&self) -> Vec<u8> {
        let class = self.class;
        let mut out = b"\x7fELF".to_vec();
        out.extend([if class == Class::Bits64 { 2 } else { 1 }, 1, 1]);
        out.resize(16, 0);
        out.extend(ET_CORE.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        let entry = 0;
        for value in [entry, class.header_bytes(), self.sections_at.unwrap_or(0)] {
            class.word(&mut out, value);
        }
        out.extend(0u32.to_le_bytes());
        let sections = if self.sections_at.is_some() {
            [class.section_header_bytes() as u16, 2, 1]
        } else {
            [0; 3]
        };
        let segments = u16::try_from(self.segments).unwrap_or(PN_XNUM);
        let counts = [class.header_bytes() as u16, class.program_header_bytes() as u16, segments];
        for value in counts.into_iter().chain(sections) {
            out.extend(value.to_le_bytes());
        }
        debug_assert_eq!(out.len() as u64, class.header_bytes());
        out
    }

    /// The program headers in pieces.
    fn program_headers<'s>(
        &'s self,
        mappings: &'s [Mapping],
    ) -> impl Iterator<Item = Vec<u8>> + 's {
        let mut note = Vec::new();
        self.program_header(&mut note, PT_NOTE, self.notes_at, 0, 0, self.notes_bytes);
        let loads = mappings.chunks(HEADERS_AT_ONCE).map(|part| {
            let bytes = part.len() as u64 * self.class.program_header_bytes();
            let mut table = Vec::with_capacity(bytes as usize);
            for Mapping { pa, va, len } in part {
                self.program_header(&mut table, PT_LOAD, self.offset(*pa), *va, *pa, *len);
            }
            table
        });
        std::iter::once(note).chain(loads)
    }

    fn program_header(
        &self,
        out: &mut Vec<u8>,
        kind: u32,
        offset: u64,
        va: u64,
        pa: u64,
        len: u64,
    ) {
        let [flags, align] = [0u32, 0];
        out.extend(kind.to_le_bytes());
        if self.class == Class::Bits64 {
            out.extend(flags.to_le_bytes());
        }
        for value in [offset, va, pa, len, len] {
            self.class.word(out, value);
        }
        if self.class == Class::Bits32 {
            out.extend(flags.to_le_bytes());
        }
        self.class.word(out, align.into());
    }

    /// Section 0 with the count of program headers, the string table's header, and the string
    /// table.
    fn sections(&self) -> Vec<u8> {
        let strings_at = self.memory_end + 2 * self.class.section_header_bytes();
        let mut out = Vec::new();
        self.section_header(&mut out, [0, 0], [0, 0], self.segments as u32);
        self.section_header(&mut out, [1, SHT_STRTAB], [strings_at, SHSTRTAB.len() as u64], 0);
        out.extend(SHSTRTAB);
        out
    }

    fn section_header(
        &self,
        out: &mut Vec<u8>,
        name_kind: [u32; 2],
        offset_size: [u64; 2],
        info: u32,
    ) {
        let [flags, address, align, entry_bytes] = [0; 4];
        let link = 0u32;
        out.extend(name_kind.iter().flat_map(|value| value.to_le_bytes()));
        for value in [flags, address].into_iter().chain(offset_size) {
            self.class.word(out, value);
        }
        out.extend([link, info].iter().flat_map(|value| value.to_le_bytes()));
        for value in [align, entry_bytes] {
            self.class.word(out, value);
        }
    }
}
