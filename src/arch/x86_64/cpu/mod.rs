//! `cpu`: the registers of a vCPU.

mod common;
mod enlightenment;
mod monitor;
mod nested;
mod state;
mod subsections;

pub(crate) use common::*;
pub(crate) use enlightenment::*;
pub(crate) use monitor::*;
pub(crate) use nested::*;
pub(crate) use state::*;
pub(crate) use subsections::CpuMore;

use crate::vmstate::{Layout, Visitor};

/// A segment register; `flags` is the second dword of a descriptor: type in bits 8 to 11, S 12, DPL
/// 13 and 14, P 15, AVL 20, L 21, D/B 22, G 23.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    pub selector: u32,
    pub base: u64,
    /// Bytes, whatever the granularity.
    pub limit: u32,
    pub flags: u32,
}

impl Layout for Segment {
    const NAME: &'static str = "segment";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("selector", &mut self.selector)?;
        v.value("base", &mut self.base)?;
        v.value("limit", &mut self.limit)?;
        v.value("flags", &mut self.flags)
    }
}

/// An x87 register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct X87 {
    pub parts: X87Parts,
}

impl Layout for X87 {
    const NAME: &'static str = "fpreg";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.temporary("tmp", &mut self.parts)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct X87Parts {
    pub mantissa: u64,
    /// Sign and exponent.
    pub exponent: u16,
}

impl Layout for X87Parts {
    const NAME: &'static str = "fpreg_tmp";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("tmp_mant", &mut self.mantissa)?;
        v.value("tmp_exp", &mut self.exponent)
    }
}

macro_rules! vector_parts {
    ($($name:ident($count:literal) = $vmsd:literal, $($index:literal $field:literal),*;)*) => {$(
        #[doc = concat!("Part of a vector register (`", $vmsd, "`): ", $count, " quadwords, low first.")]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name(pub [u64; $count]);

        impl Layout for $name {
            const NAME: &'static str = $vmsd;
            const VERSION: u32 = 1;

            fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
                $(v.value($field, &mut self.0[$index])?;)*
                Ok(())
            }
        }
    )*};
}

vector_parts! {
    Xmm(2) = "xmm_reg", 0 "_q_ZMMReg[0]", 1 "_q_ZMMReg[1]";
    YmmHigh(2) = "ymmh_reg", 0 "_q_ZMMReg[2]", 1 "_q_ZMMReg[3]";
    ZmmHigh(4) = "zmmh_reg",
        0 "_q_ZMMReg[4]", 1 "_q_ZMMReg[5]", 2 "_q_ZMMReg[6]", 3 "_q_ZMMReg[7]";
    ZmmUpper(8) = "hi16_zmm_reg",
        0 "_q_ZMMReg[0]", 1 "_q_ZMMReg[1]", 2 "_q_ZMMReg[2]", 3 "_q_ZMMReg[3]",
        4 "_q_ZMMReg[4]", 5 "_q_ZMMReg[5]", 6 "_q_ZMMReg[6]", 7 "_q_ZMMReg[7]";
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mtrr {
    pub base: u64,
    pub mask: u64,
}

impl Layout for Mtrr {
    const NAME: &'static str = "mtrr_var";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("base", &mut self.base)?;
        v.value("mask", &mut self.mask)
    }
}

