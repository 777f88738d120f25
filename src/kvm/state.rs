//! Everything KVM holds about a stopped machine, as the kernel's own structs.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_ioapic_state, kvm_lapic_state, kvm_mp_state, kvm_pic_state,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub struct VcpuState {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    /// The XSAVE area, at least 4096 bytes; longer where the host's `KVM_CAP_XSAVE2` says so.
    pub xsave: Vec<u8>,
    pub xcrs: kvm_xcrs,
    /// Every MSR of `KVM_GET_MSR_INDEX_LIST` that could be read, by index, in the kernel's order.
    pub msrs: Vec<(u32, u64)>,
    /// MSRs of the list that KVM would not read.
    pub refused_msrs: Vec<u32>,
    pub lapic: kvm_lapic_state,
    pub events: kvm_vcpu_events,
    pub mp_state: kvm_mp_state,
    pub debugregs: kvm_debugregs,
    /// `None`: the host does not tell.
    pub tsc_khz: Option<u32>,
}

impl VcpuState {
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|(i, _)| *i == index).map(|(_, value)| *value)
    }

    /// Replaces the value of an MSR, or adds it at the end.
    pub fn set_msr(&mut self, index: u32, value: u64) {
        match self.msrs.iter_mut().find(|(i, _)| *i == index) {
            Some((_, v)) => *v = value,
            None => self.msrs.push((index, value)),
        }
    }
}

/// What the vCPUs share.
#[derive(Clone, Debug, Default)]
pub struct VmState {
    /// Master, slave.
    pub pic: [kvm_pic_state; 2],
    pub ioapic: kvm_ioapic_state,
    pub pit: kvm_pit_state2,
    pub clock: kvm_clock_data,
}
