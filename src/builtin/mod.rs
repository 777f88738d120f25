//! The built-in guest: a small kernel inside this binary that dirties memory and checks every page
//! it dirtied.
//!
//! It makes the main job run with nothing but Godwit itself (`godwit run -kernel builtin`), and it
//! is the measuring instrument of the tests: a page that was lost, torn, or came in an older
//! version stops it with a message. It is a PVH kernel, so that other VMMs start it too: `godwit
//! builtin-guest FILE` writes the ELF image.
//!
//! # What it does
//!
//! A *working set* of `ws=` MiB, from 4 MiB up, is divided among the processors. Each goes over its
//! part in *rounds*, numbered from 1. In each round some of the pages are due; each of them is
//! checked and then written: `bytes=` bytes in 8-byte words, spread evenly over the page, all with
//! one *stamp*:
//!
//! | bits | what |
//! | --- | --- |
//! | 63–32 | version: the round in which the page was written, 0 for the first contents |
//! | 31–0 | number of the page in the working set, plus 0x40000000 |
//!
//! | `pattern=` | which pages are due | rounds in a sweep |
//! | --- | --- | --- |
//! | `seq` | all, in order | 1 |
//! | `random` | all, in an order that differs from round to round | 1 |
//! | `hot` | an eighth in every round, scattered, each other one every 32 rounds | 32 |
//! | `zipf` | 16 in every round, 16 every 2, 32 every 4 … the last every 256 rounds, scattered | 256 |
//!
//! At the end of a *sweep* each page has been checked at least once, and a line is written to the
//! serial port: `sweep 12 pages 49152`, the second number being all pages written so far; `cpu 1
//! sweep …` when there are several processors. Lines come at most 64 times a second. Neither number
//! ever goes back.
//!
//! `rate=` pages per second (all processors together) are written, paced by the time stamp counter;
//! without it as many as possible. `fill=` is what the rest of each page holds: what was there
//! (`zero`), lines of text, or random bytes.
//!
//! # Why a stale page is always seen
//!
//! There is no table of versions that could itself go back. Which version a page must have follows
//! from the number of the round, which is a register, and the page's own number: written a *period*
//! of rounds ago, where the period is a matter of the page's place in the pattern. While it runs
//! the guest writes to no other memory: no stack, no variables (with several processors, a lock
//! while a line is written). So every page it ever dirties is one that it checks, and registers
//! that are older than memory are found out as memory that is newer than it may be.
//!
//! ```text
//! CORRUPT page 1234 at 512 expected 00000007400004d2 found 00000006400004d2
//! ```
//!
//! names the page, the byte in it, and both stamps (here: version 7 and 6 of page 0x4d2), and the
//! guest stops.

mod code;
mod parameters;

pub(crate) use code::code;
pub(crate) use parameters::{ParameterError, Parameters};

/// Where the guest must be loaded, and where it is entered, in 32-bit mode as PVH has it.
pub(crate) const LOAD_ADDRESS: u64 = 0x10_0000;
/// Guest-physical address of page 0 of the working set.
pub const SET_ADDRESS: u64 = 0x40_0000;

/// The guest as an ELF file with a PVH note, as any VMM that boots PVH kernels takes it.
///
/// | offset | what |
/// | --- | --- |
/// | 0 | ELF header |
/// | 64 | program headers: PT_LOAD, PT_NOTE |
/// | 176 | note XEN_ELFNOTE_PHYS32_ENTRY (18) |
/// | 4096 | [`code()`] |
pub fn elf() -> Vec<u8> {
    const HEADER_BYTES: u16 = 64;
    const SEGMENT_BYTES: u16 = 56;
    const NOTE_AT: u64 = 176;
    const CODE_AT: u64 = 4096;
    const RWX: u32 = 7;
    let code = code();
    let note = note();
    let mut elf = Vec::with_capacity(CODE_AT as usize + code.len());
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    elf.extend(1u32.to_le_bytes());
    for word in [LOAD_ADDRESS, u64::from(HEADER_BYTES), 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER_BYTES, SEGMENT_BYTES, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, at: u64, address: u64, bytes: u64, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [at, address, address, bytes, bytes, align] {
            elf.extend(word.to_le_bytes());
        }
    };
    segment(1, RWX, CODE_AT, LOAD_ADDRESS, code.len() as u64, 4096);
    segment(4, 4, NOTE_AT, 0, note.len() as u64, 4);
    elf.extend(note);
    elf.resize(CODE_AT as usize, 0);
    elf.extend(code);
    elf
}

/// The note that says where a PVH kernel is entered.
fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((LOAD_ADDRESS as u32).to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_begins_with_the_entry_and_is_whole_pages() {
        let code = code();
        assert_eq!(code.len() % 4096, 0);
        assert!(code.len() < 0x1_0000, "the processors' blocks begin 64 KiB behind the code");
        assert_eq!(code[..2], [0xfa, 0xfc], "cli; cld");
    }

    #[test]
    fn the_elf_file_has_its_parts_where_the_headers_say() {
        let elf = elf();
        assert_eq!(&elf[176..196], note());
        assert_eq!(&elf[4096..], code());
    }
}
