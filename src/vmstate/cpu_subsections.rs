//! The subsections of `cpu`: state that most guests have at its default, each sent only when needed.

use super::cpu::{ZmmHigh, ZmmUpper};
use super::{Layout, Visitor};

/// Every subsection, in the order in which QEMU writes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuMore {
    /// A pending exception while a nested guest runs.
    pub exception_info: Option<ExceptionInfo>,
    /// MSR 0x4b564d02.
    pub async_pf_en: Option<u64>,
    /// MSR 0x4b564d06.
    pub async_pf_int: Option<u64>,
    /// MSR 0x4b564d04.
    pub pv_eoi_en: Option<u64>,
    /// MSR 0x4b564d03.
    pub steal_time: Option<u64>,
    /// MSR 0x4b564d05; 1 when absent.
    pub poll_control: Option<u64>,
    /// Last x87 opcode, instruction and data pointers.
    pub fpop_ip_dp: Option<FpopIpDp>,
    /// MSR 0x3b.
    pub tsc_adjust: Option<u64>,
    /// MSR 0x6e0; to be set behind the local APIC.
    pub tsc_deadline: Option<u64>,
    /// MSR 0x1a0; 1 when absent.
    pub misc_enable: Option<u64>,
    /// MSR 0x3a.
    pub feature_control: Option<u64>,
    /// Performance counters.
    pub pmu: Option<Pmu>,
    /// Bound registers.
    pub mpx: Option<Mpx>,
    pub hyperv_hypercall: Option<HypervHypercall>,
    /// MSR 0x40000073.
    pub hyperv_vapic: Option<u64>,
    /// MSR 0x40000021.
    pub hyperv_tsc: Option<u64>,
    pub hyperv_crash: Option<HypervCrash>,
    /// MSR 0x40000010.
    pub hyperv_runtime: Option<u64>,
    pub hyperv_synic: Option<HypervSynic>,
    pub hyperv_stimer: Option<HypervStimer>,
    pub hyperv_reenlightenment: Option<HypervReenlightenment>,
    /// AVX-512 state.
    pub avx512: Option<Avx512>,
    /// MSR 0xda0.
    pub xss: Option<u64>,
    /// MSR 0xe1.
    pub umwait: Option<u32>,
    /// Frequency of the TSC.
    pub tsc_khz: Option<i64>,
    /// MSR 0x34.
    pub smi_count: Option<u64>,
    /// In the XSAVE area.
    pub pkru: Option<u32>,
    /// MSR 0x6e1.
    pub pkrs: Option<u32>,
    /// MSR 0x48.
    pub spec_ctrl: Option<u64>,
    /// MSR 0xc0000104.
    pub amd_tsc_scale: Option<u64>,
    /// MSR 0x4d0.
    pub mcg_ext_ctl: Option<u64>,
    /// Processor trace.
    pub intel_pt: Option<IntelPt>,
    /// MSR 0xc001011f.
    pub virt_ssbd: Option<u64>,
    /// Nested paging of an emulated nested guest.
    pub svm_npt: Option<SvmNpt>,
    /// Virtual interrupt control of an emulated nested guest.
    pub svm_guest: Option<u32>,
    /// What KVM holds of a nested guest.
    pub nested_state: Option<NestedState>,
    pub xen_vcpu: Option<XenVcpu>,
    /// MSR 0x122.
    pub tsx_ctrl: Option<u32>,
    /// Hash of the key that may launch enclaves.
    pub intel_sgx: Option<IntelSgx>,
    /// Page-directory pointers of PAE paging.
    pub pdptrs: Option<Pdptrs>,
    pub xfd: Option<Xfd>,
    /// MSR 0xc0010015.
    pub hwcr: Option<u64>,
    pub fred: Option<Fred>,
    /// AMX tiles.
    pub amx: Option<Amx>,
    /// Last branches.
    pub arch_lbr: Option<ArchLbr>,
    /// A triple fault is pending.
    pub triple_fault: Option<u8>,
}

