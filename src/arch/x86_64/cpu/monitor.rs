//! What counts, traces and attests: performance counters, processor trace, last branches, enclave
//! launch.

use crate::vmstate::{Layout, Visitor};

/// Performance counters (MSRs 0x38d, 0x38f, 0x38e, 0x390, 0x309…, 0xc1…, 0x186…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pmu {
    pub fixed_ctr_ctrl: u64,
    pub global_ctrl: u64,
    pub global_status: u64,
    pub global_ovf_ctrl: u64,
    pub fixed_counters: [u64; 3],
    pub gp_counters: [u64; 18],
    pub gp_evtsel: [u64; 18],
}

impl Layout for Pmu {
    const NAME: &'static str = "cpu/msr_architectural_pmu";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_fixed_ctr_ctrl", &mut self.fixed_ctr_ctrl)?;
        v.value("env.msr_global_ctrl", &mut self.global_ctrl)?;
        v.value("env.msr_global_status", &mut self.global_status)?;
        v.value("env.msr_global_ovf_ctrl", &mut self.global_ovf_ctrl)?;
        v.array("env.msr_fixed_counters", &mut self.fixed_counters)?;
        v.array("env.msr_gp_counters", &mut self.gp_counters)?;
        v.array("env.msr_gp_evtsel", &mut self.gp_evtsel)
    }
}

/// Processor trace (MSRs 0x570, 571, 560, 561, 572, 580…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntelPt {
    pub ctrl: u64,
    pub status: u64,
    pub output_base: u64,
    pub output_mask: u64,
    pub cr3_match: u64,
    pub addrs: [u64; 8],
}

impl Layout for IntelPt {
    const NAME: &'static str = "cpu/intel_pt";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_rtit_ctrl", &mut self.ctrl)?;
        v.value("env.msr_rtit_status", &mut self.status)?;
        v.value("env.msr_rtit_output_base", &mut self.output_base)?;
        v.value("env.msr_rtit_output_mask", &mut self.output_mask)?;
        v.value("env.msr_rtit_cr3_match", &mut self.cr3_match)?;
        v.array("env.msr_rtit_addrs", &mut self.addrs)
    }
}

/// One branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lbr {
    pub from: u64,
    pub to: u64,
    pub info: u64,
}

impl Layout for Lbr {
    const NAME: &'static str = "lbr_records_var";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("from", &mut self.from)?;
        v.value("to", &mut self.to)?;
        v.value("info", &mut self.info)
    }
}

/// Last branches (MSRs 0x14ce, 0x14cf, 0x1500…, 0x1600…, 0x1200…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArchLbr {
    pub ctl: u64,
    pub depth: u64,
    pub records: [Lbr; 32],
}

impl Layout for ArchLbr {
    const NAME: &'static str = "cpu/arch_lbr";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_lbr_ctl", &mut self.ctl)?;
        v.value("env.msr_lbr_depth", &mut self.depth)?;
        v.structures("env.lbr_records", &mut self.records)
    }
}

/// MSRs 0x8c to 0x8f.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntelSgx {
    pub key_hash: [u64; 4],
}

impl Layout for IntelSgx {
    const NAME: &'static str = "cpu/intel_sgx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.msr_ia32_sgxlepubkeyhash", &mut self.key_hash)
    }
}
