//! The sections of a migration stream as a machine's state: decoded and checked as they come,
//! applied once.

use super::port;
use super::save::MACHINE;
use super::{RunState, SavedState};
use crate::arch::x86_64::registers::Misfit;
use crate::arch::x86_64::xsave::XsaveLayout;
use crate::arch::x86_64::{chips, registers};
use crate::config::{Board, Config, Topology};
use crate::stream::{
    Configuration, Error, ListedBlock, PAYLOAD_BYTES_MAX, Problem, SectionHeader, Step,
};
use crate::vmstate::{ApicState, CpuState, Section, Stop, read_section};
use std::collections::BTreeMap;

/// What this host's processor offers a guest, as far as loading depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCpu {
    pub xsave: XsaveLayout,
    pub physical_bits: u32,
}

impl HostCpu {
    /// From the CPUID that vCPUs were given.
    pub fn from_cpuid(entries: &[kvm_bindings::kvm_cpuid_entry2]) -> Self {
        let widths = entries.iter().find(|entry| entry.function == 0x8000_0008);
        let physical_bits = widths.map_or(0, |entry| entry.eax & 0xff);
        let physical_bits = if physical_bits == 0 { 36 } else { physical_bits };
        Self { xsave: XsaveLayout::from_cpuid(entries), physical_bits }
    }
}

/// Takes the parts of a stream as they come and refuses what does not fit this machine. Nothing is
/// changed before [`Loader::into_state`].
#[derive(Debug)]
pub struct Loader {
    board: Board,
    vcpus: u32,
    topology: Topology,
    block: String,
    ram_bytes: u64,
    serial: bool,
    host: HostCpu,
    sections: BTreeMap<(String, u32), Section>,
}

impl Loader {
    pub fn new(config: &Config, host: HostCpu) -> Self {
        Self {
            board: config.board,
            vcpus: config.cpu.count.into(),
            topology: config.cpu.topology,
            block: config.memory.block.clone(),
            ram_bytes: config.memory.bytes,
            serial: config.serial.is_some() && config.board.isa_serial,
            host,
            sections: BTreeMap::new(),
        }
    }

    /// Checks what opens the stream. `offset` is where the configuration begins.
    pub fn configuration(&self, found: &Configuration, offset: u64) -> Result<(), Error> {
        if found.machine != MACHINE {
            let why =
                format!("the stream is of a machine \"{}\", this is a {MACHINE}", found.machine);
            return Err(Error::new("configuration", "machine name", offset, Problem::Says(why)));
        }
        Ok(())
    }

    /// Whether the stream's block is the guest's RAM (true) or memory that belongs to no device
    /// here (false). `offset` is where the entry ends.
    pub fn block(&self, block: &ListedBlock, offset: u64) -> Result<bool, Error> {
        if block.name != self.block {
            return Ok(false);
        }
        if block.bytes != self.ram_bytes {
            let (theirs, ours) = (block.bytes, self.ram_bytes);
            let why = format!(
                "{theirs} bytes ({} MiB) of RAM, this machine has {ours} (-m {})",
                theirs >> 20,
                ours >> 20
            );
            return Err(Error::new(
                "section ram",
                format!("size of {}", block.name),
                offset,
                Problem::Says(why),
            ));
        }
        Ok(true)
    }

    /// Checks that the list brought the guest's RAM; `offset` is where the list ends.
    pub fn blocks_complete(&self, blocks: &[ListedBlock], offset: u64) -> Result<(), Error> {
        if blocks.iter().any(|block| block.name == self.block) {
            return Ok(());
        }
        let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
        let why = format!(
            "no block \"{}\", which is this machine's RAM, but {}",
            self.block,
            names.join(", ")
        );
        Err(Error::new("section ram", "block list", offset, Problem::Says(why)))
    }

