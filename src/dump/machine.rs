//! Registers for a dump, and the place of the guest's note: from the machine, and from the sections
//! of a migration stream.

use kvm_bindings::{kvm_dtable, kvm_segment};

use super::job::Target;
use super::{Cpu, Segment, VmCoreInfo};
use crate::kvm::state::VcpuState;
use crate::machine::{self, Machine};
use crate::memory::GuestRam;
use crate::vmstate;

/// `MSR_KERNEL_GS_BASE`.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

impl Target for Machine {
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
        let state = self.save_raw()?;
        Ok(state.vcpus.iter().map(Cpu::from).collect())
    }

    fn vmcoreinfo(&self) -> Option<VmCoreInfo> {
        self.vmcoreinfo().map(|said| VmCoreInfo {
            guest_format: said.guest_format,
            size: said.size,
            address: said.paddr,
        })
    }
}

impl VmCoreInfo {
    /// What the guest said before it was migrated; `None` if it said nothing.
    pub fn from_section(state: &vmstate::VmCoreInfoState) -> Option<VmCoreInfo> {
        let said =
            VmCoreInfo { guest_format: state.guest_format, size: state.size, address: state.paddr };
        state.has_vmcoreinfo.then_some(said)
    }
}

impl From<&VcpuState> for Cpu {
    fn from(state: &VcpuState) -> Cpu {
        let (regs, sregs) = (&state.regs, &state.sregs);
        Cpu {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8_15: [regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15],
            rip: regs.rip,
            rflags: regs.rflags,
            cs: segment(&sregs.cs),
            ds: segment(&sregs.ds),
            es: segment(&sregs.es),
            fs: segment(&sregs.fs),
            gs: segment(&sregs.gs),
            ss: segment(&sregs.ss),
            ldt: segment(&sregs.ldt),
            tr: segment(&sregs.tr),
            gdt: table(&sregs.gdt),
            idt: table(&sregs.idt),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            kernel_gs_base: state.msr(KERNEL_GS_BASE).unwrap_or(0),
        }
    }
}

/// KVM keeps the attributes of a segment one by one; a dump has them as the descriptor's second
/// dword.
fn segment(from: &kvm_segment) -> Segment {
    let limit_high = from.limit >> if from.g != 0 { 28 } else { 16 } & 0xf;
    let bits = [
        (u32::from(from.type_ & 0xf), 8),
        (u32::from(from.s & 1), 12),
        (u32::from(from.dpl & 3), 13),
        (u32::from(from.present & 1), 15),
        (limit_high, 16),
        (u32::from(from.avl & 1), 20),
        (u32::from(from.l & 1), 21),
        (u32::from(from.db & 1), 22),
        (u32::from(from.g & 1), 23),
    ];
    let flags = bits.iter().fold(0, |flags, (value, shift)| flags | value << shift);
    Segment { selector: from.selector, base: from.base, limit: from.limit, flags }
}

fn table(from: &kvm_dtable) -> Segment {
    Segment { selector: 0, base: from.base, limit: from.limit.into(), flags: 0 }
}

impl From<&vmstate::CpuState> for Cpu {
    fn from(state: &vmstate::CpuState) -> Cpu {
        let segment = |from: &vmstate::Segment| Segment {
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
    fn attributes_become_the_descriptors_second_dword() {
        let code = kvm_segment {
            limit: 0xffff_ffff,
            selector: 0x10,
            type_: 0xb,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        assert_eq!(segment(&code).flags, 0x00af_9b00);
        let busy = kvm_segment { limit: 0xffff, type_: 0xb, present: 1, ..Default::default() };
        assert_eq!(segment(&busy).flags, 0x8b00);
        let user = kvm_segment {
            limit: 0xf_ffff,
            type_: 3,
            present: 1,
            s: 1,
            dpl: 3,
            db: 1,
            ..Default::default()
        };
        assert_eq!(segment(&user).flags, 0x004f_f300);
    }
}
