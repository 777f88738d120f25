//! Registers that only some processors or guests have, and what is on its way into a vCPU.

use super::{ZmmHigh, ZmmUpper};
use crate::vmstate::{Layout, Visitor};

/// An exception that is pending while a nested guest runs, so that its host may intercept it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExceptionInfo {
    pub pending: u8,
    pub injected: u8,
    pub has_payload: u8,
    pub payload: u64,
}

impl Layout for ExceptionInfo {
    const NAME: &'static str = "cpu/exception_info";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.exception_pending", &mut self.pending)?;
        v.value("env.exception_injected", &mut self.injected)?;
        v.value("env.exception_has_payload", &mut self.has_payload)?;
        v.value("env.exception_payload", &mut self.payload)
    }
}

/// Last x87 opcode, instruction pointer and data pointer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FpopIpDp {
    pub fpop: u16,
    pub fpip: u64,
    pub fpdp: u64,
}

impl Layout for FpopIpDp {
    const NAME: &'static str = "cpu/fpop_ip_dp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.fpop", &mut self.fpop)?;
        v.value("env.fpip", &mut self.fpip)?;
        v.value("env.fpdp", &mut self.fpdp)
    }
}

/// A bound register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    pub lower: u64,
    pub upper: u64,
}

impl Layout for Bound {
    const NAME: &'static str = "bnd_regs";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("lb", &mut self.lower)?;
        v.value("ub", &mut self.upper)
    }
}

/// Memory protection extensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mpx {
    pub bounds: [Bound; 4],
    pub cfgu: u64,
    pub sts: u64,
    pub bndcfgs: u64,
}

impl Layout for Mpx {
    const NAME: &'static str = "cpu/mpx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structures("env.bnd_regs", &mut self.bounds)?;
        v.value("env.bndcs_regs.cfgu", &mut self.cfgu)?;
        v.value("env.bndcs_regs.sts", &mut self.sts)?;
        v.value("env.msr_bndcfgs", &mut self.bndcfgs)
    }
}

/// Mask registers, bits 256 to 511 of the lower sixteen registers, and the upper sixteen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Avx512 {
    pub opmask: [u64; 8],
    pub zmm_high: [ZmmHigh; 16],
    pub zmm_upper: [ZmmUpper; 16],
}

impl Layout for Avx512 {
    const NAME: &'static str = "cpu/avx512";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.opmask_regs", &mut self.opmask)?;
        v.structures("env.xmm_regs[0]", &mut self.zmm_high)?;
        v.structures("env.xmm_regs[1]", &mut self.zmm_upper)
    }
}

/// Page-directory pointers of PAE paging.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pdptrs {
    pub pdptrs: [u64; 4],
}

impl Layout for Pdptrs {
    const NAME: &'static str = "cpu/pdptrs";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.pdptrs", &mut self.pdptrs)
    }
}

/// MSRs 0x1c4 and 0x1c5.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Xfd {
    pub xfd: u64,
    pub err: u64,
}

impl Layout for Xfd {
    const NAME: &'static str = "cpu/msr_xfd";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_xfd", &mut self.xfd)?;
        v.value("env.msr_xfd_err", &mut self.err)
    }
}

/// Flexible return and event delivery (MSRs 0x1cc to 0x1d4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fred {
    pub rsp0: u64,
    pub rsp1: u64,
    pub rsp2: u64,
    pub rsp3: u64,
    pub stklvls: u64,
    pub ssp1: u64,
    pub ssp2: u64,
    pub ssp3: u64,
    pub config: u64,
}

impl Layout for Fred {
    const NAME: &'static str = "cpu/fred";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.fred_rsp0", &mut self.rsp0)?;
        v.value("env.fred_rsp1", &mut self.rsp1)?;
        v.value("env.fred_rsp2", &mut self.rsp2)?;
        v.value("env.fred_rsp3", &mut self.rsp3)?;
        v.value("env.fred_stklvls", &mut self.stklvls)?;
        v.value("env.fred_ssp1", &mut self.ssp1)?;
        v.value("env.fred_ssp2", &mut self.ssp2)?;
        v.value("env.fred_ssp3", &mut self.ssp3)?;
        v.value("env.fred_config", &mut self.config)
    }
}

/// AMX tiles; `data` has 8192 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amx {
    pub config: [u8; 64],
    pub data: Box<[u8; 8192]>,
}

impl Default for Amx {
    fn default() -> Self {
        Self { config: [0; 64], data: Box::new([0; 8192]) }
    }
}

impl Layout for Amx {
    const NAME: &'static str = "cpu/intel_amx_xtile";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.xtilecfg", &mut self.config)?;
        v.array("env.xtiledata", &mut self.data)
    }
}
