//! The CPUID table of a vCPU: what the host's KVM supports, with the vCPU's own ids, and without
//! what could not follow a guest to another host.

use super::features;
use super::topology::Position;
use crate::config::{Cpu, Topology};
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
/// The feature of a guest that reads the TSC without asking anybody; after a move to a host with another
/// frequency it would be wrong.
pub(crate) const INVARIANT_TSC: &str = "invtsc";

/// The table of vCPU `index`, as QEMU's microvm shows it.
///
/// Nested virtualization (VMX, SVM) is left out: its state cannot be moved yet.
pub(crate) fn for_vcpu(supported: &CpuId, cpus: &Cpu, index: u32, caps: &Caps) -> CpuId {
    let topology = &cpus.topology;
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Leaves of the host's own topology; the first is made below.
        .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026))
        .copied()
        .collect();
    let leaves_max = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    let of = Of { topology, index, apic_id: topology.apic_id(index) };
    entries.iter_mut().for_each(|entry| of.patch(entry, caps));
    if cpus.migratable && !cpus.features.contains_key(INVARIANT_TSC) {
        features::clear(&mut entries, INVARIANT_TSC);
    }
    for (name, _) in cpus.features.iter().filter(|(_, on)| !**on) {
        features::clear(&mut entries, name);
    }
    if leaves_max >= 0xb {
        entries.extend(of.levels());
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// One processor among the others.
struct Of<'a> {
    topology: &'a Topology,
    index: u32,
    apic_id: u32,
}