    /// Decodes the payload at the front of `input`, which stands at `offset` of the stream and goes
    /// on behind it (with the footer). `Item((), n)`: n bytes were taken. `Need`: so many bytes of
    /// input are needed.
    ///
    /// # Errors
    /// A section of a device that this machine does not have, or twice, or of an unknown version or
    /// form.
    pub fn section(
        &mut self,
        header: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Step<()>, Error> {
        let refuse = |field: &str, why: String| {
            Error::new(format!("section {header}"), field, offset, Problem::Says(why))
        };
        if let Some((field, why)) = self.missing_device(header) {
            return Err(refuse(field, why));
        }
        let (section, used) = match read_section(header, input, offset, false) {
            Ok(read) => read,
            Err(Stop::Short(needed)) if needed <= PAYLOAD_BYTES_MAX => {
                return Ok(Step::Need(needed));
            }
            Err(Stop::Short(needed)) => {
                return Err(refuse("payload", format!("more than {needed} bytes")));
            }
            Err(Stop::Refused(error)) => return Err(*error),
        };
        self.check(&section).map_err(|(field, why)| refuse(field, why))?;
        let key = (header.name.clone(), header.instance);
        if self.sections.insert(key, section).is_some() {
            return Err(refuse("name", "this section came before".into()));
        }
        Ok(Step::Item((), used))
    }

    fn has_apic(&self, id: u32) -> bool {
        (0..self.vcpus).any(|index| self.topology.apic_id(index) == id)
    }

    /// Why the section has no place here: the field and a sentence.
    fn missing_device(&self, header: &SectionHeader) -> Option<Misfit> {
        let none = |what: &str| Some(("name", format!("this machine has no such device: {what}")));
        let Some(section) = Section::named(&header.name) else {
            return Some(("name", "no device of a microvm has this name".into()));
        };
        let instance = header.instance;
        match section {
            Section::Cpu(_) | Section::CpuCommon(_) if instance >= self.vcpus => {
                let count = self.vcpus;
                Some((
                    "instance",
                    format!("this machine has {count} vCPUs (-smp {count}), the stream more"),
                ))
            }
            Section::Apic(_) if !self.has_apic(instance) => {
                let Topology { sockets, cores, threads } = self.topology;
                let count = self.vcpus;
                Some((
                    "instance",
                    format!(
                        "none of this machine's vCPUs has this APIC id \
                         (-smp {count},sockets={sockets},cores={cores},threads={threads})"
                    ),
                ))
            }
            Section::Ioapic(_) if instance == 1 => none("a second I/O APIC, part of acpi=on"),
            Section::Ged(_) => none("the ACPI event device, part of acpi=on"),
            Section::Pic(_) if instance < 2 && !self.board.pic => none("pic=on is missing in -M"),
            Section::Pit(_) if !self.board.pit => none("pit=on is missing in -M"),
            Section::Rtc(_) => none("the MC146818 clock of rtc=on is not built yet"),
            Section::Serial(_) if !self.serial => none("-serial none"),
            Section::VmCoreInfo(_) if !self.board.vmcoreinfo => {
                none("-device vmcoreinfo is missing")
            }
            Section::Virtio(state) => none(state.kind.what()),
            Section::Pic(_) if instance < 2 => None,
            Section::Cpu(_) | Section::CpuCommon(_) | Section::Apic(_) => None,
            _ if instance == 0 => None,
            _ => none("there is one of its kind only"),
        }
    }

    fn check(&self, section: &Section) -> Result<(), Misfit> {
        match section {
            Section::Cpu(registers) => registers::check(registers),
            Section::Global(state) => match state.name().and_then(RunState::from_name) {
                Some(_) => Ok(()),
                None => Err(("runstate", "not the name of a run state".into())),
            },
            _ => Ok(()),
        }
    }

    fn get(&self, name: &str, instance: u32) -> Option<&Section> {
        self.sections.get(&(name.to_owned(), instance))
    }

    /// Checks that everything is there without which the guest cannot go on. A device that is not
    /// mentioned keeps the state it has after a reset, as in QEMU.
    pub fn validate(&self) -> Result<(), Error> {
        for index in 0..self.vcpus {
            for (name, instance) in [("cpu", index), ("apic", self.topology.apic_id(index))] {
                if self.get(name, instance).is_none() {
                    let header = SectionHeader { id: 0, name: name.into(), instance, version: 0 };
                    let Topology { sockets, cores, threads } = self.topology;
                    let why = format!(
                        "missing; this machine has {} vCPUs \
                         (-smp {0},sockets={sockets},cores={cores},threads={threads})",
                        self.vcpus
                    );
                    return Err(Error::new(
                        format!("section {header}"),
                        "whole section",
                        0,
                        Problem::Says(why),
                    ));
                }
            }
        }
        Ok(())
    }

    /// What the source did when it stopped; `None` if the stream does not tell.
    pub fn run_state(&self) -> Option<RunState> {
        match self.get("globalstate", 0) {
            Some(Section::Global(state)) => state.name().and_then(RunState::from_name),
            _ => None,
        }
    }

    /// True if kvmclock must be worked out from the guest's own page, see [`clock_from_guest`].
    pub fn clock_page(&self) -> Option<ClockPage> {
        let (Some(Section::KvmClock(clock)), Some(Section::Cpu(cpu))) =
            (self.get("kvmclock", 0), self.get("cpu", 0))
        else {
            return None;
        };
        let enabled = clock.is_reliable != Some(true) && cpu.system_time_msr & 1 != 0;
        enabled.then_some(ClockPage { address: cpu.system_time_msr & !1, tsc: cpu.tsc })
    }

    /// The machine's state: the stream's, over `fresh`, which holds that of this machine as it was
    /// built. `monotonic_ns` is this host's clock now.
    ///
    /// # Errors
    /// What can only be told here: registers that this host's processor lacks.
    pub fn into_state(self, fresh: SavedState, monotonic_ns: i64) -> Result<SavedState, Error> {
        let mut state = fresh;
        state.monotonic_ns = monotonic_ns;
        if let Some(Section::Timer(timer)) = self.get("timer", 0) {
            state.virtual_ns = timer.cpu_clock_offset;
        }
        for index in 0..self.vcpus {
            self.vcpu(index, &mut state)?;
        }
        self.chips(&mut state);
        Ok(state)
    }

    fn vcpu(&self, index: u32, state: &mut SavedState) -> Result<(), Error> {
        let (Some(Section::Cpu(registers)), Some(Section::Apic(apic))) =
            (self.get("cpu", index), self.get("apic", self.topology.apic_id(index)))
        else {
            return self.validate();
        };
        let Some(vcpu) = state.vcpus.get_mut(index as usize) else { return Ok(()) };
        let mut registers = registers.clone();
        if let Some(Section::CpuCommon(common)) = self.get("cpu_common", index) {
            registers.mp_state = mp_state(&registers, common.halted, apic);
        }
        let HostCpu { xsave, physical_bits } = &self.host;
        registers::from_section(&registers, (apic.base, apic.tpr), xsave, *physical_bits, vcpu)
            .map_err(|(field, why)| {
                let header =
                    SectionHeader { id: 0, name: "cpu".into(), instance: index, version: 0 };
                Error::new(format!("section {header}"), field, 0, Problem::Says(why))
            })?;
        chips::from_apic(apic, &mut vcpu.lapic);
        Ok(())
    }

    fn chips(&self, state: &mut SavedState) {
        if let Some(Section::Ioapic(ioapic)) = self.get("ioapic", 0) {
            chips::from_ioapic(ioapic, &mut state.vm.ioapic);
        }
        for number in 0..2 {
            if let Some(Section::Pic(pic)) = self.get("i8259", number as u32) {
                state.vm.pic[number] = chips::from_pic(pic, number);
            }
        }
        if let Some(Section::Pit(pit)) = self.get("i8254", 0) {
            state.vm.pit = chips::from_pit(pit, state.monotonic_ns.wrapping_sub(state.virtual_ns));
        }
        if let Some(Section::KvmClock(clock)) = self.get("kvmclock", 0) {
            state.vm.clock =
                kvm_bindings::kvm_clock_data { clock: clock.clock_ns, ..Default::default() };
        }
        if let Some(Section::Serial(serial)) = self.get("serial", 0) {
            state.serial = Some(port::from_serial(serial));
        }
        if let Some(Section::FwCfg(fw_cfg)) = self.get("fw_cfg", 0) {
            state.fw_cfg = port::from_fw_cfg(fw_cfg);
        }
        if let Some(Section::VmCoreInfo(vmcoreinfo)) = self.get("vmcoreinfo", 0) {
            state.vmcoreinfo = Some(port::from_vmcoreinfo(vmcoreinfo));
        }
    }
}

const MP_STATE_RUNNABLE: u32 = 0;
const MP_STATE_UNINITIALIZED: u32 = 1;
const MP_STATE_HALTED: u32 = 3;

/// Software emulation has no MP state: a vCPU that stands still says so elsewhere.
fn mp_state(cpu: &CpuState, halted: u32, apic: &ApicState) -> u32 {
    match cpu.mp_state {
        MP_STATE_RUNNABLE if apic.sipi.is_some_and(|sipi| sipi.waiting != 0) => {
            MP_STATE_UNINITIALIZED
        }
        MP_STATE_RUNNABLE if halted != 0 => MP_STATE_HALTED,
        other => other,
    }
}

/// Where the guest keeps the parameters of its paravirtual clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockPage {
    /// Guest-physical address of 32 bytes.
    pub address: u64,
    /// The TSC at which the time is wanted.
    pub tsc: u64,
}

