//! All state of a machine that stands still, apart from RAM.

use crate::devices::fw_cfg::FwCfgState;
use crate::devices::serial::SerialState;
use crate::devices::vmcoreinfo::VmCoreInfoState;
use crate::kvm::state::{TscRates, VcpuState, VmState};

/// Plain structs of KVM and of our devices; [`crate::vmstate`] maps them to QEMU's sections and
/// back.
#[derive(Clone, Debug, Default)]
pub struct SavedState {
    /// By vCPU index.
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
    /// `None`: the machine has no serial port.
    pub serial: Option<SerialState>,
    pub fw_cfg: FwCfgState,
    /// `None`: the machine has no such device.
    pub vmcoreinfo: Option<VmCoreInfoState>,
    /// QEMU's virtual clock when the guest stopped, ns.
    pub virtual_ns: i64,
    /// `CLOCK_MONOTONIC` of this host at that moment, ns: `vm.pit` counts from it. A load takes
    /// `vm.pit` as it is; who brings a PIT from another host converts with
    /// [`SavedState::virtual_ns`] and [`crate::machine::monotonic_ns`].
    pub monotonic_ns: i64,
}

/// What a load could not restore; for people, not fatal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// (vCPU, MSR, value) that KVM refused.
    pub refused_msrs: Vec<(u32, u32, u64)>,
    /// The guest goes on with a time stamp counter of another rate
    /// ([`crate::kvm::state::ForeignTsc::Accept`]).
    pub tsc: Option<TscRates>,
}
