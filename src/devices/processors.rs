//! The processors, each with its local APIC: KVM's own state, as the four kinds of section that
//! QEMU makes of it.

use super::device::Device;
use super::error::Error;
use super::host_cpu::HostCpu;
use super::kind::{Kind, Misfit, Missing, SectionKind, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use super::virtual_clock::VirtualClock;
use crate::arch::x86_64::cpu::{CpuCommonState, CpuState, TprOptState};
use crate::arch::x86_64::lapic::{self, ApicState};
use crate::arch::x86_64::registers;
use crate::config::{Config, Cpu, Topology};
use crate::kvm::state::VcpuState;
use crate::kvm::{self, Vm};
use crate::vmstate::Section;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind {
    sections: &[
        SectionKind::of::<CpuCommonState>("halted and pending interrupts of a vCPU", per_vcpu),
        SectionKind::of::<CpuState>("registers of a vCPU", per_vcpu).checked(check),
        SectionKind::of::<TprOptState>("TPR patching of 32-bit guests", only_one),
        SectionKind::of::<ApicState>("local APIC of a vCPU", |config, id| {
            let mut all = 0..config.cpu.count.into();
            let there = all.any(|index| config.cpu.topology.apic_id(index) == id);
            let why = || format!("none of {} has this APIC id", told(config));
            (!there).then(|| ("instance", why()))
        }),
    ],
    missing: |config, sections| {
        let topology = &config.cpu.topology;
        let all = (0..config.cpu.count.into())
            .flat_map(|index| [("cpu", index), ("apic", topology.apic_id(index))]);
        let why = || format!("missing; this machine has {}", told(config));
        all.into_iter()
            .find(|(name, instance)| !sections.contains(name, *instance))
            .map(|(name, instance)| Missing { name: name.into(), instance, why: why() })
    },
    build,
    ..Kind::NONE
};

fn per_vcpu(config: &Config, instance: u32) -> Option<Misfit> {
    let count = u32::from(config.cpu.count);
    let why = || format!("this machine has {count} vCPUs (-smp {count}), the stream more");
    (instance >= count).then(|| ("instance", why()))
}

/// `4 vCPUs (-smp 4,sockets=1,cores=2,threads=2)`
fn told(config: &Config) -> String {
    let Cpu { count, topology: Topology { sockets, cores, threads }, .. } = config.cpu;
    format!("{count} vCPUs (-smp {count},sockets={sockets},cores={cores},threads={threads})")
}

/// Tries the registers on a processor of this host.
fn check(section: &dyn Section, host: &HostCpu) -> Result<(), Misfit> {
    let Some(cpu) = section.downcast_ref::<CpuState>() else { return Ok(()) };
    let mut vcpu = VcpuState { xsave: vec![0; XSAVE_BYTES], ..VcpuState::default() };
    registers::from_section(cpu, (0, 0), &host.xsave, host.physical_bits, &mut vcpu)
}

/// Room for whatever a processor has.
const XSAVE_BYTES: usize = 16 << 10;
const MSR_TSC: u32 = 0x10;
/// vCPUs whose time stamp counters are this close were never set apart by the guest; they differ
/// because they are read one after the other.
const TSC_READING_MS: u64 = 1000;

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let (vm, vcpus, clock) = (slots.vm.clone(), slots.vcpus.clone(), slots.clock.clone());
    let power_on: Result<_, _> = vcpus.iter().map(|vcpu| vcpu.lock().read_state(&vm)).collect();
    let (power_on, host, topology) = (power_on?, slots.host(), slots.config.cpu.topology);
    Ok(vec![Arc::new(Processors { vm, vcpus, clock, topology, host, power_on })])
}

/// All of them.
pub struct Processors {
    vm: Arc<Vm>,
    vcpus: Arc<Vec<kvm::Shared>>,
    clock: Arc<VirtualClock>,
    topology: Topology,
    host: HostCpu,
    /// KVM has no reset: what it had when the machine was made is written back.
    power_on: Vec<VcpuState>,
}

