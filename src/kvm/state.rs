//! Everything KVM holds about a stopped machine, as the kernel's own structs.
//!
//! Unsafe because the XSAVE area has a length that only the host knows.
#![allow(unsafe_code)]

use super::error::Error;
use super::msrs;
use super::tsc::TscRates;
use super::vcpu::Vcpu;
use super::vm::Vm;
use kvm_bindings::{
    KVM_MP_STATE_SIPI_RECEIVED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub struct VcpuState {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    /// The XSAVE area, at least 4096 bytes; longer where the host's `KVM_CAP_XSAVE2` says so.
    pub xsave: Vec<u8>,
    pub xcrs: kvm_xcrs,
    /// Every MSR of `KVM_GET_MSR_INDEX_LIST` that could be read, by index, in the kernel's order;
    /// then MTRRs and machine check banks, if the list lacks them.
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
    pub(crate) fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|(i, _)| *i == index).map(|(_, value)| *value)
    }

    /// Replaces the value of an MSR, or adds it at the end.
    pub(crate) fn set_msr(&mut self, index: u32, value: u64) {
        match self.msrs.iter_mut().find(|(i, _)| *i == index) {
            Some((_, v)) => *v = value,
            None => self.msrs.push((index, value)),
        }
    }
}

/// Whether a guest may go on where its time stamp counter runs at another rate. kvmclock tells its
/// users the new one; who counts on the TSC itself (Linux with tsc=reliable, a guest's TSC deadline
/// timer) is fast or slow from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignTsc {
    /// There is somewhere else it can go on.
    Refuse,
    /// This is the only copy: told and accepted.
    Accept,
}

/// What was not written as it was in the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unwritten {
    /// MSRs that KVM refused, with the values they should have had.
    pub msrs: Vec<(u32, u64)>,
    pub tsc: Option<TscRates>,
}

/// MSRs that a write turns into something else than a state: commands, and counters that are set
/// elsewhere.
const NEVER_WRITTEN: [u32; 2] = [
    0x10b, // IA32_FLUSH_CMD: writing is the command
    0x49,  // IA32_PRED_CMD
];

