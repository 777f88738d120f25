//! Interfaces of other hypervisors that KVM can show a guest: Hyper-V and Xen.

use crate::vmstate::{Layout, Visitor};

/// MSRs 0x40000000 and 0x40000001.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HypervHypercall {
    pub guest_os_id: u64,
    pub hypercall: u64,
}

impl Layout for HypervHypercall {
    const NAME: &'static str = "cpu/msr_hyperv_hypercall";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_hv_guest_os_id", &mut self.guest_os_id)?;
        v.value("env.msr_hv_hypercall", &mut self.hypercall)
    }
}

/// MSRs 0x40000100 to 0x40000104.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HypervCrash {
    pub params: [u64; 5],
}

impl Layout for HypervCrash {
    const NAME: &'static str = "cpu/msr_hyperv_crash";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.msr_hv_crash_params", &mut self.params)
    }
}

/// MSRs 0x40000080, 82, 83, and 0x40000090 to 0x4000009f.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HypervSynic {
    pub control: u64,
    pub event_page: u64,
    pub message_page: u64,
    pub sint: [u64; 16],
}

impl Layout for HypervSynic {
    const NAME: &'static str = "cpu/msr_hyperv_synic";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_hv_synic_control", &mut self.control)?;
        v.value("env.msr_hv_synic_evt_page", &mut self.event_page)?;
        v.value("env.msr_hv_synic_msg_page", &mut self.message_page)?;
        v.array("env.msr_hv_synic_sint", &mut self.sint)
    }
}

/// MSRs 0x400000b0 to 0x400000b7.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HypervStimer {
    pub config: [u64; 4],
    pub count: [u64; 4],
}

impl Layout for HypervStimer {
    const NAME: &'static str = "cpu/msr_hyperv_stimer";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.msr_hv_stimer_config", &mut self.config)?;
        v.array("env.msr_hv_stimer_count", &mut self.count)
    }
}

/// MSRs 0x40000106, 0x40000107 and 0x40000108.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HypervReenlightenment {
    pub control: u64,
    pub tsc_emulation_control: u64,
    pub tsc_emulation_status: u64,
}

impl Layout for HypervReenlightenment {
    const NAME: &'static str = "cpu/msr_hyperv_reenlightenment";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_hv_reenlightenment_control", &mut self.control)?;
        v.value("env.msr_hv_tsc_emulation_control", &mut self.tsc_emulation_control)?;
        v.value("env.msr_hv_tsc_emulation_status", &mut self.tsc_emulation_status)
    }
}

/// Emulated Xen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XenVcpu {
    pub info_gpa: u64,
    pub info_default_gpa: u64,
    pub time_info_gpa: u64,
    pub runstate_gpa: u64,
    pub callback_vector: u8,
    pub virq: [u16; 24],
    pub singleshot_timer_ns: u64,
    pub periodic_timer_period: u64,
}

impl Layout for XenVcpu {
    const NAME: &'static str = "cpu/xen_vcpu";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.xen_vcpu_info_gpa", &mut self.info_gpa)?;
        v.value("env.xen_vcpu_info_default_gpa", &mut self.info_default_gpa)?;
        v.value("env.xen_vcpu_time_info_gpa", &mut self.time_info_gpa)?;
        v.value("env.xen_vcpu_runstate_gpa", &mut self.runstate_gpa)?;
        v.value("env.xen_vcpu_callback_vector", &mut self.callback_vector)?;
        v.array("env.xen_virq", &mut self.virq)?;
        v.value("env.xen_singleshot_timer_ns", &mut self.singleshot_timer_ns)?;
        v.value("env.xen_periodic_timer_period", &mut self.periodic_timer_period)
    }
}