impl CpuMore {
    pub(super) fn visit<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.exception_info)?;
        v.subsection_of("cpu/async_pf_msr", "env.async_pf_en_msr", &mut self.async_pf_en)?;
        v.subsection_of("cpu/async_pf_int_msr", "env.async_pf_int_msr", &mut self.async_pf_int)?;
        v.subsection_of("cpu/async_pv_eoi_msr", "env.pv_eoi_en_msr", &mut self.pv_eoi_en)?;
        v.subsection_of("cpu/steal_time_msr", "env.steal_time_msr", &mut self.steal_time)?;
        v.subsection_of("cpu/poll_control_msr", "env.poll_control_msr", &mut self.poll_control)?;
        v.subsection(&mut self.fpop_ip_dp)?;
        v.subsection_of("cpu/msr_tsc_adjust", "env.tsc_adjust", &mut self.tsc_adjust)?;
        v.subsection_of("cpu/msr_tscdeadline", "env.tsc_deadline", &mut self.tsc_deadline)?;
        v.subsection_of("cpu/msr_ia32_misc_enable", "env.msr_ia32_misc_enable", &mut self.misc_enable)?;
        v.subsection_of(
            "cpu/msr_ia32_feature_control",
            "env.msr_ia32_feature_control",
            &mut self.feature_control,
        )?;
        v.subsection(&mut self.pmu)?;
        v.subsection(&mut self.mpx)?;
        v.subsection(&mut self.hyperv_hypercall)?;
        v.subsection_of("cpu/msr_hyperv_vapic", "env.msr_hv_vapic", &mut self.hyperv_vapic)?;
        v.subsection_of("cpu/msr_hyperv_time", "env.msr_hv_tsc", &mut self.hyperv_tsc)?;
        v.subsection(&mut self.hyperv_crash)?;
        v.subsection_of("cpu/msr_hyperv_runtime", "env.msr_hv_runtime", &mut self.hyperv_runtime)?;
        v.subsection(&mut self.hyperv_synic)?;
        v.subsection(&mut self.hyperv_stimer)?;
        v.subsection(&mut self.hyperv_reenlightenment)?;
        v.subsection(&mut self.avx512)?;
        v.subsection_of("cpu/xss", "env.xss", &mut self.xss)?;
        v.subsection_of("cpu/umwait", "env.umwait", &mut self.umwait)?;
        v.subsection_of("cpu/tsc_khz", "env.tsc_khz", &mut self.tsc_khz)?;
        v.subsection_of("cpu/msr_smi_count", "env.msr_smi_count", &mut self.smi_count)?;
        v.subsection_of("cpu/pkru", "env.pkru", &mut self.pkru)?;
        v.subsection_of("cpu/pkrs", "env.pkrs", &mut self.pkrs)?;
        v.subsection_of("cpu/spec_ctrl", "env.spec_ctrl", &mut self.spec_ctrl)?;
        v.subsection_of("cpu/amd_tsc_scale_msr", "env.amd_tsc_scale_msr", &mut self.amd_tsc_scale)?;
        v.subsection_of("cpu/mcg_ext_ctl", "env.mcg_ext_ctl", &mut self.mcg_ext_ctl)?;
        v.subsection(&mut self.intel_pt)?;
        v.subsection_of("cpu/virt_ssbd", "env.virt_ssbd", &mut self.virt_ssbd)?;
        v.subsection(&mut self.svm_npt)?;
        v.subsection_of("cpu/svm_guest", "env.int_ctl", &mut self.svm_guest)?;
        v.subsection(&mut self.nested_state)?;
        v.subsection(&mut self.xen_vcpu)?;
        v.subsection_of("cpu/msr_tsx_ctrl", "env.tsx_ctrl", &mut self.tsx_ctrl)?;
        v.subsection(&mut self.intel_sgx)?;
        v.subsection(&mut self.pdptrs)?;
        v.subsection(&mut self.xfd)?;
        v.subsection_of("cpu/msr_hwcr", "env.msr_hwcr", &mut self.hwcr)?;
        v.subsection(&mut self.fred)?;
        v.subsection(&mut self.amx)?;
        v.subsection(&mut self.arch_lbr)?;
        v.subsection_of("cpu/triple_fault", "env.triple_fault_pending", &mut self.triple_fault)
    }
}

/// An exception that is pending while a nested guest runs, so that its host may intercept it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExceptionInfo {
    pub pending: u8,
    pub injected: u8,
    pub has_payload: u8,
    pub payload: u64,
}

impl Layout for ExceptionInfo {
    const NAME: &'static str = "cpu/exception_info";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.exception_pending", &mut self.pending)?;
        v.value("env.exception_injected", &mut self.injected)?;
        v.value("env.exception_has_payload", &mut self.has_payload)?;
        v.value("env.exception_payload", &mut self.payload)
    }
}

/// Last x87 opcode, instruction pointer and data pointer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FpopIpDp {
    pub fpop: u16,
    pub fpip: u64,
    pub fpdp: u64,
}

impl Layout for FpopIpDp {
    const NAME: &'static str = "cpu/fpop_ip_dp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.fpop", &mut self.fpop)?;
        v.value("env.fpip", &mut self.fpip)?;
        v.value("env.fpdp", &mut self.fpdp)
    }
}

