//! What this host's KVM can do, asked for once.

use super::error::Error;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};
use kvm_ioctls::{Cap, Kvm};

/// Capabilities that decide how something is done. What no machine can do without is checked by
/// [`Caps::of`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    pub vcpus_max: u32,
    pub pit2: bool,
    pub tsc_control: bool,
    pub get_tsc_khz: bool,
    pub tsc_deadline: bool,
    pub adjust_clock: bool,
    pub ioeventfd: bool,
    pub signal_msi: bool,
    pub xcrs: bool,
    pub debugregs: bool,
    pub set_identity_map: bool,
    /// Machine check banks a vCPU can have; 0 without machine checks.
    pub mce_banks: u32,
    pub triple_fault_event: bool,
    /// Bytes of an XSAVE area; 4096 on hosts without `KVM_CAP_XSAVE2`.
    pub xsave_bytes: usize,
    pub xsave2: bool,
    /// Flags of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` that this host knows.
    pub manual_dirty_protect: u64,
    /// Bytes of the largest dirty ring of a vCPU, and the capability to enable; `None` without
    /// rings.
    pub dirty_ring: Option<DirtyRingCap>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DirtyRingCap {
    pub cap: u32,
    pub bytes_max: u32,
}

impl Caps {
    /// # Errors
    /// [`Error::Missing`] names the first capability without which no guest can run here.
    pub(crate) fn of(kvm: &Kvm) -> Result<Caps, Error> {
        let needed = [
            (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
            (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
            (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
            (Cap::MpState, "KVM_CAP_MP_STATE"),
            (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
            (Cap::Xsave, "KVM_CAP_XSAVE"),
            (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"),
        ];
        if let Some((_, name)) = needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Missing(name));
        }
        let raw = |cap: u32| kvm.check_extension_raw(cap.into()).max(0) as u32;
        let xsave2 = kvm.check_extension_int(Cap::Xsave2).max(0) as usize;
        let ring =
            |cap| Some(DirtyRingCap { cap, bytes_max: raw(cap) }).filter(|r| r.bytes_max > 0);
        let manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        Ok(Caps {
            vcpus_max: kvm.get_max_vcpus() as u32,
            pit2: kvm.check_extension(Cap::Pit2) && kvm.check_extension(Cap::PitState2),
            tsc_control: kvm.check_extension(Cap::TscControl),
            get_tsc_khz: kvm.check_extension(Cap::GetTscKhz),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            adjust_clock: kvm.check_extension(Cap::AdjustClock),
            ioeventfd: kvm.check_extension(Cap::Ioeventfd),
            signal_msi: kvm.check_extension(Cap::SignalMsi),
            xcrs: kvm.check_extension(Cap::Xcrs),
            debugregs: kvm.check_extension(Cap::Debugregs),
            set_identity_map: kvm.check_extension(Cap::SetIdentityMapAddr),
            mce_banks: kvm.check_extension_int(Cap::Mce).max(0) as u32,
            triple_fault_event: raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT) > 0,
            xsave_bytes: xsave2.max(4096),
            xsave2: xsave2 > 0,
            manual_dirty_protect: u64::from(raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & manual),
            dirty_ring: ring(KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
                .or_else(|| ring(KVM_CAP_DIRTY_LOG_RING)),
        })
    }
}
