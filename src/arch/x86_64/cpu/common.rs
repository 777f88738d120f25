//! What QEMU sends beside a processor's registers, all of it at rest here.

use crate::vmstate::{Layout, Visitor};

/// `cpu_common`: under KVM both are elsewhere (MP state, events) and 0 here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuCommonState {
    pub halted: u32,
    pub interrupt_request: u32,
    pub exception_index: Option<i32>,
    pub crash_occurred: Option<bool>,
}

impl Layout for CpuCommonState {
    const NAME: &'static str = "cpu_common";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("halted", &mut self.halted)?;
        v.value("interrupt_request", &mut self.interrupt_request)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of(
            "cpu_common/exception_index",
            "exception_index",
            &mut self.exception_index,
        )?;
        v.subsection_of("cpu_common/crash_occurred", "crash_occurred", &mut self.crash_occurred)
    }
}

/// `kvm-tpr-opt`: patching of TPR accesses in 32-bit guests. All zero here; kept so that a stream
/// passes through whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TprOptState {
    pub rom: TprRom,
    pub state: u32,
    pub real_tpr_addr: u32,
    pub rom_state_vaddr: u32,
    pub vapic_paddr: u32,
    pub rom_state_paddr: u32,
}

impl Layout for TprOptState {
    const NAME: &'static str = "kvm-tpr-opt";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("rom_state", &mut self.rom)?;
        v.value("state", &mut self.state)?;
        v.value("real_tpr_addr", &mut self.real_tpr_addr)?;
        v.value("rom_state_vaddr", &mut self.rom_state_vaddr)?;
        v.value("vapic_paddr", &mut self.vapic_paddr)?;
        v.value("rom_state_paddr", &mut self.rom_state_paddr)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TprRom {
    pub vaddr: u32,
    pub fixup_start: u32,
    pub fixup_end: u32,
    pub vapic_vaddr: u32,
    pub vapic_size: u32,
    pub vcpu_shift: u32,
    pub real_tpr_addr: u32,
    pub up: TprHandlers,
    pub mp: TprHandlers,
}

impl Layout for TprRom {
    const NAME: &'static str = "kvmvapic-guest-rom";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.unused("unused", 8)?;
        v.value("vaddr", &mut self.vaddr)?;
        v.value("fixup_start", &mut self.fixup_start)?;
        v.value("fixup_end", &mut self.fixup_end)?;
        v.value("vapic_vaddr", &mut self.vapic_vaddr)?;
        v.value("vapic_size", &mut self.vapic_size)?;
        v.value("vcpu_shift", &mut self.vcpu_shift)?;
        v.value("real_tpr_addr", &mut self.real_tpr_addr)?;
        v.structure("up", &mut self.up)?;
        v.structure("mp", &mut self.mp)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TprHandlers {
    pub set_tpr: u32,
    pub set_tpr_eax: u32,
    pub get_tpr: [u32; 8],
    pub get_tpr_stack: u32,
}

impl Layout for TprHandlers {
    const NAME: &'static str = "kvmvapic-handlers";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("set_tpr", &mut self.set_tpr)?;
        v.value("set_tpr_eax", &mut self.set_tpr_eax)?;
        v.array("get_tpr", &mut self.get_tpr)?;
        v.value("get_tpr_stack", &mut self.get_tpr_stack)
    }
}
