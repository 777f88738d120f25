//! Registers of the first vCPU at the kernel's entry.

use super::places::{GDT, PAGE_TABLES};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Where and how the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 32-bit protected mode without paging.
    Pvh { entry: u32, start_info: u32 },
    /// Long mode, everything mapped one to one.
    Linux64 { entry: u64, zero_page: u64 },
}

/// Selectors of Linux' boot protocol; PVH does not care.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

const TABLE_BYTES: usize = 4096;
/// Page directories, 1 GiB each.
const DIRECTORIES: usize = 4;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 0x80;

impl Entry {
    pub(crate) fn regs(self) -> kvm_regs {
        let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
        match self {
            Entry::Pvh { entry, start_info } => {
                (regs.rip, regs.rbx) = (entry.into(), start_info.into())
            }
            Entry::Linux64 { entry, zero_page } => (regs.rip, regs.rsi) = (entry, zero_page),
        }
        regs
    }

    /// Changes the registers of a vCPU after reset into what the protocol wants.
    pub(crate) fn set_sregs(self, sregs: &mut kvm_sregs) {
        let long = matches!(self, Entry::Linux64 { .. });
        sregs.cs = segment(CODE, 0xb, long);
        let data = segment(DATA, 0x3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = task();
        sregs.cr0 = CR0_PE | CR0_ET;
        if long {
            sregs.gdt =
                kvm_dtable { base: GDT, limit: gdt().len() as u16 - 1, ..Default::default() };
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

/// Flat, 4 GiB.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        selector,
        base: 0,
        limit: u32::MAX,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn task() -> kvm_segment {
    kvm_segment { selector: TASK, limit: 0x67, type_: 0xb, present: 1, ..Default::default() }
}

/// Null, null, 64-bit code, data.
pub(crate) fn gdt() -> Vec<u8> {
    [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
        .iter()
        .flat_map(|d| d.to_le_bytes())
        .collect()
}

/// Page tables at `base` that map the first 4 GiB one to one, in pages of 2 MiB.
pub(crate) fn identity_tables(base: u64) -> Vec<u8> {
    let table = |n: usize| base + (n * TABLE_BYTES) as u64;
    let mut entries = vec![0u64; (2 + DIRECTORIES) * TABLE_BYTES / 8];
    let (top, rest) = entries.split_at_mut(TABLE_BYTES / 8);
    let (pointers, directories) = rest.split_at_mut(TABLE_BYTES / 8);
    top[0] = table(1) | PRESENT_WRITABLE;
    for (i, pointer) in pointers.iter_mut().take(DIRECTORIES).enumerate() {
        *pointer = table(2 + i) | PRESENT_WRITABLE;
    }
    for (i, page) in directories.iter_mut().enumerate() {
        *page = (i as u64) << 21 | PRESENT_WRITABLE | LARGE;
    }
    entries.iter().flat_map(|e| e.to_le_bytes()).collect()
}
