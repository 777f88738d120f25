//! Reading an ELF core.

use super::bytes::{BadFile, Note, notes, number, slice};

/// A `PT_LOAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub va: u64,
    pub pa: u64,
    pub offset: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
}

/// An ELF core in memory.
#[derive(Debug)]
pub struct Core<'f> {
    file: &'f [u8],
    /// 32 or 64
    pub class: u32,
    pub machine: u16,
    /// `e_ehsize`; QEMU writes 8
    pub header_bytes: u64,
    pub program_headers_at: u64,
    pub notes: Vec<Note>,
    pub loads: Vec<Load>,
}

/// Program headers that a file of any honest size can have.
const SEGMENTS_MAX: u64 = 16 << 20;

impl<'f> Core<'f> {
    pub fn parse(file: &'f [u8]) -> Result<Core<'f>, BadFile> {
        if slice(file, 0, 4)? != b"\x7fELF" {
            return Err(BadFile { offset: 0, what: "no ELF file" });
        }
        let wide = match number::<1>(file, 4)? {
            1 => false,
            2 => true,
            _ => return Err(BadFile { offset: 4, what: "neither class 32 nor class 64" }),
        };
        if number::<2>(file, 16)? != 4 {
            return Err(BadFile { offset: 16, what: "no core" });
        }
        let (phoff, shoff, header, entry) = if wide {
            (number::<8>(file, 32)?, number::<8>(file, 40)?, 64, 56)
        } else {
            (number::<4>(file, 28)?, number::<4>(file, 32)?, 52, 32)
        };
        let tail = header - 12;
        if number::<2>(file, tail + 2)? != entry {
            return Err(BadFile { offset: tail + 2, what: "program headers of another class" });
        }
        let mut count = number::<2>(file, tail + 4)?;
        if count == 0xffff {
            let info_at = if wide { 44 } else { 28 };
            count = number::<4>(file, shoff.saturating_add(info_at))?;
        }
        if count > SEGMENTS_MAX {
            return Err(BadFile { offset: tail + 4, what: "too many program headers" });
        }
        let machine = number::<2>(file, 18)? as u16;
        let class = if wide { 64 } else { 32 };
        let mut core = Core {
            file,
            class,
            machine,
            header_bytes: number::<2>(file, tail)?,
            program_headers_at: phoff,
            notes: Vec::new(),
            loads: Vec::new(),
        };
        for index in 0..count {
            core.segment(wide, phoff.saturating_add(index * entry))?;
        }
        Ok(core)
    }

    fn segment(&mut self, wide: bool, at: u64) -> Result<(), BadFile> {
        let file = self.file;
        let kind = number::<4>(file, at)?;
        let field = |index: u64| {
            if wide {
                number::<8>(file, at + 8 + 8 * index)
            } else {
                number::<4>(file, at + 4 + 4 * index)
            }
        };
        let load = Load {
            offset: field(0)?,
            va: field(1)?,
            pa: field(2)?,
            file_bytes: field(3)?,
            memory_bytes: field(4)?,
        };
        match kind {
            4 => self.notes = notes(slice(file, load.offset, load.file_bytes)?)?,
            1 => {
                slice(file, load.offset, load.file_bytes)?;
                self.loads.push(load);
            }
            _ => return Err(BadFile { offset: at, what: "segment of another kind" }),
        }
        Ok(())
    }

    /// `len` bytes from where `load` puts guest-physical `pa`.
    pub fn physical(&self, pa: u64, len: u64) -> Option<&'f [u8]> {
        let holds = |load: &&Load| {
            load.pa <= pa && pa.checked_add(len).is_some_and(|end| end - load.pa <= load.file_bytes)
        };
        let load = self.loads.iter().find(holds)?;
        slice(self.file, load.offset + (pa - load.pa), len).ok()
    }

    /// The bytes of a segment.
    pub fn bytes(&self, load: &Load) -> &'f [u8] {
        slice(self.file, load.offset, load.file_bytes).expect("checked when the file was parsed")
    }
}