/// Everything a vCPU holds except its local APIC.
///
/// Not in the stream, so lost by design: an exception's error code, the interrupt shadow.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15.
    pub regs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// QEMU's own digest of mode bits; can be worked out again.
    pub hflags: u32,
    pub fpuc: u16,
    /// Status word, top of stack in bits 11 to 13.
    pub fpus: u16,
    /// Bit i: register i is not empty.
    pub fptag: u16,
    /// 0; other values are of formats long gone.
    pub fpregs_format: u16,
    pub fpregs: [X87; 8],
    /// ES CS SS DS FS GS.
    pub segs: [Segment; 6],
    pub ldt: Segment,
    pub tr: Segment,
    pub gdt: Segment,
    pub idt: Segment,
    pub sysenter_cs: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// DR4 and DR5 mean nothing.
    pub dr: [u64; 8],
    pub a20_mask: i32,
    pub mxcsr: u32,
    pub xmm: [Xmm; 16],
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub smbase: u32,
    pub pat: u64,
    /// Bit 0 GIF, bit 2 NMI masked, bit 4 SMM inside an NMI.
    pub hflags2: u32,
    pub vm_hsave: u64,
    pub vm_vmcb: u64,
    pub tsc_offset: u64,
    pub intercept: u64,
    pub intercept_cr_read: u16,
    pub intercept_cr_write: u16,
    pub intercept_dr_read: u16,
    pub intercept_dr_write: u16,
    pub intercept_exceptions: u32,
    pub v_tpr: u8,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_deftype: u64,
    pub mtrr_var: [Mtrr; 8],
    /// -1: none.
    pub interrupt_injected: i32,
    pub mp_state: u32,
    pub tsc: u64,
    /// -1: none.
    pub exception_nr: i32,
    pub soft_interrupt: u8,
    pub nmi_injected: u8,
    pub nmi_pending: u8,
    pub has_error_code: u8,
    pub sipi_vector: u32,
    pub mcg_cap: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    /// Ten banks of control, status, address, misc.
    pub mce_banks: [u64; 40],
    pub tsc_aux: u64,
    pub system_time_msr: u64,
    pub wall_clock_msr: u64,
    pub xcr0: u64,
    pub xstate_bv: u64,
    pub ymm_high: [YmmHigh; 16],
    pub more: CpuMore,
}

impl Default for CpuState {
    fn default() -> Self {
        Self {
            regs: [0; 16],
            rip: 0,
            rflags: 0,
            hflags: 0,
            fpuc: 0,
            fpus: 0,
            fptag: 0,
            fpregs_format: 0,
            fpregs: Default::default(),
            segs: Default::default(),
            ldt: Segment::default(),
            tr: Segment::default(),
            gdt: Segment::default(),
            idt: Segment::default(),
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr: [0; 8],
            a20_mask: -1,
            mxcsr: 0,
            xmm: Default::default(),
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            smbase: 0,
            pat: 0,
            hflags2: 0,
            vm_hsave: 0,
            vm_vmcb: 0,
            tsc_offset: 0,
            intercept: 0,
            intercept_cr_read: 0,
            intercept_cr_write: 0,
            intercept_dr_read: 0,
            intercept_dr_write: 0,
            intercept_exceptions: 0,
            v_tpr: 0,
            mtrr_fixed: [0; 11],
            mtrr_deftype: 0,
            mtrr_var: Default::default(),
            interrupt_injected: -1,
            mp_state: 0,
            tsc: 0,
            exception_nr: -1,
            soft_interrupt: 0,
            nmi_injected: 0,
            nmi_pending: 0,
            has_error_code: 0,
            sipi_vector: 0,
            mcg_cap: 0,
            mcg_status: 0,
            mcg_ctl: 0,
            mce_banks: [0; 40],
            tsc_aux: 0,
            system_time_msr: 0,
            wall_clock_msr: 0,
            xcr0: 0,
            xstate_bv: 0,
            ymm_high: Default::default(),
            more: CpuMore::default(),
        }
    }
}

impl Layout for CpuState {
    const NAME: &'static str = "cpu";
    const VERSION: u32 = 12;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        self.integer_and_float_fields(v)?;
        self.system_fields(v)?;
        self.virtualization_fields(v)?;
        self.pending_and_late_fields(v)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        self.more.visit(v)
    }
}

