//! Registers from the notes of a dump.

use super::bytes::{BadFile, Note, number};
use super::elf::Core;
use crate::dump::cpu::{Cpu, Segment};

/// The CPUs of an ELF core, from its QEMU notes.
///
/// The notes do not hold EFER: long mode shows in the core's machine, for all CPUs alike.
pub fn cpus(file: &[u8]) -> Result<Vec<Cpu>, BadFile> {
    let core = Core::parse(file)?;
    let long_mode = core.machine == 62;
    core.notes.iter().filter(|note| note.name == "QEMU").map(|note| cpu(note, long_mode)).collect()
}

/// The registers in one QEMU note.
pub fn cpu(note: &Note, long_mode: bool) -> Result<Cpu, BadFile> {
    let quad = |at: u64| number::<8>(&note.desc, at);
    let segment = |index: u64| -> Result<Segment, BadFile> {
        let at = 152 + 24 * index;
        let word = |at: u64| number::<4>(&note.desc, at);
        Ok(Segment {
            selector: word(at)? as u16,
            limit: word(at + 4)? as u32,
            flags: word(at + 8)? as u32,
            base: quad(at + 16)?,
        })
    };
    let general = |index: u64| quad(8 + 8 * index);
    let mut r8_15 = [0; 8];
    for (index, register) in r8_15.iter_mut().enumerate() {
        *register = general(8 + index as u64)?;
    }
    Ok(Cpu {
        rax: general(0)?,
        rbx: general(1)?,
        rcx: general(2)?,
        rdx: general(3)?,
        rsi: general(4)?,
        rdi: general(5)?,
        rsp: general(6)?,
        rbp: general(7)?,
        r8_15,
        rip: general(16)?,
        rflags: general(17)?,
        cs: segment(0)?,
        ds: segment(1)?,
        es: segment(2)?,
        fs: segment(3)?,
        gs: segment(4)?,
        ss: segment(5)?,
        ldt: segment(6)?,
        tr: segment(7)?,
        gdt: segment(8)?,
        idt: segment(9)?,
        cr0: quad(392)?,
        cr2: quad(408)?,
        cr3: quad(416)?,
        cr4: quad(424)?,
        efer: if long_mode { 0x500 } else { 0 },
        kernel_gs_base: quad(432)?,
    })
}