impl Of<'_> {
    fn patch(&self, e: &mut kvm_cpuid_entry2, caps: &Caps) {
        let (topology, apic_id) = (self.topology, self.apic_id);
        // Processors in one socket; alone in it, a processor says nothing of others.
        let together = topology.per_socket();
        let several = together > 1;
        match (e.function, e.index) {
            (1, _) => {
                let count = if several { together.min(255) } else { 0 };
                e.ebx = (e.ebx & 0xff00) | (apic_id & 0xff) << 24 | count << 16;
                e.ecx = (e.ecx | HYPERVISOR) & !(MONITOR | VMX | OSXSAVE | TSC_DEADLINE);
                if caps.tsc_deadline {
                    e.ecx |= TSC_DEADLINE;
                }
                set(&mut e.edx, HTT, several);
            }
            (4, _) if e.eax & 0x1f != 0 => {
                let cores = u32::from(topology.cores).next_power_of_two().min(64) - 1;
                e.eax = (e.eax & 0x3fff) | self.cache_sharing(e.eax) << 14 | cores << 26;
            }
            (0x8000_0001, _) => {
                e.ecx &= !SVM;
                let keep = several && e.ecx & CMP_LEGACY != 0;
                set(&mut e.ecx, CMP_LEGACY, keep);
            }
            (0x8000_0008, _) => {
                let count = (together - 1).min(255);
                e.ecx = (e.ecx & !0xf0ff) | count | topology.socket_shift() << 12;
            }
            (0x8000_000a, _) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            (0x8000_001d, _) if e.eax & 0x1f != 0 => {
                e.eax = (e.eax & !0x03ff_c000) | self.cache_sharing(e.eax) << 14;
            }
            (0x8000_001e, _) => {
                let Position { socket, core, .. } = topology.position(self.index);
                e.eax = apic_id;
                e.ebx = (u32::from(topology.threads) - 1) << 8 | core & 0xff;
                // One node in each socket.
                e.ecx = socket & 0xff;
                e.edx = 0;
            }
            _ => {}
        }
    }

    /// APIC ids that share a cache, less one: levels 1 and 2 belong to one core, level 3 to all of a
    /// socket.
    fn cache_sharing(&self, eax: u32) -> u32 {
        let topology = self.topology;
        let level = eax >> 5 & 7;
        let shift = if level >= 3 { topology.socket_shift() } else { topology.core_shift() };
        (1 << shift.min(12)) - 1
    }

    /// Leaf 0xb: threads of a core, then all of the socket.
    fn levels(&self) -> [kvm_cpuid_entry2; 3] {
        let topology = self.topology;
        let level = |n, shift, count, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index: n,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: n | kind << 8,
            edx: self.apic_id,
            ..Default::default()
        };
        [
            level(0, topology.core_shift(), topology.threads.into(), 1),
            level(1, topology.socket_shift(), topology.per_socket(), 2),
            level(2, 0, 0, 0),
        ]
    }
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
    fn each_vcpu_finds_its_own_id_everywhere_with_kvm() {
        let kvm = Kvm::new().unwrap();
        let supported = kvm.get_supported_cpuid(256).unwrap();
        let caps = Caps::of(&kvm).unwrap();
        for index in 0..3 {
            let cpuid = for_vcpu(&supported, &Cpu::cores(3), index, &caps);
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
    fn one_vcpu_is_no_multiprocessor_with_kvm() {
        let kvm = Kvm::new().unwrap();
        let supported = kvm.get_supported_cpuid(256).unwrap();
        let cpuid = for_vcpu(&supported, &Cpu::cores(1), 0, &Caps::of(&kvm).unwrap());
        assert_eq!(entry(&cpuid, 1, 0).edx & HTT, 0);
    }

    #[test]
    fn chosen_features_are_shown_or_not() {
        let caps = Caps::of(&Kvm::new().unwrap()).unwrap();
        let host =
            |function, ecx, edx| kvm_cpuid_entry2 { function, ecx, edx, ..Default::default() };
        let entries =
            [host(1, 1 << 21, 0), host(0x8000_0001, 1 << 22, 0), host(0x8000_0007, 0, 1 << 8)];
        let supported = CpuId::from_entries(&entries).unwrap();
        let shown_if = |migratable, chosen: &[(&'static str, bool)]| {
            let features = chosen.iter().copied().collect();
            let cpus = Cpu { features, migratable, ..Cpu::cores(1) };
            let cpuid = for_vcpu(&supported, &cpus, 0, &caps);
            let (one, topoext) = (entry(&cpuid, 1, 0), entry(&cpuid, 0x8000_0001, 0));
            let bits = [one.ecx >> 21, topoext.ecx >> 22, entry(&cpuid, 0x8000_0007, 0).edx >> 8];
            bits.map(|bit| bit & 1 == 1)
        };
        let shown = |chosen: &[(&'static str, bool)]| shown_if(true, chosen);
        assert_eq!(shown(&[]), [true, true, false]);
        assert_eq!(shown_if(false, &[]), [true; 3]);
        assert_eq!(shown_if(false, &[("invtsc", false)]), [true, true, false]);
        assert_eq!(shown(&[("x2apic", false), ("topoext", false)]), [false, false, false]);
        assert_eq!(shown(&[("x2apic", true), ("topoext", true), ("invtsc", true)]), [true; 3]);
    }

    /// Recorded from QEMU 10.0.2: `-M microvm,acpi=off -cpu host -smp …`.
    #[test]
    fn a_topology_is_shown_as_qemu_shows_it() {
        let caps = Caps::of(&Kvm::new().unwrap()).unwrap();
        let host = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            flags: if function == 4 { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            ..Default::default()
        };
        let mut entries = vec![
            host(0, 0, 0x20),
            host(1, 0, 0xc06f2),
            host(4, 0, 0x0c00_4121),
            host(4, 2, 0x0c00_4143),
            host(4, 3, 0xfc1f_c163),
            host(0x8000_0008, 0, 0x392e),
            host(0x8000_001e, 0, 7),
        ];
        entries[1].ebx = 0x4040_0800;
        entries[1].edx = 0x0f8b_fbff;
        let supported = CpuId::from_entries(&entries).unwrap();
        // sockets, cores, threads, index: leaf 1 EBX, leaf 4 EAX of levels 1 and 3, leaf 0xb EAX, EBX
        // of both levels and EDX, leaf 0x80000008 ECX.
        for ((sockets, cores, threads, index), wanted) in [
            ((1, 1, 1, 0), [0x0000_0800, 0x121, 0x163, 0, 1, 0, 1, 0, 0]),
            ((1, 2, 1, 1), [0x0102_0800, 0x0400_0121, 0x0400_4163, 0, 1, 1, 2, 1, 0x1001]),
            ((1, 3, 1, 2), [0x0203_0800, 0x0c00_0121, 0x0c00_c163, 0, 1, 2, 3, 2, 0x2002]),
            ((2, 2, 1, 3), [0x0302_0800, 0x0400_0121, 0x0400_4163, 0, 1, 1, 2, 3, 0x1001]),
            ((1, 2, 2, 3), [0x0304_0800, 0x0400_4121, 0x0400_c163, 1, 2, 2, 4, 3, 0x2003]),
            ((2, 3, 1, 4), [0x0503_0800, 0x0c00_0121, 0x0c00_c163, 0, 1, 2, 3, 5, 0x2002]),
            ((1, 4, 1, 1), [0x0104_0800, 0x0c00_0121, 0x0c00_c163, 0, 1, 2, 4, 1, 0x2003]),
        ] {
            let topology = Topology { sockets, cores, threads };
            let cpus = Cpu::of(1, topology);
            let cpuid = for_vcpu(&supported, &cpus, index, &caps);
            let (thread, socket) = (entry(&cpuid, 0xb, 0), entry(&cpuid, 0xb, 1));
            let found = [
                entry(&cpuid, 1, 0).ebx,
                entry(&cpuid, 4, 0).eax,
                entry(&cpuid, 4, 3).eax,
                thread.eax,
                thread.ebx,
                socket.eax,
                socket.ebx,
                socket.edx,
                entry(&cpuid, 0x8000_0008, 0).ecx,
            ];
            assert_eq!(found.map(|r| format!("{r:x}")), wanted.map(|r: u32| format!("{r:x}")));
            assert_eq!(entry(&cpuid, 1, 0).edx & HTT != 0, cores * threads > 1);
            assert_eq!((thread.ecx, socket.ecx), (0x100, 0x201));
            let Position { socket, core, .. } = topology.position(index);
            let amd = entry(&cpuid, 0x8000_001e, 0);
            let threads = (u32::from(threads) - 1) << 8;
            assert_eq!((amd.eax, amd.ebx, amd.ecx), (thread.edx, threads | core, socket));
        }
    }
}
