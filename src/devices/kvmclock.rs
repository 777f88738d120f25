//! kvmclock, the guest's paravirtual clock: KVM keeps it running, this stops it with the guest.

use super::device::Device;
use super::error::Error;
use super::kind::{Kind, SectionKind, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::arch::x86_64::cpu::CpuState;
use crate::kvm::{self, Vm};
use crate::vmstate::{Layout, Visitor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    type_name: "kvmclock",
    sections: &[SectionKind::of::<KvmClockState>("paravirtual clock", only_one)],
    build,
    ..Kind::NONE
};

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let (vm, vcpus) = (slots.vm.clone(), slots.vcpus.clone());
    Ok(vec![Arc::new(KvmClock { vm, vcpus, stood_at: Mutex::new(None) })])
}

struct KvmClock {
    vm: Arc<Vm>,
    vcpus: Arc<Vec<kvm::Shared>>,
    /// ns; where the guest's time goes on when the guest does. `None`: it never stood still, and
    /// KVM's own is right.
    stood_at: Mutex<Option<u64>>,
}

impl KvmClock {
    fn stood_at(&self) -> MutexGuard<'_, Option<u64>> {
        self.stood_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// ns, from the guest's own page, where the source did not trust its clock.
    fn guest_time(&self, clock: &KvmClockState, cpu: &CpuState) -> Option<u64> {
        if clock.is_reliable == Some(true) || cpu.system_time_msr & 1 == 0 {
            return None;
        }
        let mut page = [0; 32];
        self.vm.ram().read(cpu.system_time_msr & !1, &mut page).ok()?;
        time_at(cpu.tsc, &page)
    }
}

impl Device for KvmClock {
    /// It goes on.
    fn reset(&self) -> Result<(), Error> {
        *self.stood_at() = None;
        Ok(())
    }

    fn quiesce(&self) -> Result<(), Error> {
        *self.stood_at() = Some(self.vm.clock()?.clock);
        Ok(())
    }

    fn resume(&self) -> Result<(), Error> {
        if let Some(ns) = self.stood_at().take() {
            self.vm.set_clock(ns)?;
            for vcpu in self.vcpus.iter() {
                vcpu.lock().announce_pause();
            }
        }
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        let stood_at = *self.stood_at();
        let clock_ns = stood_at.map_or_else(|| self.vm.clock().map(|now| now.clock), Ok)?;
        sections.push("kvmclock", 0, KvmClockState { clock_ns, is_reliable: Some(true) });
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        if let Some(clock) = from.sections.get::<KvmClockState>("kvmclock", 0) {
            let cpu = from.sections.get("cpu", 0);
            let ns = cpu.and_then(|cpu| self.guest_time(clock, cpu)).unwrap_or(clock.clock_ns);
            // KVM writes the pvclock page with the clock it has now, so that it must be right at
            // once, not only when the guest goes on.
            self.vm.set_clock(ns)?;
            *self.stood_at() = Some(ns);
        }
        Ok(())
    }
}

/// The time that the guest reads when its counter is `tsc`, from the 32 bytes of its clock page
/// (`pvclock_vcpu_time_info` of the kernel's ABI); `None` if they make no sense.
fn time_at(tsc: u64, page: &[u8; 32]) -> Option<u64> {
    let quad = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
    let (tsc_then, time_then) = (quad(8), quad(16));
    let multiplier = u32::from_le_bytes(page[24..28].try_into().expect("four bytes"));
    let shift = page[28] as i8;
    let delta = tsc.checked_sub(tsc_then)?;
    let scaled = match shift {
        0..=31 => u128::from(delta) << shift,
        -31..=-1 => u128::from(delta >> -shift),
        _ => return None,
    };
    let ns = u64::try_from((scaled * u128::from(multiplier)) >> 32).ok()?;
    time_then.checked_add(ns)
}

/// `kvmclock`: the guest's paravirtual clock, ns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KvmClockState {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_page_is_read_as_the_guest_reads_it() {
        let mut page = [0; 32];
        page[8..16].copy_from_slice(&1000u64.to_le_bytes());
        page[16..24].copy_from_slice(&5_000_000u64.to_le_bytes());
        page[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        assert_eq!(time_at(3000, &page), Some(5_001_000));
        page[28] = 0xff; // halves the ticks first
        assert_eq!(time_at(3000, &page), Some(5_000_500));
        assert_eq!(time_at(1, &page), None);
    }
}
