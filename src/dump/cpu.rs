//! The registers that a dump holds, as plain values.

/// A segment register. `limit` counts bytes; `flags` is the descriptor's second dword as the CPU
/// holds it: type in bits 8 to 11, S 12, DPL 13 and 14, P 15, limit 16 to 19, AVL 20, L 21, D/B 22,
/// G 23.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
    pub flags: u32,
}

/// One virtual CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    /// r8 to r15
    pub r8_15: [u64; 8],
    pub rip: u64,
    pub rflags: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub ldt: Segment,
    pub tr: Segment,
    /// base and limit only
    pub gdt: Segment,
    /// base and limit only
    pub idt: Segment,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub kernel_gs_base: u64,
}

/// Paging on (CR0).
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// Long mode active (EFER).
const EFER_LMA: u64 = 1 << 10;

/// How a CPU translates addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Paging {
    Off,
    /// Two levels of 4-byte entries; 4 MiB pages if the CPU was told so.
    Bits32 {
        large: bool,
    },
    /// Three levels, the first with four entries.
    Pae,
    Level4,
    Level5,
}

impl Cpu {
    /// Is the CPU in 64-bit or compatibility mode? CPU 0's answer decides the kind of the whole
    /// dump.
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    pub(crate) fn paging(&self) -> Paging {
        if self.cr0 & CR0_PG == 0 {
            Paging::Off
        } else if self.long_mode() {
            if self.cr4 & CR4_LA57 != 0 { Paging::Level5 } else { Paging::Level4 }
        } else if self.cr4 & CR4_PAE != 0 {
            Paging::Pae
        } else {
            Paging::Bits32 { large: self.cr4 & CR4_PSE != 0 }
        }
    }
}
