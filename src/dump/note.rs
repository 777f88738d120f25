//! The notes of a dump.
//!
//! All `CORE` notes in CPU order, then all `QEMU` notes in the same order, then at most one note of
//! the guest's own. Each is a header of three u32 (name bytes, descriptor bytes, type), the name
//! and the descriptor, both padded to four bytes. CPU 0's mode decides the shape of every `CORE`
//! note.

use super::cpu::{Cpu, Segment};

/// `NT_PRSTATUS` of `elf.h`.
const PRSTATUS: u32 = 1;
/// Bytes of the two kernel structures `elf_prstatus`, 64 and 32 bits.
const PRSTATUS_64_BYTES: usize = 336;
const PRSTATUS_32_BYTES: usize = 144;
/// QEMU's `QEMUCPUState`, version 1 with the kernel's GS base at its end.
const QEMU_BYTES: usize = 440;
const QEMU_VERSION: u32 = 1;

/// A note as the guest left it in memory, header and padding included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestNote {
    pub bytes: Vec<u8>,
    /// Where in `bytes` the descriptor stands.
    pub desc: std::ops::Range<usize>,
}

/// All notes, ready to be written.
pub(super) struct Notes {
    pub bytes: Vec<u8>,
    /// Where in `bytes` the text of VMCOREINFO stands.
    pub vmcoreinfo: Option<std::ops::Range<usize>>,
}

impl Notes {
    pub(super) fn new(cpus: &[Cpu], guest: Option<GuestNote>) -> Notes {
        let mut bytes = Vec::new();
        let long_mode = cpus.first().is_some_and(Cpu::long_mode);
        for (index, cpu) in cpus.iter().enumerate() {
            let pid = index as u32 + 1;
            let status = if long_mode { prstatus_64(cpu, pid) } else { prstatus_32(cpu, pid) };
            append(&mut bytes, b"CORE\0", PRSTATUS, &status);
        }
        for cpu in cpus {
            append(&mut bytes, b"QEMU\0", 0, &qemu(cpu));
        }
        let vmcoreinfo = guest.map(|note| {
            let at = bytes.len();
            bytes.extend_from_slice(&note.bytes);
            note.desc.start + at..note.desc.end + at
        });
        Notes { bytes, vmcoreinfo }
    }

    /// The guest kernel's own account of itself, `KEY=VALUE` lines.
    pub(super) fn vmcoreinfo_text(&self) -> Option<&[u8]> {
        self.vmcoreinfo.clone().map(|at| &self.bytes[at])
    }
}

fn append(notes: &mut Vec<u8>, name: &[u8], kind: u32, desc: &[u8]) {
    for word in [name.len() as u32, desc.len() as u32, kind] {
        notes.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, desc] {
        notes.extend_from_slice(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// The kernel's `struct elf_prstatus`: `pr_pid` at 32, `pr_reg` (`user_regs_struct`) at 112.
fn prstatus_64(cpu: &Cpu, pid: u32) -> Vec<u8> {
    let [r8, r9, r10, r11, r12, r13, r14, r15] = cpu.r8_15;
    let selector = |segment: &Segment| u64::from(segment.selector);
    let orig_rax = 0;
    let registers = [
        r15,
        r14,
        r13,
        r12,
        cpu.rbp,
        cpu.rbx,
        r11,
        r10,
        r9,
        r8,
        cpu.rax,
        cpu.rcx,
        cpu.rdx,
        cpu.rsi,
        cpu.rdi,
        orig_rax,
        cpu.rip,
        selector(&cpu.cs),
        cpu.rflags,
        cpu.rsp,
        selector(&cpu.ss),
        cpu.fs.base,
        cpu.gs.base,
        selector(&cpu.ds),
        selector(&cpu.es),
        selector(&cpu.fs),
        selector(&cpu.gs),
    ];
    let mut desc = vec![0; 112];
    desc[32..36].copy_from_slice(&pid.to_le_bytes());
    desc.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
    desc.resize(PRSTATUS_64_BYTES, 0);
    desc
}

/// The same for i386: `pr_pid` at 24, `pr_reg` at 72.
fn prstatus_32(cpu: &Cpu, pid: u32) -> Vec<u8> {
    let selector = |segment: &Segment| u32::from(segment.selector);
    let orig_eax = 0;
    let registers = [
        cpu.rbx as u32,
        cpu.rcx as u32,
        cpu.rdx as u32,
        cpu.rsi as u32,
        cpu.rdi as u32,
        cpu.rbp as u32,
        cpu.rax as u32,
        selector(&cpu.ds),
        selector(&cpu.es),
        selector(&cpu.fs),
        selector(&cpu.gs),
        orig_eax,
        cpu.rip as u32,
        selector(&cpu.cs),
        cpu.rflags as u32,
        cpu.rsp as u32,
        selector(&cpu.ss),
    ];
    let mut desc = vec![0; 72];
    desc[24..28].copy_from_slice(&pid.to_le_bytes());
    desc.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
    desc.resize(PRSTATUS_32_BYTES, 0);
    desc
}

/// QEMU's own note: what a debugger needs beyond the general registers.
fn qemu(cpu: &Cpu) -> Vec<u8> {
    let mut desc = Vec::with_capacity(QEMU_BYTES);
    for word in [QEMU_VERSION, QEMU_BYTES as u32] {
        desc.extend(word.to_le_bytes());
    }
    let general = [cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx, cpu.rsi, cpu.rdi, cpu.rsp, cpu.rbp];
    for register in general.iter().chain(&cpu.r8_15).chain(&[cpu.rip, cpu.rflags]) {
        desc.extend(register.to_le_bytes());
    }
    let segments =
        [cpu.cs, cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss, cpu.ldt, cpu.tr, cpu.gdt, cpu.idt];
    for segment in segments {
        for word in [u32::from(segment.selector), segment.limit, segment.flags, 0] {
            desc.extend(word.to_le_bytes());
        }
        desc.extend(segment.base.to_le_bytes());
    }
    let cr1 = 0;
    for register in [cpu.cr0, cr1, cpu.cr2, cpu.cr3, cpu.cr4, cpu.kernel_gs_base] {
        desc.extend(register.to_le_bytes());
    }
    debug_assert_eq!(desc.len(), QEMU_BYTES);
    desc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_have_the_sizes_that_readers_expect() {
        let long = Cpu { efer: 1 << 10, ..Cpu::default() };
        assert_eq!(Notes::new(&[long.clone(), Cpu::default()], None).bytes.len(), 2 * (356 + 460));
        assert_eq!(Notes::new(&[Cpu::default(), long], None).bytes.len(), 2 * (164 + 460));
    }

    #[test]
    fn the_guests_note_is_found_behind_ours() {
        let note = GuestNote { bytes: b"headerTEXT..".to_vec(), desc: 6..10 };
        let notes = Notes::new(&[Cpu::default()], Some(note));
        assert_eq!(notes.vmcoreinfo_text(), Some(&b"TEXT"[..]));
    }
}