impl Processors {
    /// What KVM holds of each. The guest stands still; reading may write guest memory.
    pub fn states(&self) -> Result<Vec<VcpuState>, kvm::Error> {
        let read: Result<Vec<_>, _> =
            self.vcpus.iter().map(|vcpu| vcpu.lock().read_state(&self.vm)).collect();
        let mut states = read?;
        one_tsc(&mut states);
        Ok(states)
    }

    /// Writes back what was read a moment ago, of a guest that stood still since.
    pub(crate) fn write_back(&self, states: &[VcpuState]) -> Result<(), kvm::Error> {
        for (vcpu, state) in self.vcpus.iter().zip(states) {
            vcpu.lock().write_state(&self.vm, state, kvm::state::ForeignTsc::Accept)?;
        }
        Ok(())
    }
}

impl Device for Processors {
    fn reset(&self) -> Result<(), Error> {
        for (vcpu, state) in self.vcpus.iter().zip(&self.power_on) {
            vcpu.lock().write_state(&self.vm, state, kvm::state::ForeignTsc::Refuse)?;
        }
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let now = self.clock.now();
        for (index, state) in (0..).zip(self.states()?) {
            sections.push("cpu_common", index, CpuCommonState::default());
            sections.push("cpu", index, registers::to_section(&state, &self.host.xsave));
            if index == 0 {
                sections.push("kvm-tpr-opt", 0, TprOptState::default());
            }
            let apic = lapic::apic(&state.lapic, state.sregs.apic_base, now);
            sections.push("apic", apic.id.into(), apic);
        }
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        for (index, (vcpu, power_on)) in (0..).zip(self.vcpus.iter().zip(&self.power_on)) {
            let mut state = power_on.clone();
            self.put(from.sections, index, &mut state)?;
            let unwritten = vcpu.lock().write_state(&self.vm, &state, from.foreign)?;
            let refused = unwritten.msrs.into_iter().map(|(msr, value)| (index, msr, value));
            from.report.refused_msrs.extend(refused);
            from.report.tsc = from.report.tsc.or(unwritten.tsc);
        }
        Ok(())
    }
}

impl Processors {
    /// Puts the stream's processor over `state`, that of a fresh one.
    fn put(&self, sections: &Sections, index: u32, state: &mut VcpuState) -> Result<(), Error> {
        let cpu = sections.get::<CpuState>("cpu", index);
        let Some((cpu, apic)) =
            cpu.zip(sections.get::<ApicState>("apic", self.topology.apic_id(index)))
        else {
            return Ok(());
        };
        let mut cpu = cpu.clone();
        if let Some(common) = sections.get::<CpuCommonState>("cpu_common", index) {
            cpu.mp_state = mp_state(&cpu, common.halted, apic);
        }
        let HostCpu { xsave, physical_bits } = &self.host;
        registers::from_section(&cpu, (apic.base, apic.tpr), xsave, *physical_bits, state)
            .map_err(|(field, why)| Error::Misfit {
                section: format!("cpu instance {index}"),
                field,
                why,
            })?;
        lapic::from_apic(apic, &mut state.lapic);
        Ok(())
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

/// vCPUs were read one after the other, while the counters ran on: one reading serves all that run
/// together.
fn one_tsc(vcpus: &mut [VcpuState]) {
    let Some((first, rest)) = vcpus.split_first_mut() else { return };
    let Some(tsc) = first.msr(MSR_TSC) else { return };
    let khz = u64::from(first.tsc_khz.unwrap_or(1_000_000));
    for vcpu in rest {
        let close = |other: u64| other.abs_diff(tsc) < khz * TSC_READING_MS;
        if vcpu.msr(MSR_TSC).is_some_and(close) {
            vcpu.set_msr(MSR_TSC, tsc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_of_the_tsc_serves_all_vcpus() {
        let vcpu = |tsc| VcpuState {
            tsc_khz: Some(2_000_000),
            msrs: vec![(MSR_TSC, tsc)],
            ..VcpuState::default()
        };
        let mut vcpus = [vcpu(1_000_000), vcpu(1_000_100), vcpu(9_000_000_000_000)];
        one_tsc(&mut vcpus);
        let tscs = vcpus.map(|vcpu| vcpu.msr(MSR_TSC).unwrap());
        assert_eq!(tscs, [1_000_000, 1_000_000, 9_000_000_000_000]);
    }
}
