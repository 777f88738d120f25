//! Which model specific register goes where: one table, read in both directions.

use super::cpu::{
    CpuState, Fred, HypervCrash, HypervHypercall, HypervReenlightenment, HypervStimer, HypervSynic,
    IntelPt, IntelSgx, Mpx, Pmu, Xfd,
};
use crate::kvm::state::VcpuState;

/// An MSR: its number, the value that a stream does not carry, and its place among the registers.
struct Entry {
    index: u32,
    default: u64,
    get: fn(&CpuState, usize) -> Option<u64>,
    put: fn(&mut CpuState, usize, u64),
    /// The element, where the place is an array.
    element: usize,
}

/// Sent when it differs from a default.
macro_rules! optional {
    ($index:literal, $default:literal, $field:ident as $type:ty) => {
        Entry {
            index: $index,
            default: $default,
            get: |cpu, _| cpu.more.$field.map(|value| value as u64),
            put: |cpu, _, value| cpu.more.$field = Some(value as $type),
            element: 0,
        }
    };
}

/// Always sent.
macro_rules! fixed {
    ($index:literal, $field:ident as $type:ty) => {
        Entry {
            index: $index,
            default: 0,
            get: |cpu, _| Some(cpu.$field as u64),
            put: |cpu, _, value| cpu.$field = value as $type,
            element: 0,
        }
    };
}

/// In a subsection with others: sent when any of them is not zero.
macro_rules! grouped {
    ($index:expr, $group:ident: $type:ty, $field:ident) => {
        Entry {
            index: $index,
            default: 0,
            get: |cpu, _| cpu.more.$group.as_ref().map(|group| group.$field),
            put: |cpu, _, value| {
                cpu.more.$group.get_or_insert_with(<$type>::default).$field = value
            },
            element: 0,
        }
    };
    ($index:expr, $group:ident: $type:ty, $field:ident[$element:expr]) => {
        Entry {
            index: $index,
            default: 0,
            get: |cpu, at| cpu.more.$group.as_ref().map(|group| group.$field[at]),
            put: |cpu, at, value| {
                cpu.more.$group.get_or_insert_with(<$type>::default).$field[at] = value
            },
            element: $element,
        }
    };
}

/// Elements of an array that is always sent.
macro_rules! element {
    ($index:expr, $element:expr, $get:expr, $put:expr) => {
        Entry { index: $index, default: 0, get: $get, put: $put, element: $element }
    };
}

const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

