//! ELF kernels: segments to their physical addresses, and the PVH entry from the notes.
//!
//! Our own, because linux-loader's reads no 32-bit images, and does not clear what the file leaves
//! out (`.bss`), which a reset needs: RAM is not fresh then.

use super::error::BootError;
use super::places::HIGH_MEMORY;
use super::room::{Image, Room, copy, no_room, put, read_at, seek};
use crate::memory::PAGE_BYTES;
use std::path::Path;

pub(crate) const MAGIC: &[u8; 4] = b"\x7fELF";

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of xen/interface/elfnote.h.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// More program headers or note bytes than any kernel has.
const SEGMENTS_MAX: u16 = 256;
const NOTE_BYTES_MAX: u64 = 1 << 20;

pub(crate) struct Kernel {
    /// 64-bit file.
    pub wide: bool,
    /// The file's entry address, which for 64-bit Linux is `startup_64`.
    pub entry: u64,
    /// 32-bit entry of the PVH note.
    pub pvh_entry: Option<u32>,
    /// End of the highest segment.
    pub end: u64,
}

struct Segment {
    kind: u32,
    offset: u64,
    gpa: u64,
    file_bytes: u64,
    bytes: u64,
}

/// Loads all segments of `image`.
pub(crate) fn load(
    ram: &Room<'_>,
    path: &Path,
    image: &mut impl Image,
) -> Result<Kernel, BootError> {
    let damaged = |what| BootError::Damaged { path: path.into(), what };
    let mut header = [0; 64];
    read_at(image, path, 0, &mut header[..52])?;
    let wide = header[4] == 2;
    if wide {
        read_at(image, path, 0, &mut header)?;
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (entry, table, size, count) = if wide {
        (quad(&header, 24), quad(&header, 32), half(54), half(56))
    } else {
        (word(&header, 24).into(), word(&header, 28).into(), half(42), half(44))
    };
    if header[5] != 1 || usize::from(size) < entry_bytes(wide) || count == 0 || count > SEGMENTS_MAX
    {
        return Err(damaged("the program header table"));
    }
    let mut kernel = Kernel { wide, entry, pvh_entry: None, end: 0 };
    for i in 0..u64::from(count) {
        let at = table.checked_add(i * u64::from(size));
        let at = at.ok_or_else(|| damaged("the program header table"))?;
        let segment = segment(image, path, at, wide)?;
        match segment.kind {
            PT_LOAD if segment.bytes > 0 => {
                let end =
                    segment.gpa.checked_add(segment.bytes).ok_or_else(|| damaged("a segment"))?;
                if segment.gpa < HIGH_MEMORY || segment.file_bytes > segment.bytes {
                    return Err(damaged("a segment"));
                }
                load_segment(ram, path, image, &segment)?;
                kernel.end = kernel.end.max(end);
            }
            PT_NOTE if kernel.pvh_entry.is_none() => {
                kernel.pvh_entry = find_note(image, path, &segment)?
            }
            _ => {}
        }
    }
    if kernel.end == 0 { Err(damaged("every segment")) } else { Ok(kernel) }
}

fn entry_bytes(wide: bool) -> usize {
    if wide { 56 } else { 32 }
}

fn segment(image: &mut impl Image, path: &Path, at: u64, wide: bool) -> Result<Segment, BootError> {
    let mut raw = [0; 56];
    read_at(image, path, at, &mut raw[..entry_bytes(wide)])?;
    Ok(if wide {
        Segment {
            kind: word(&raw, 0),
            offset: quad(&raw, 8),
            gpa: quad(&raw, 24),
            file_bytes: quad(&raw, 32),
            bytes: quad(&raw, 40),
        }
    } else {
        Segment {
            kind: word(&raw, 0),
            offset: word(&raw, 4).into(),
            gpa: word(&raw, 12).into(),
            file_bytes: word(&raw, 16).into(),
            bytes: word(&raw, 20).into(),
        }
    })
}

fn load_segment(
    ram: &Room<'_>,
    path: &Path,
    image: &mut impl Image,
    s: &Segment,
) -> Result<(), BootError> {
    seek(image, path, s.offset)?;
    copy(ram, path, image, s.gpa, s.file_bytes)?;
    clear(ram, path, s.gpa + s.file_bytes, s.gpa + s.bytes)
}

/// Zeros the range, without touching pages that are holes, and so zero already.
fn clear(ram: &Room<'_>, path: &Path, start: u64, end: u64) -> Result<(), BootError> {
    let Some(guest) = ram.ram else {
        return match start >= end || ram.holds(start, end - start) {
            true => Ok(()),
            false => Err(no_room(ram, path, start, end - start)),
        };
    };
    let mut at = start;
    while at < end {
        let next = (at / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES).min(end);
        let offset = guest.main().offset(at);
        let hole = offset.is_some_and(|o| guest.main().is_hole(o / PAGE_BYTES).unwrap_or(false));
        if !hole {
            put(ram, at, &[0; PAGE_BYTES as usize][..(next - at) as usize])?;
        }
        at = next;
    }
    Ok(())
}

/// Each note: name length, data length, type, name and data padded to 4 bytes.
fn find_note(image: &mut impl Image, path: &Path, s: &Segment) -> Result<Option<u32>, BootError> {
    let mut notes = vec![0; s.file_bytes.min(NOTE_BYTES_MAX) as usize];
    read_at(image, path, s.offset, &mut notes)?;
    let mut rest = &notes[..];
    while rest.len() >= 12 {
        let (name_bytes, data_bytes, kind) = (word(rest, 0), word(rest, 4), word(rest, 8));
        let name = rest.get(12..12 + name_bytes as usize);
        let data = 12 + (name_bytes as usize).next_multiple_of(4);
        let Some(value) = rest.get(data..data + data_bytes as usize) else { return Ok(None) };
        if kind == NOTE_PHYS32_ENTRY && name == Some(b"Xen\0") && value.len() >= 4 {
            return Ok(Some(word(value, 0)));
        }
        rest = rest.get(data + (data_bytes as usize).next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
