//! The CPUID table of a vCPU: what the host's KVM supports, with the vCPU's own ids, and without
//! what could not follow a guest to another host.

use crate::kvm::Caps;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
/// Leaf 0x80000007, EDX. A guest that sees it reads the TSC without asking anybody; after a move to
/// a host with another frequency it would be wrong.
const INVARIANT_TSC: u32 = 1 << 8;

/// The table of vCPU `index` of `count`: one package, one thread per core, APIC id = index.
///
/// Nested virtualization (VMX, SVM) is left out: its state cannot be moved yet.
pub fn for_vcpu(supported: &CpuId, index: u32, count: u32, caps: &Caps) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, 0xb | 0x1f))
        .copied()
        .collect();
    let leaves_max = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    for entry in &mut entries {
        patch(entry, index, count, caps);
    }
    if leaves_max >= 0xb {
        entries.extend(topology(index, count));
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

fn patch(e: &mut kvm_cpuid_entry2, index: u32, count: u32, caps: &Caps) {
    match (e.function, e.index) {
        (1, _) => {
            e.ebx = (e.ebx & 0xff00) | (index & 0xff) << 24 | (count.min(255) << 16);
            e.ecx = (e.ecx | HYPERVISOR) & !(MONITOR | VMX | OSXSAVE | TSC_DEADLINE);
            if caps.tsc_deadline {
                e.ecx |= TSC_DEADLINE;
            }
            set(&mut e.edx, HTT, count > 1);
        }
        (4, _) if e.eax & 0x1f != 0 => {
            let sharing = cache_sharing(e.eax, count);
            e.eax = (e.eax & 0x3fff) | sharing << 14 | (id_space(count).min(64) - 1) << 26;
        }
        (0x8000_0001, _) => {
            e.ecx &= !SVM;
            let keep = count > 1 && e.ecx & CMP_LEGACY != 0;
            set(&mut e.ecx, CMP_LEGACY, keep);
        }
        (0x8000_0007, _) => e.edx &= !INVARIANT_TSC,
        (0x8000_0008, _) => {
            let bits = id_space(count).trailing_zeros();
            e.ecx = (e.ecx & !0xf0ff) | (count - 1).min(255) | bits << 12;
        }
        (0x8000_000a, _) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
        (0x8000_001d, _) if e.eax & 0x1f != 0 => {
            e.eax = (e.eax & !0x03ff_c000) | cache_sharing(e.eax, count) << 14;
        }
        (0x8000_001e, _) => (e.eax, e.ebx, e.ecx, e.edx) = (index, index & 0xff, 0, 0),
        _ => {}
    }
}

/// Threads that share a cache, less one: levels 1 and 2 belong to one core, level 3 to all.
fn cache_sharing(eax: u32, count: u32) -> u32 {
    if eax >> 5 & 7 >= 3 { id_space(count).min(4096) - 1 } else { 0 }
}

/// Leaf 0xb: one thread per core, then all cores of the one package.
fn topology(index: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |n, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: n,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: n | kind << 8,
        edx: index,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, id_space(count).trailing_zeros(), count, 2), level(2, 0, 0, 0)]
}

/// APIC ids reserved for a package of `count` cores.
fn id_space(count: u32) -> u32 {
    count.next_power_of_two()
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
        *found.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"))
    }

    #[test]
    fn each_vcpu_finds_its_own_id_everywhere() {
        let kvm = Kvm::new().unwrap();
        let supported = kvm.get_supported_cpuid(256).unwrap();
        let caps = Caps::of(&kvm).unwrap();
        for index in 0..3 {
            let cpuid = for_vcpu(&supported, index, 3, &caps);
            let one = entry(&cpuid, 1, 0);
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (index, 3));
            assert!(
                one.ecx & HYPERVISOR != 0 && one.ecx & (VMX | MONITOR) == 0 && one.edx & HTT != 0
            );
            if entry(&cpuid, 0, 0).eax >= 0xb {
                let cores = entry(&cpuid, 0xb, 1);
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, index));
            }
            assert_eq!(&entry(&cpuid, 0x4000_0000, 0).ebx.to_le_bytes(), b"KVMK");
        }
    }

    #[test]
    fn one_vcpu_is_no_multiprocessor() {
        let kvm = Kvm::new().unwrap();
        let cpuid =
            for_vcpu(&kvm.get_supported_cpuid(256).unwrap(), 0, 1, &Caps::of(&kvm).unwrap());
        assert_eq!(entry(&cpuid, 1, 0).edx & HTT, 0);
    }
}