fn table() -> Vec<Entry> {
    let mut table = vec![
        fixed!(0x10, tsc as u64),
        // Hosts without SMM list no such register; 0x30000 is its reset value.
        Entry { default: 0x30000, ..fixed!(0x9e, smbase as u32) },
        fixed!(0x174, sysenter_cs as u32),
        fixed!(0x175, sysenter_esp as u64),
        fixed!(0x176, sysenter_eip as u64),
        fixed!(0x17a, mcg_status as u64),
        fixed!(0x17b, mcg_ctl as u64),
        fixed!(0x277, pat as u64),
        fixed!(0x2ff, mtrr_deftype as u64),
        fixed!(0xc000_0081, star as u64),
        fixed!(0xc000_0082, lstar as u64),
        fixed!(0xc000_0083, cstar as u64),
        fixed!(0xc000_0084, fmask as u64),
        fixed!(0xc000_0102, kernel_gs_base as u64),
        fixed!(0xc000_0103, tsc_aux as u64),
        fixed!(0xc001_0117, vm_hsave as u64),
        fixed!(0x4b56_4d00, wall_clock_msr as u64),
        fixed!(0x4b56_4d01, system_time_msr as u64),
        optional!(0x4b56_4d02, 0, async_pf_en as u64),
        optional!(0x4b56_4d03, 0, steal_time as u64),
        optional!(0x4b56_4d04, 0, pv_eoi_en as u64),
        optional!(0x4b56_4d05, 1, poll_control as u64),
        optional!(0x4b56_4d06, 0, async_pf_int as u64),
        optional!(0x34, 0, smi_count as u64),
        optional!(0x3a, 0, feature_control as u64),
        optional!(0x3b, 0, tsc_adjust as u64),
        optional!(0x48, 0, spec_ctrl as u64),
        optional!(0xe1, 0, umwait as u32),
        optional!(0x122, 0, tsx_ctrl as u32),
        optional!(0x1a0, 1, misc_enable as u64),
        optional!(0x4d0, 0, mcg_ext_ctl as u64),
        optional!(0x6e0, 0, tsc_deadline as u64),
        optional!(0x6e1, 0, pkrs as u32),
        optional!(0xda0, 0, xss as u64),
        optional!(0xc000_0104, 0, amd_tsc_scale as u64),
        optional!(0xc001_0015, 0, hwcr as u64),
        optional!(0xc001_011f, 0, virt_ssbd as u64),
        optional!(0x4000_0010, 0, hyperv_runtime as u64),
        optional!(0x4000_0021, 0, hyperv_tsc as u64),
        optional!(0x4000_0073, 0, hyperv_vapic as u64),
        grouped!(0xd90, mpx: Mpx, bndcfgs),
        grouped!(0x1c4, xfd: Xfd, xfd),
        grouped!(0x1c5, xfd: Xfd, err),
        grouped!(0x38d, pmu: Pmu, fixed_ctr_ctrl),
        grouped!(0x38e, pmu: Pmu, global_status),
        grouped!(0x38f, pmu: Pmu, global_ctrl),
        grouped!(0x390, pmu: Pmu, global_ovf_ctrl),
        grouped!(0x570, intel_pt: IntelPt, ctrl),
        grouped!(0x571, intel_pt: IntelPt, status),
        grouped!(0x560, intel_pt: IntelPt, output_base),
        grouped!(0x561, intel_pt: IntelPt, output_mask),
        grouped!(0x572, intel_pt: IntelPt, cr3_match),
        grouped!(0x1cc, fred: Fred, rsp0),
        grouped!(0x1cd, fred: Fred, rsp1),
        grouped!(0x1ce, fred: Fred, rsp2),
        grouped!(0x1cf, fred: Fred, rsp3),
        grouped!(0x1d0, fred: Fred, stklvls),
        grouped!(0x1d1, fred: Fred, ssp1),
        grouped!(0x1d2, fred: Fred, ssp2),
        grouped!(0x1d3, fred: Fred, ssp3),
        grouped!(0x1d4, fred: Fred, config),
        grouped!(0x4000_0000, hyperv_hypercall: HypervHypercall, guest_os_id),
        grouped!(0x4000_0001, hyperv_hypercall: HypervHypercall, hypercall),
        grouped!(0x4000_0080, hyperv_synic: HypervSynic, control),
        grouped!(0x4000_0082, hyperv_synic: HypervSynic, event_page),
        grouped!(0x4000_0083, hyperv_synic: HypervSynic, message_page),
        grouped!(0x4000_0106, hyperv_reenlightenment: HypervReenlightenment, control),
        grouped!(0x4000_0107, hyperv_reenlightenment: HypervReenlightenment, tsc_emulation_control),
        grouped!(0x4000_0108, hyperv_reenlightenment: HypervReenlightenment, tsc_emulation_status),
    ];
    arrays(&mut table);
    table
}

fn arrays(table: &mut Vec<Entry>) {
    for (i, index) in MTRR_FIXED.into_iter().enumerate() {
        let put = |cpu: &mut CpuState, at, value| cpu.mtrr_fixed[at] = value;
        table.push(element!(index, i, |cpu, at| Some(cpu.mtrr_fixed[at]), put));
    }
    for i in 0..8 {
        let index = 0x200 + 2 * i as u32;
        table.push(element!(index, i, |cpu, at| Some(cpu.mtrr_var[at].base), |cpu, at, value| {
            cpu.mtrr_var[at].base = value;
        }));
        table.push(element!(
            index + 1,
            i,
            |cpu, at| Some(cpu.mtrr_var[at].mask),
            |cpu, at, value| {
                cpu.mtrr_var[at].mask = value;
            }
        ));
    }
    for i in 0..40 {
        let put = |cpu: &mut CpuState, at, value| cpu.mce_banks[at] = value;
        table.push(element!(0x400 + i as u32, i, |cpu, at| Some(cpu.mce_banks[at]), put));
    }
    table.extend((0..3).map(|i| grouped!(0x309 + i as u32, pmu: Pmu, fixed_counters[i])));
    table.extend((0..18).map(|i| grouped!(0xc1 + i as u32, pmu: Pmu, gp_counters[i])));
    table.extend((0..18).map(|i| grouped!(0x186 + i as u32, pmu: Pmu, gp_evtsel[i])));
    table.extend((0..8).map(|i| grouped!(0x580 + i as u32, intel_pt: IntelPt, addrs[i])));
    table.extend((0..4).map(|i| grouped!(0x8c + i as u32, intel_sgx: IntelSgx, key_hash[i])));
    table.extend(
        (0..5).map(|i| grouped!(0x4000_0100 + i as u32, hyperv_crash: HypervCrash, params[i])),
    );
    table.extend(
        (0..16).map(|i| grouped!(0x4000_0090 + i as u32, hyperv_synic: HypervSynic, sint[i])),
    );
    table.extend(
        (0..4)
            .map(|i| grouped!(0x4000_00b0 + 2 * i as u32, hyperv_stimer: HypervStimer, config[i])),
    );
    table.extend(
        (0..4).map(|i| grouped!(0x4000_00b1 + 2 * i as u32, hyperv_stimer: HypervStimer, count[i])),
    );
}

