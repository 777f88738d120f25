//! Registers for a dump, and the place of the guest's note: from the machine, and from the sections
//! of a migration stream.

use super::cpu::{Cpu, Segment};
use super::job::Dumpable;
use super::vmcoreinfo::VmCoreInfo;
use crate::arch::x86_64::cpu::{self, CpuState};
use crate::arch::x86_64::registers;
use crate::devices::processors::Processors;
use crate::devices::vmcoreinfo as devices;
use crate::kvm::state::VcpuState;
use crate::machine::{self, Machine};
use crate::memory::GuestRam;

/// `MSR_KERNEL_GS_BASE`.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

impl Dumpable for Machine {
    fn runs(&self) -> bool {
        self.run_state().is_running()
    }

    fn pause(&self) -> Result<bool, machine::Error> {
        self.freeze()
    }

    fn resume(&self, ran: bool) {
        if let Err(error) = self.thaw(ran) {
            tracing::error!("the guest stays stopped after its dump: {error}");
        }
    }

    fn ram(&self) -> GuestRam {
        self.ram().clone()
    }

    fn cpus(&self) -> Result<Vec<Cpu>, machine::Error> {
        let processors = self.device::<Processors>().expect("every machine has processors");
        Ok(processors.states()?.iter().map(Cpu::from).collect())
    }

    fn vmcoreinfo(&self) -> Option<VmCoreInfo> {
        self.device::<devices::VmCoreInfo>().and_then(|device| VmCoreInfo::said(&device.state()))
    }
}

impl VmCoreInfo {
    /// What the guest said, here or before it was migrated; `None` if it said nothing.
    pub(crate) fn said(state: &devices::VmCoreInfoState) -> Option<VmCoreInfo> {
        let said =
            VmCoreInfo { guest_format: state.guest_format, size: state.size, address: state.paddr };
        state.present.then_some(said)
    }
}

impl From<&VcpuState> for Cpu {
    fn from(state: &VcpuState) -> Cpu {
        let mut cpu = Cpu::from(&registers::general(state));
        cpu.kernel_gs_base = state.msr(KERNEL_GS_BASE).unwrap_or(0);
        let segments =
            [&mut cpu.cs, &mut cpu.ds, &mut cpu.es, &mut cpu.fs, &mut cpu.gs, &mut cpu.ss];
        for segment in segments.into_iter().chain([&mut cpu.ldt, &mut cpu.tr]) {
            segment.flags |= limit_bits(segment);
        }
        cpu
    }
}

/// The upper bits of the limit as a descriptor's second dword has them, which a stream leaves out.
fn limit_bits(segment: &Segment) -> u32 {
    const GRANULARITY: u32 = 1 << 23;
    let shift = if segment.flags & GRANULARITY != 0 { 28 } else { 16 };
    (segment.limit >> shift & 0xf) << 16
}

impl From<&CpuState> for Cpu {
    fn from(state: &CpuState) -> Cpu {
        let segment = |from: &cpu::Segment| Segment {
            selector: from.selector as u16,
            base: from.base,
            limit: from.limit,
            flags: from.flags,
        };
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8_15 @ ..] = state.regs;
        let [es, cs, ss, ds, fs, gs] = state.segs.each_ref().map(segment);
        Cpu {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8_15,
            rip: state.rip,
            rflags: state.rflags,
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            ldt: segment(&state.ldt),
            tr: segment(&state.tr),
            gdt: segment(&state.gdt),
            idt: segment(&state.idt),
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            kernel_gs_base: state.kernel_gs_base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_completed_by_granularity() {
        let of = |flags, limit| Segment { flags, limit, ..Segment::default() };
        assert_eq!(limit_bits(&of(0x00a0_9b00, 0xffff_ffff)), 0xf_0000);
        assert_eq!(limit_bits(&of(0x8b00, 0xffff)), 0);
        assert_eq!(limit_bits(&of(0x0040_f300, 0xf_ffff)), 0xf_0000);
    }
}