impl Vcpu {
    /// Reads everything. The last exit must have been completed.
    pub(crate) fn read_state(&self, vm: &Vm) -> Result<VcpuState, Error> {
        let (fd, caps) = (self.fd(), vm.caps());
        // MP state first: reading it makes KVM accept pending INIT and SIPI, which changes
        // registers.
        let mp_state = fd.get_mp_state().map_err(Error::call("KVM_GET_MP_STATE"))?;
        let msrs = msrs::read(fd, vm.msr_list())?;
        Ok(VcpuState {
            regs: fd.get_regs().map_err(Error::call("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(Error::call("KVM_GET_SREGS"))?,
            xsave: self.read_xsave(vm)?,
            xcrs: match caps.xcrs {
                true => fd.get_xcrs().map_err(Error::call("KVM_GET_XCRS"))?,
                false => kvm_xcrs::default(),
            },
            msrs: msrs.values,
            refused_msrs: msrs.refused,
            lapic: fd.get_lapic().map_err(Error::call("KVM_GET_LAPIC"))?,
            events: fd.get_vcpu_events().map_err(Error::call("KVM_GET_VCPU_EVENTS"))?,
            mp_state,
            debugregs: match caps.debugregs {
                true => fd.get_debug_regs().map_err(Error::call("KVM_GET_DEBUGREGS"))?,
                false => kvm_debugregs::default(),
            },
            tsc_khz: if caps.get_tsc_khz { fd.get_tsc_khz().ok() } else { None },
        })
    }

    /// Writes everything, in the order KVM wants. The clock and the shared chips follow once all
    /// vCPUs are written.
    pub(crate) fn write_state(
        &self,
        vm: &Vm,
        state: &VcpuState,
        foreign: ForeignTsc,
    ) -> Result<Unwritten, Error> {
        let (fd, caps) = (self.fd(), vm.caps());
        let tsc = self.set_tsc_khz(vm, state.tsc_khz);
        if let (Some(rates), ForeignTsc::Refuse) = (tsc, foreign) {
            return Err(Error::TscRate(rates));
        }
        let early: Vec<_> =
            state.msrs.iter().copied().filter(|(i, _)| *i == msrs::FEATURE_CONTROL).collect();
        let mut refused = msrs::write(fd, &early)?;
        // An INIT that is still on its way would undo what follows.
        fd.set_mp_state(kvm_mp_state::default()).map_err(Error::call("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&state.sregs).map_err(Error::call("KVM_SET_SREGS"))?;
        fd.set_regs(&state.regs).map_err(Error::call("KVM_SET_REGS"))?;
        self.write_xsave(vm, &state.xsave)?;
        if caps.xcrs && state.xcrs.nr_xcrs > 0 {
            fd.set_xcrs(&state.xcrs).map_err(Error::call("KVM_SET_XCRS"))?;
        }
        let late = |i: u32| i == msrs::TSC_DEADLINE;
        let main: Vec<_> = (state.msrs.iter().copied())
            .filter(|(i, _)| !late(*i) && *i != msrs::FEATURE_CONTROL && !NEVER_WRITTEN.contains(i))
            .collect();
        refused.extend(msrs::write(fd, &main)?);
        fd.set_lapic(&state.lapic).map_err(Error::call("KVM_SET_LAPIC"))?;
        let deadline: Vec<_> = state.msrs.iter().copied().filter(|(i, _)| late(*i)).collect();
        refused.extend(msrs::write(fd, &deadline)?);
        let events = settable_events(state, caps.triple_fault_event);
        fd.set_vcpu_events(&events).map_err(Error::call("KVM_SET_VCPU_EVENTS"))?;
        fd.set_mp_state(state.mp_state).map_err(Error::call("KVM_SET_MP_STATE"))?;
        if caps.debugregs {
            fd.set_debug_regs(&state.debugregs).map_err(Error::call("KVM_SET_DEBUGREGS"))?;
        }
        // Writing what could be read back as zero is no loss worth a report.
        refused.retain(|(_, value)| *value != 0);
        Ok(Unwritten { msrs: refused, tsc })
    }

    /// Sets the TSC's rate; the two rates, if the host's is outside KVM's tolerance and cannot be
    /// scaled.
    fn set_tsc_khz(&self, vm: &Vm, wanted: Option<u32>) -> Option<TscRates> {
        let guest_khz = wanted.filter(|&khz| khz != 0)?;
        let host_khz = if vm.caps().get_tsc_khz { self.fd().get_tsc_khz().unwrap_or(0) } else { 0 };
        if host_khz == guest_khz || self.fd().set_tsc_khz(guest_khz).is_ok() {
            vm.set_tsc_khz(guest_khz);
            return None;
        }
        let rates = TscRates { guest_khz, host_khz };
        (!rates.are_close()).then_some(rates)
    }

    fn read_xsave(&self, vm: &Vm) -> Result<Vec<u8>, Error> {
        let bytes = vm.caps().xsave_bytes;
        if !vm.caps().xsave2 {
            let xsave = self.fd().get_xsave().map_err(Error::call("KVM_GET_XSAVE"))?;
            return Ok(xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect());
        }
        let mut xsave = empty_xsave(bytes)?;
        // SAFETY: the area is as long as KVM_CAP_XSAVE2 said, and no dynamic feature was enabled
        // since.
        unsafe { self.fd().get_xsave2(&mut xsave) }.map_err(Error::call("KVM_GET_XSAVE2"))?;
        let head = xsave.as_fam_struct_ref().xsave.region;
        Ok(head.iter().chain(xsave.as_slice()).flat_map(|w| w.to_le_bytes()).collect())
    }

    fn write_xsave(&self, vm: &Vm, bytes: &[u8]) -> Result<(), Error> {
        let wanted = vm.caps().xsave_bytes;
        let found = bytes.len();
        // A longer area is fine if its tail is unused: the source's host knew more features than
        // the guest used.
        if found < 4096 || bytes.get(wanted..).is_some_and(|tail| tail.iter().any(|&b| b != 0)) {
            return Err(Error::Xsave { found, wanted });
        }
        let mut words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let mut xsave = empty_xsave(wanted)?;
        let mut head = kvm_xsave::default();
        head.region.fill_with(|| words.next().unwrap_or(0));
        // SAFETY: only the fixed part is replaced; the length of the flexible one, which is what
        // must stay true, is not in it.
        unsafe { xsave.as_mut_fam_struct() }.xsave.region = head.region;
        xsave.as_mut_slice().fill_with(|| words.next().unwrap_or(0));
        // SAFETY: the area is as long as the host's KVM reads.
        unsafe { self.fd().set_xsave2(&xsave) }.map_err(Error::call("KVM_SET_XSAVE"))
    }
}

/// The events with flags that say which of them are valid, as QEMU sets them.
fn settable_events(state: &VcpuState, triple_fault: bool) -> kvm_vcpu_events {
    let mut events = state.events;
    let carried =
        KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD;
    events.flags = (events.flags & carried) | KVM_VCPUEVENT_VALID_NMI_PENDING;
    if state.mp_state.mp_state == KVM_MP_STATE_SIPI_RECEIVED {
        events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    }
    if triple_fault {
        events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    events
}

fn empty_xsave(bytes: usize) -> Result<Xsave, Error> {
    let words = (bytes - size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(words).map_err(|_| Error::Xsave { found: bytes, wanted: bytes })
}