/// Copies every MSR that KVM gave and the stream has a place for. What is at its default makes no
/// subsection.
pub(crate) fn to_cpu(vcpu: &VcpuState, cpu: &mut CpuState) {
    for entry in table() {
        let fixed = (entry.get)(&CpuState::default(), entry.element).is_some();
        match vcpu.msr(entry.index) {
            Some(value) if fixed || value != entry.default => {
                (entry.put)(cpu, entry.element, value)
            }
            None if fixed => (entry.put)(cpu, entry.element, entry.default),
            _ => {}
        }
    }
    // The number of banks and what they can do is a property of the vCPU, not a register of the
    // list.
    cpu.mcg_cap = vcpu.msr(0x179).unwrap_or(0);
}

/// Sets every MSR of the table in `vcpu`, which holds what a fresh vCPU of this host has. One that
/// this host does not list is set only if its value says something; KVM's refusal is reported
/// later.
pub(crate) fn from_cpu(cpu: &CpuState, physical_bits: u32, vcpu: &mut VcpuState) {
    let address = if physical_bits < 64 { (1 << physical_bits) - 1 } else { u64::MAX };
    for entry in table() {
        let mut value = (entry.get)(cpu, entry.element).unwrap_or(entry.default);
        if (0x200..0x210).contains(&entry.index) {
            // The source fills the bits above its own address width.
            value &= address;
        }
        if vcpu.msr(entry.index).is_some() || value != entry.default {
            vcpu.set_msr(entry.index, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_msr_stands_once_in_the_table() {
        let table = table();
        let indices: HashSet<u32> = table.iter().map(|entry| entry.index).collect();
        assert_eq!(indices.len(), table.len());
    }

    #[test]
    fn every_msr_comes_back() {
        let mut vcpu = VcpuState::default();
        for (i, entry) in table().iter().enumerate() {
            // Small enough for those that have 32 bits.
            vcpu.msrs.push((entry.index, 0x1000 + i as u64));
        }
        let mut cpu = CpuState::default();
        to_cpu(&vcpu, &mut cpu);
        let mut back = VcpuState::default();
        from_cpu(&cpu, 52, &mut back);
        for (index, value) in &vcpu.msrs {
            assert_eq!(back.msr(*index), Some(*value), "MSR {index:#x}");
        }
    }

    #[test]
    fn defaults_make_no_subsection_and_are_set_on_load() {
        let msrs = vec![(0x1a0, 1), (0x3b, 0), (0x4b56_4d05, 1), (0x38f, 0), (0x6e0, 0)];
        let mut vcpu = VcpuState { msrs, ..VcpuState::default() };
        let mut cpu = CpuState::default();
        to_cpu(&vcpu, &mut cpu);
        assert_eq!(cpu.more, crate::arch::x86_64::cpu::CpuMore::default());
        vcpu.msrs = vec![(0x1a0, 0x1801), (0x3b, 5)];
        from_cpu(&cpu, 52, &mut vcpu);
        assert_eq!((vcpu.msr(0x1a0), vcpu.msr(0x3b), vcpu.msr(0x48)), (Some(1), Some(0), None));
    }
}