impl CpuState {
    fn integer_and_float_fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.regs", &mut self.regs)?;
        v.value("env.eip", &mut self.rip)?;
        v.value("env.eflags", &mut self.rflags)?;
        v.value("env.hflags", &mut self.hflags)?;
        v.value("env.fpuc", &mut self.fpuc)?;
        v.value("env.fpus_vmstate", &mut self.fpus)?;
        v.value("env.fptag_vmstate", &mut self.fptag)?;
        v.value("env.fpregs_format_vmstate", &mut self.fpregs_format)?;
        v.check("env.fpregs_format_vmstate", self.fpregs_format.into(), 0)?;
        v.structures("env.fpregs", &mut self.fpregs)
    }

    fn system_fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structures("env.segs", &mut self.segs)?;
        v.structure("env.ldt", &mut self.ldt)?;
        v.structure("env.tr", &mut self.tr)?;
        v.structure("env.gdt", &mut self.gdt)?;
        v.structure("env.idt", &mut self.idt)?;
        v.value("env.sysenter_cs", &mut self.sysenter_cs)?;
        v.value("env.sysenter_esp", &mut self.sysenter_esp)?;
        v.value("env.sysenter_eip", &mut self.sysenter_eip)?;
        v.value("env.cr[0]", &mut self.cr0)?;
        v.value("env.cr[2]", &mut self.cr2)?;
        v.value("env.cr[3]", &mut self.cr3)?;
        v.value("env.cr[4]", &mut self.cr4)?;
        v.array("env.dr", &mut self.dr)?;
        v.value("env.a20_mask", &mut self.a20_mask)?;
        v.value("env.mxcsr", &mut self.mxcsr)?;
        v.structures("env.xmm_regs[0]", &mut self.xmm)?;
        v.value("env.efer", &mut self.efer)?;
        v.value("env.star", &mut self.star)?;
        v.value("env.lstar", &mut self.lstar)?;
        v.value("env.cstar", &mut self.cstar)?;
        v.value("env.fmask", &mut self.fmask)?;
        v.value("env.kernelgsbase", &mut self.kernel_gs_base)?;
        v.value("env.smbase", &mut self.smbase)?;
        v.value("env.pat", &mut self.pat)?;
        v.value("env.hflags2", &mut self.hflags2)
    }

    fn virtualization_fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.vm_hsave", &mut self.vm_hsave)?;
        v.value("env.vm_vmcb", &mut self.vm_vmcb)?;
        v.value("env.tsc_offset", &mut self.tsc_offset)?;
        v.value("env.intercept", &mut self.intercept)?;
        v.value("env.intercept_cr_read", &mut self.intercept_cr_read)?;
        v.value("env.intercept_cr_write", &mut self.intercept_cr_write)?;
        v.value("env.intercept_dr_read", &mut self.intercept_dr_read)?;
        v.value("env.intercept_dr_write", &mut self.intercept_dr_write)?;
        v.value("env.intercept_exceptions", &mut self.intercept_exceptions)?;
        v.value("env.v_tpr", &mut self.v_tpr)?;
        v.array("env.mtrr_fixed", &mut self.mtrr_fixed)?;
        v.value("env.mtrr_deftype", &mut self.mtrr_deftype)?;
        v.structures("env.mtrr_var", &mut self.mtrr_var)
    }

    fn pending_and_late_fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.interrupt_injected", &mut self.interrupt_injected)?;
        v.value("env.mp_state", &mut self.mp_state)?;
        v.value("env.tsc", &mut self.tsc)?;
        v.value("env.exception_nr", &mut self.exception_nr)?;
        v.value("env.soft_interrupt", &mut self.soft_interrupt)?;
        v.value("env.nmi_injected", &mut self.nmi_injected)?;
        v.value("env.nmi_pending", &mut self.nmi_pending)?;
        v.value("env.has_error_code", &mut self.has_error_code)?;
        v.value("env.sipi_vector", &mut self.sipi_vector)?;
        v.value("env.mcg_cap", &mut self.mcg_cap)?;
        v.value("env.mcg_status", &mut self.mcg_status)?;
        v.value("env.mcg_ctl", &mut self.mcg_ctl)?;
        v.array("env.mce_banks", &mut self.mce_banks)?;
        v.value("env.tsc_aux", &mut self.tsc_aux)?;
        v.value("env.system_time_msr", &mut self.system_time_msr)?;
        v.value("env.wall_clock_msr", &mut self.wall_clock_msr)?;
        v.value("env.xcr0", &mut self.xcr0)?;
        v.value("env.xstate_bv", &mut self.xstate_bv)?;
        v.structures("env.xmm_regs[1]", &mut self.ymm_high)
    }
}