/// Performance counters (MSRs 0x38d, 0x38f, 0x38e, 0x390, 0x309…, 0xc1…, 0x186…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pmu {
    pub fixed_ctr_ctrl: u64,
    pub global_ctrl: u64,
    pub global_status: u64,
    pub global_ovf_ctrl: u64,
    pub fixed_counters: [u64; 3],
    pub gp_counters: [u64; 18],
    pub gp_evtsel: [u64; 18],
}

impl Layout for Pmu {
    const NAME: &'static str = "cpu/msr_architectural_pmu";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_fixed_ctr_ctrl", &mut self.fixed_ctr_ctrl)?;
        v.value("env.msr_global_ctrl", &mut self.global_ctrl)?;
        v.value("env.msr_global_status", &mut self.global_status)?;
        v.value("env.msr_global_ovf_ctrl", &mut self.global_ovf_ctrl)?;
        v.array("env.msr_fixed_counters", &mut self.fixed_counters)?;
        v.array("env.msr_gp_counters", &mut self.gp_counters)?;
        v.array("env.msr_gp_evtsel", &mut self.gp_evtsel)
    }
}

/// A bound register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    pub lower: u64,
    pub upper: u64,
}

impl Layout for Bound {
    const NAME: &'static str = "bnd_regs";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("lb", &mut self.lower)?;
        v.value("ub", &mut self.upper)
    }
}

/// Memory protection extensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mpx {
    pub bounds: [Bound; 4],
    pub cfgu: u64,
    pub sts: u64,
    pub bndcfgs: u64,
}

impl Layout for Mpx {
    const NAME: &'static str = "cpu/mpx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structures("env.bnd_regs", &mut self.bounds)?;
        v.value("env.bndcs_regs.cfgu", &mut self.cfgu)?;
        v.value("env.bndcs_regs.sts", &mut self.sts)?;
        v.value("env.msr_bndcfgs", &mut self.bndcfgs)
    }
}

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

/// Mask registers, bits 256 to 511 of the lower sixteen registers, and the upper sixteen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Avx512 {
    pub opmask: [u64; 8],
    pub zmm_high: [ZmmHigh; 16],
    pub zmm_upper: [ZmmUpper; 16],
}

impl Layout for Avx512 {
    const NAME: &'static str = "cpu/avx512";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.opmask_regs", &mut self.opmask)?;
        v.structures("env.xmm_regs[0]", &mut self.zmm_high)?;
        v.structures("env.xmm_regs[1]", &mut self.zmm_upper)
    }
}

/// Processor trace (MSRs 0x570, 571, 560, 561, 572, 580…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntelPt {
    pub ctrl: u64,
    pub status: u64,
    pub output_base: u64,
    pub output_mask: u64,
    pub cr3_match: u64,
    pub addrs: [u64; 8],
}

impl Layout for IntelPt {
    const NAME: &'static str = "cpu/intel_pt";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_rtit_ctrl", &mut self.ctrl)?;
        v.value("env.msr_rtit_status", &mut self.status)?;
        v.value("env.msr_rtit_output_base", &mut self.output_base)?;
        v.value("env.msr_rtit_output_mask", &mut self.output_mask)?;
        v.value("env.msr_rtit_cr3_match", &mut self.cr3_match)?;
        v.array("env.msr_rtit_addrs", &mut self.addrs)
    }
}

/// Nested paging of an emulated nested guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SvmNpt {
    pub nested_cr3: u64,
    pub nested_pg_mode: u32,
}

impl Layout for SvmNpt {
    const NAME: &'static str = "cpu/svn_npt";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.nested_cr3", &mut self.nested_cr3)?;
        v.value("env.nested_pg_mode", &mut self.nested_pg_mode)
    }
}

/// What `KVM_GET_NESTED_STATE` gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NestedState {
    pub state: KvmNested,
}

impl Layout for NestedState {
    const NAME: &'static str = "cpu/nested_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("env.nested_state", &mut self.state)
    }
}

/// The header that all kinds share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvmNested {
    pub flags: u16,
    pub format: u16,
    pub size: u32,
    pub vmx: Option<NestedVmx>,
    pub svm: Option<NestedSvm>,
}

impl Layout for KvmNested {
    const NAME: &'static str = "cpu/kvm_nested_state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("flags", &mut self.flags)?;
        v.value("format", &mut self.format)?;
        v.value("size", &mut self.size)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.vmx)?;
        v.subsection(&mut self.svm)
    }
}

/// A guest of VMX.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NestedVmx {
    pub vmxon_pa: u64,
    pub vmcs12_pa: u64,
    pub smm_flags: u16,
    pub vmcs12: Option<NestedVmcs>,
    pub shadow_vmcs12: Option<NestedShadowVmcs>,
}