/// The time that the guest reads at [`ClockPage::tsc`], from the 32 bytes of its clock page
/// (`pvclock_vcpu_time_info` of the kernel's ABI); `None` if they make no sense.
pub fn clock_from_guest(page: &ClockPage, bytes: &[u8; 32]) -> Option<u64> {
    let quad = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (tsc_then, time_then) = (quad(8), quad(16));
    let multiplier = u32::from_le_bytes(bytes[24..28].try_into().expect("four bytes"));
    let shift = bytes[28] as i8;
    let delta = page.tsc.checked_sub(tsc_then)?;
    let scaled = match shift {
        0..=31 => u128::from(delta) << shift,
        -31..=-1 => u128::from(delta >> -shift),
        _ => return None,
    };
    let ns = u64::try_from((scaled * u128::from(multiplier)) >> 32).ok()?;
    time_then.checked_add(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_page_is_read_as_the_guest_reads_it() {
        let mut bytes = [0; 32];
        bytes[8..16].copy_from_slice(&1000u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&5_000_000u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        let page = ClockPage { address: 0, tsc: 3000 };
        assert_eq!(clock_from_guest(&page, &bytes), Some(5_001_000));
        bytes[28] = 0xff; // halves the ticks first
        assert_eq!(clock_from_guest(&page, &bytes), Some(5_000_500));
        assert_eq!(clock_from_guest(&ClockPage { tsc: 1, ..page }, &bytes), None);
    }
}
