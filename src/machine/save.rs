//! A machine's state as the sections of a migration stream.

use super::port;
use super::{RunState, SavedState};
use crate::arch::x86_64::xsave::XsaveLayout;
use crate::arch::x86_64::{chips, registers};
use crate::config::Board;
use crate::stream::{SectionHeader, SectionKind};
use crate::vmstate::{
    CpuCommonState, Description, GlobalState, KvmClockState, Section, TimerState, TprOptState,
    write_section,
};

/// The machine type that every stream names.
pub const MACHINE: &str = "microvm";

/// All device sections, in QEMU's order.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSections {
    sections: Vec<(SectionHeader, Section)>,
}

impl DeviceSections {
    /// Of a machine that stands still. `run_state` is what the guest did before it was stopped for
    /// this: the target goes on with it.
    pub fn of(
        state: &SavedState,
        board: &Board,
        layout: &XsaveLayout,
        run_state: RunState,
    ) -> Self {
        let mut made = Self { sections: Vec::new() };
        let now = state.virtual_ns;
        made.push(
            "timer",
            0,
            Section::Timer(TimerState { cpu_ticks_offset: now, cpu_clock_offset: now }),
        );
        made.push("fw_cfg", 0, Section::FwCfg(port::fw_cfg(&state.fw_cfg)));
        made.push_vcpus(state, layout);
        made.push("ioapic", 0, Section::Ioapic(chips::ioapic(&state.vm.ioapic)));
        let clock = KvmClockState { clock_ns: state.vm.clock.clock, is_reliable: Some(true) };
        made.push("kvmclock", 0, Section::KvmClock(clock));
        if board.pic {
            made.push("i8259", 0, Section::Pic(chips::pic(&state.vm.pic[0])));
            made.push("i8259", 1, Section::Pic(chips::pic(&state.vm.pic[1])));
        }
        if board.pit {
            let ahead = state.virtual_ns - state.monotonic_ns;
            made.push("i8254", 0, Section::Pit(chips::pit(&state.vm.pit, now, ahead)));
        }
        if let Some(serial) = &state.serial {
            made.push("serial", 0, Section::Serial(port::serial(serial)));
        }
        if let Some(vmcoreinfo) = &state.vmcoreinfo {
            made.push("vmcoreinfo", 0, Section::VmCoreInfo(port::vmcoreinfo(vmcoreinfo)));
        }
        made.push("globalstate", 0, Section::Global(GlobalState::new(run_state.name())));
        made
    }

    fn push_vcpus(&mut self, state: &SavedState, layout: &XsaveLayout) {
        let mut cpus: Vec<_> =
            state.vcpus.iter().map(|vcpu| registers::to_section(vcpu, layout)).collect();
        one_tsc(&mut cpus);
        for (index, (vcpu, registers)) in (0u32..).zip(state.vcpus.iter().zip(cpus)) {
            self.push("cpu_common", index, Section::CpuCommon(CpuCommonState::default()));
            self.push("cpu", index, Section::Cpu(registers));
            if index == 0 {
                self.push("kvm-tpr-opt", 0, Section::TprOpt(TprOptState::default()));
            }
            let apic = chips::apic(&vcpu.lapic, vcpu.sregs.apic_base, state.virtual_ns);
            self.push("apic", apic.id.into(), Section::Apic(apic));
        }
    }

    fn push(&mut self, name: &str, instance: u32, section: Section) {
        let header =
            SectionHeader { id: 0, name: name.to_owned(), instance, version: section.version() };
        self.sections.push((header, section));
    }

    pub fn iter(&self) -> impl Iterator<Item = &(SectionHeader, Section)> {
        self.sections.iter()
    }

    /// Appends every section with its header and footer; ids count from `first_id`. Returns the
    /// description.
    pub fn write(&self, first_id: u32, out: &mut Vec<u8>) -> String {
        let mut description = Description::new(MACHINE);
        for (id, (header, section)) in (first_id..).zip(&self.sections) {
            let header = SectionHeader { id, ..header.clone() };
            header.write(SectionKind::Full, out);
            write_section(section, out);
            header.write_footer(out);
            description.device(&header.name, header.instance, section);
        }
        description.finish()
    }
}

/// vCPUs were read one after the other, while the TSC ran on. If their clocks differ by less than a
/// second they are one clock, and one reading serves all.
fn one_tsc(cpus: &mut [crate::vmstate::CpuState]) {
    let Some((first, rest)) = cpus.split_first_mut() else { return };
    let second =
        first.more.tsc_khz.and_then(|khz| u64::try_from(khz).ok()).unwrap_or(1_000_000) * 1000;
    for cpu in rest.iter_mut().filter(|cpu| cpu.tsc.abs_diff(first.tsc) < second) {
        cpu.tsc = first.tsc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::state::VcpuState;
    use crate::stream::{Item, Reader, Step, end_of_states};
    use crate::vmstate::Known;

    fn machine(vcpus: usize) -> SavedState {
        let mut state =
            SavedState { serial: Some(Default::default()), virtual_ns: 5, ..Default::default() };
        for index in 0..vcpus {
            let mut vcpu =
                VcpuState { xsave: vec![0; 4096], tsc_khz: Some(2_000_000), ..Default::default() };
            vcpu.set_msr(0x10, 1_000_000 + 100 * index as u64);
            vcpu.lapic.regs[0x23] = index as _;
            state.vcpus.push(vcpu);
        }
        state
    }

    #[test]
    fn sections_stand_in_qemus_order_and_are_read_back() {
        let sections = DeviceSections::of(
            &machine(2),
            &Board::default(),
            &XsaveLayout::default(),
            RunState::Running,
        );
        let mut out = Vec::new();
        crate::stream::Configuration { machine: MACHINE.into(), ..Default::default() }
            .write(&mut out);
        sections.write(3, &mut out);
        end_of_states(&mut out);
        let mut reader = Reader::new(Known, Vec::new());
        let mut names = Vec::new();
        while let Step::Item(item, _) = reader.next(&out[reader.offset() as usize..]).unwrap() {
            if let Item::Device { header, .. } = item {
                names.push(format!("{} {}", header.name, header.instance));
            }
        }
        let expected = [
            "timer 0",
            "fw_cfg 0",
            "cpu_common 0",
            "cpu 0",
            "kvm-tpr-opt 0",
            "apic 0",
            "cpu_common 1",
            "cpu 1",
            "apic 1",
            "ioapic 0",
            "kvmclock 0",
            "i8259 0",
            "i8259 1",
            "i8254 0",
            "serial 0",
            "globalstate 0",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn one_reading_of_the_tsc_serves_all_vcpus() {
        let mut state = machine(3);
        state.vcpus[2].set_msr(0x10, 9_000_000_000_000);
        let sections = DeviceSections::of(
            &state,
            &Board::default(),
            &XsaveLayout::default(),
            RunState::Paused,
        );
        let tscs: Vec<u64> = sections
            .iter()
            .filter_map(
                |(_, section)| if let Section::Cpu(cpu) = section { Some(cpu.tsc) } else { None },
            )
            .collect();
        assert_eq!(tscs, [1_000_000, 1_000_000, 9_000_000_000_000]);
    }
}