impl Layout for NestedVmx {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("hdr.vmx.vmxon_pa", &mut self.vmxon_pa)?;
        v.value("hdr.vmx.vmcs12_pa", &mut self.vmcs12_pa)?;
        v.value("hdr.vmx.smm.flags", &mut self.smm_flags)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.vmcs12)?;
        v.subsection(&mut self.shadow_vmcs12)
    }
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedVmcs {
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedVmcs {
    fn default() -> Self {
        Self { bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedVmcs {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx/vmcs12";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("data.vmx[0].vmcs12", &mut self.bytes)
    }
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedShadowVmcs {
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedShadowVmcs {
    fn default() -> Self {
        Self { bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedShadowVmcs {
    const NAME: &'static str = "cpu/kvm_nested_state/vmx/shadow_vmcs12";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("data.vmx[0].shadow_vmcs12", &mut self.bytes)
    }
}

/// A guest of SVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedSvm {
    pub vmcb_pa: u64,
    pub bytes: Box<[u8; 4096]>,
}

impl Default for NestedSvm {
    fn default() -> Self {
        Self { vmcb_pa: 0, bytes: Box::new([0; 4096]) }
    }
}

impl Layout for NestedSvm {
    const NAME: &'static str = "cpu/kvm_nested_state/svm";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("hdr.svm.vmcb_pa", &mut self.vmcb_pa)?;
        v.array("data.svm[0].vmcb12", &mut self.bytes)
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

/// MSRs 0x8c to 0x8f.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntelSgx {
    pub key_hash: [u64; 4],
}

impl Layout for IntelSgx {
    const NAME: &'static str = "cpu/intel_sgx";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.msr_ia32_sgxlepubkeyhash", &mut self.key_hash)
    }
}

/// Page-directory pointers of PAE paging.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pdptrs {
    pub pdptrs: [u64; 4],
}

impl Layout for Pdptrs {
    const NAME: &'static str = "cpu/pdptrs";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.pdptrs", &mut self.pdptrs)
    }
}

/// MSRs 0x1c4 and 0x1c5.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Xfd {
    pub xfd: u64,
    pub err: u64,
}

impl Layout for Xfd {
    const NAME: &'static str = "cpu/msr_xfd";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_xfd", &mut self.xfd)?;
        v.value("env.msr_xfd_err", &mut self.err)
    }
}

/// Flexible return and event delivery (MSRs 0x1cc to 0x1d4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fred {
    pub rsp0: u64,
    pub rsp1: u64,
    pub rsp2: u64,
    pub rsp3: u64,
    pub stklvls: u64,
    pub ssp1: u64,
    pub ssp2: u64,
    pub ssp3: u64,
    pub config: u64,
}

impl Layout for Fred {
    const NAME: &'static str = "cpu/fred";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.fred_rsp0", &mut self.rsp0)?;
        v.value("env.fred_rsp1", &mut self.rsp1)?;
        v.value("env.fred_rsp2", &mut self.rsp2)?;
        v.value("env.fred_rsp3", &mut self.rsp3)?;
        v.value("env.fred_stklvls", &mut self.stklvls)?;
        v.value("env.fred_ssp1", &mut self.ssp1)?;
        v.value("env.fred_ssp2", &mut self.ssp2)?;
        v.value("env.fred_ssp3", &mut self.ssp3)?;
        v.value("env.fred_config", &mut self.config)
    }
}

/// AMX tiles; `data` has 8192 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amx {
    pub config: [u8; 64],
    pub data: Box<[u8; 8192]>,
}

impl Default for Amx {
    fn default() -> Self {
        Self { config: [0; 64], data: Box::new([0; 8192]) }
    }
}

impl Layout for Amx {
    const NAME: &'static str = "cpu/intel_amx_xtile";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.array("env.xtilecfg", &mut self.config)?;
        v.array("env.xtiledata", &mut self.data)
    }
}

/// One branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lbr {
    pub from: u64,
    pub to: u64,
    pub info: u64,
}

impl Layout for Lbr {
    const NAME: &'static str = "lbr_records_var";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("from", &mut self.from)?;
        v.value("to", &mut self.to)?;
        v.value("info", &mut self.info)
    }
}

/// Last branches (MSRs 0x14ce, 0x14cf, 0x1500…, 0x1600…, 0x1200…).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArchLbr {
    pub ctl: u64,
    pub depth: u64,
    pub records: [Lbr; 32],
}

impl Layout for ArchLbr {
    const NAME: &'static str = "cpu/arch_lbr";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("env.msr_lbr_ctl", &mut self.ctl)?;
        v.value("env.msr_lbr_depth", &mut self.depth)?;
        v.structures("env.lbr_records", &mut self.records)
    }
}
