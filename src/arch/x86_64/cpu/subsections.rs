//! The subsections of `cpu`: state that most guests have at its default, each sent only when
//! needed.

use super::*;
use crate::vmstate::Visitor;

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
        v.subsection_of(
            "cpu/msr_ia32_misc_enable",
            "env.msr_ia32_misc_enable",
            &mut self.misc_enable,
        )?;
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
