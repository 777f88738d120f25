//! The small sections of the platform.

use super::{Layout, Visitor};

/// `timer`: the clocks. `cpu_clock_offset` is the virtual clock at the stop, ns: the origin of
/// every timer and every load time in the other sections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimerState {
    pub cpu_ticks_offset: i64,
    pub cpu_clock_offset: i64,
}

impl Layout for TimerState {
    const NAME: &'static str = "timer";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("cpu_ticks_offset", &mut self.cpu_ticks_offset)?;
        v.unused("unused", 8)?;
        v.value("cpu_clock_offset", &mut self.cpu_clock_offset)
    }
}

/// `fw_cfg`: which item the guest reads, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FwCfgState {
    pub cur_entry: u16,
    pub cur_offset: u32,
    pub dma: Option<FwCfgDma>,
    /// Sizes of the ACPI tables, with `acpi=on`.
    pub acpi: Option<FwCfgAcpi>,
}

impl Layout for FwCfgState {
    const NAME: &'static str = "fw_cfg";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("cur_entry", &mut self.cur_entry)?;
        v.value("cur_offset[1]", &mut self.cur_offset)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.dma)?;
        v.subsection(&mut self.acpi)
    }
}

/// The only subsection whose version is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FwCfgDma {
    pub dma_addr: u64,
}

impl Layout for FwCfgDma {
    const NAME: &'static str = "fw_cfg/dma";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("dma_addr", &mut self.dma_addr)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FwCfgAcpi {
    pub table_bytes: u64,
    pub linker_bytes: u64,
    pub rsdp_bytes: u64,
}

impl Layout for FwCfgAcpi {
    const NAME: &'static str = "fw_cfg/acpi_mr";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("table_mr_size", &mut self.table_bytes)?;
        v.value("linker_mr_size", &mut self.linker_bytes)?;
        v.value("rsdp_mr_size", &mut self.rsdp_bytes)
    }
}

/// `cpu_common`: under KVM both are elsewhere (MP state, events) and 0 here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuCommonState {
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
pub struct TprOptState {
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
pub struct TprRom {
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
pub struct TprHandlers {
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

/// `kvmclock`: the guest's paravirtual clock, ns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvmClockState {
    pub clock_ns: u64,
    /// False or absent: QEMU works the time out again from the guest's own page.
    pub is_reliable: Option<bool>,
}

impl Layout for KvmClockState {
    const NAME: &'static str = "kvmclock";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("clock", &mut self.clock_ns)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of("kvmclock/clock_is_reliable", "clock_is_reliable", &mut self.is_reliable)
    }
}

/// `acpi-ged`: the generic event device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedState {
    pub events: GedEvents,
    pub memory_hotplug: Option<GedMemoryHotplug>,
    pub cpu_hotplug: Option<GedCpuHotplug>,
}

impl Layout for GedState {
    const NAME: &'static str = "acpi-ged";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("ged_state", &mut self.events)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.memory_hotplug)?;
        v.subsection(&mut self.cpu_hotplug)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedEvents {
    /// Events not yet read by the guest.
    pub sel: u32,
}

impl Layout for GedEvents {
    const NAME: &'static str = "acpi-ged-state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("sel", &mut self.sel)
    }
}

/// No slots on a microvm, so only the selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedMemoryHotplug {
    pub state: GedMemorySelector,
}

impl Layout for GedMemoryHotplug {
    const NAME: &'static str = "acpi-ged/memhp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("memhp_state", &mut self.state)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedMemorySelector {
    pub selector: u32,
}

impl Layout for GedMemorySelector {
    const NAME: &'static str = "memory hotplug state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("selector", &mut self.selector)
    }
}

/// No hotpluggable vCPUs on a microvm, so only selector and command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedCpuHotplug {
    pub state: GedCpuSelector,
}

impl Layout for GedCpuHotplug {
    const NAME: &'static str = "acpi-ged/cpuhp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("cpuhp_state", &mut self.state)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GedCpuSelector {
    pub selector: u32,
    pub command: u8,
}

impl Layout for GedCpuSelector {
    const NAME: &'static str = "CPU hotplug state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("selector", &mut self.selector)?;
        v.value("command", &mut self.command)
    }
}

/// `vmcoreinfo`: where the guest said that its crash note is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmCoreInfoState {
    pub has_vmcoreinfo: bool,
    pub host_format: u16,
    pub guest_format: u16,
    pub size: u32,
    pub paddr: u64,
}

impl Layout for VmCoreInfoState {
    const NAME: &'static str = "vmcoreinfo";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("has_vmcoreinfo", &mut self.has_vmcoreinfo)?;
        v.value("vmcoreinfo.host_format", &mut self.host_format)?;
        v.value("vmcoreinfo.guest_format", &mut self.guest_format)?;
        v.value("vmcoreinfo.size", &mut self.size)?;
        v.value("vmcoreinfo.paddr", &mut self.paddr)
    }
}

/// `globalstate`: what the source did when it stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalState {
    /// Length of the name with its NUL.
    pub size: u32,
    /// Run state name, NUL padded.
    pub run_state: [u8; 32],
    pub has_was_suspended: u8,
    pub was_suspended: u8,
    pub padding: [u8; 66],
}

impl Default for GlobalState {
    fn default() -> Self {
        Self {
            size: 0,
            run_state: [0; 32],
            has_was_suspended: 0,
            was_suspended: 0,
            padding: [0; 66],
        }
    }
}

impl GlobalState {
    /// For the run state of this name, which has fewer than 32 bytes.
    pub fn new(name: &str) -> Self {
        let mut state =
            Self { size: name.len() as u32 + 1, has_was_suspended: 1, ..Self::default() };
        state.run_state[..name.len()].copy_from_slice(name.as_bytes());
        state
    }

    /// The run state's name, or `None` if it is not text.
    pub fn name(&self) -> Option<&str> {
        std::str::from_utf8(self.run_state.split(|byte| *byte == 0).next()?).ok()
    }
}

impl Layout for GlobalState {
    const NAME: &'static str = "globalstate";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("size", &mut self.size)?;
        v.buffer("runstate", &mut self.run_state)?;
        v.value("has_vm_was_suspended", &mut self.has_was_suspended)?;
        v.value("vm_was_suspended", &mut self.was_suspended)?;
        v.buffer("unused", &mut self.padding)
    }
}
