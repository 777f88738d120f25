//! What a processor can do, bit by bit of CPUID, under the names that `-cpu` and QMP have for it.

use kvm_bindings::kvm_cpuid_entry2;

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A register of features: leaf, subleaf, and the bits that have names.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: &'static [(u32, &'static str)],
}

/// From the lowest leaf on. Bits that say what the system does (OSXSAVE, OSPKE) are no features.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    Word { leaf: 1, subleaf: 0, register: Register::Edx, bits: &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"), (9, "apic"),
        (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"), (18, "pn"), (19, "clflush"),
        (21, "ds"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"), (27, "ss"), (28, "ht"), (29, "tm"),
        (30, "ia64"), (31, "pbe"),
    ]},
    Word { leaf: 1, subleaf: 0, register: Register::Ecx, bits: &[
        (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds-cpl"), (5, "vmx"), (6, "smx"), (7, "est"), (8, "tm2"),
        (9, "ssse3"), (10, "cid"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"), (17, "pcid"), (18, "dca"), (19, "sse4.1"),
        (20, "sse4.2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"), (24, "tsc-deadline"), (25, "aes"), (26, "xsave"), (28, "avx"),
        (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
    ]},
    Word { leaf: 6, subleaf: 0, register: Register::Eax, bits: &[(2, "arat")]},
    Word { leaf: 7, subleaf: 0, register: Register::Ebx, bits: &[
        (0, "fsgsbase"), (1, "tsc-adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (6, "fdp-excptn-only"), (7, "smep"),
        (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"), (13, "zero-fcs-fds"), (14, "mpx"), (16, "avx512f"), (17, "avx512dq"),
        (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"), (23, "clflushopt"), (24, "clwb"), (25, "intel-pt"),
        (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha-ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]},
    Word { leaf: 7, subleaf: 0, register: Register::Ecx, bits: &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (5, "waitpkg"), (6, "avx512vbmi2"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"),
        (11, "avx512vnni"), (12, "avx512bitalg"), (14, "avx512-vpopcntdq"), (16, "la57"), (22, "rdpid"), (24, "bus-lock-detect"),
        (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"), (30, "sgxlc"), (31, "pks"),
    ]},
    Word { leaf: 7, subleaf: 0, register: Register::Edx, bits: &[
        (2, "avx512-4vnniw"), (3, "avx512-4fmaps"), (4, "fsrm"), (8, "avx512-vp2intersect"), (10, "md-clear"), (14, "serialize"),
        (16, "tsx-ldtrk"), (22, "amx-bf16"), (23, "avx512-fp16"), (24, "amx-tile"), (25, "amx-int8"), (26, "spec-ctrl"), (27, "stibp"),
        (28, "flush-l1d"), (29, "arch-capabilities"), (30, "core-capability"), (31, "ssbd"),
    ]},
    Word { leaf: 7, subleaf: 1, register: Register::Eax, bits: &[
        (4, "avx-vnni"), (5, "avx512-bf16"), (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"), (12, "fsrc"), (21, "amx-fp16"),
        (23, "avx-ifma"),
    ]},
    Word { leaf: 0xd, subleaf: 1, register: Register::Eax, bits: &[
        (0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd"),
    ]},
    Word { leaf: 0x4000_0001, subleaf: 0, register: Register::Eax, bits: &[
        (1, "kvm-nopiodelay"), (2, "kvm-mmu"), (3, "kvmclock"), (4, "kvm-asyncpf"), (5, "kvm-steal-time"), (6, "kvm-pv-eoi"),
        (7, "kvm-pv-unhalt"), (9, "kvm-pv-tlb-flush"), (11, "kvm-pv-ipi"), (12, "kvm-poll-control"), (13, "kvm-pv-sched-yield"),
        (14, "kvm-asyncpf-int"), (24, "kvmclock-stable-bit"),
    ]},
    Word { leaf: 0x8000_0001, subleaf: 0, register: Register::Edx, bits: &[
        (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr-opt"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm"),
        (30, "3dnowext"), (31, "3dnow"),
    ]},
    Word { leaf: 0x8000_0001, subleaf: 0, register: Register::Ecx, bits: &[
        (0, "lahf-lm"), (1, "cmp-legacy"), (2, "svm"), (3, "extapic"), (4, "cr8legacy"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"),
        (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"), (15, "lwp"), (16, "fma4"), (17, "tce"),
        (19, "nodeid-msr"), (21, "tbm"), (22, "topoext"), (23, "perfctr-core"), (24, "perfctr-nb"),
    ]},
    Word { leaf: 0x8000_0007, subleaf: 0, register: Register::Edx, bits: &[(8, "invtsc")]},
    Word { leaf: 0x8000_0008, subleaf: 0, register: Register::Ebx, bits: &[
        (0, "clzero"), (2, "xsaveerptr"), (9, "wbnoinvd"), (12, "ibpb"), (14, "ibrs"), (15, "amd-stibp"), (17, "stibp-always-on"),
        (24, "amd-ssbd"), (25, "virt-ssbd"), (26, "amd-no-ssb"), (28, "amd-psfd"),
    ]},
];

/// Takes a feature away.
pub(crate) fn clear(cpuid: &mut [kvm_cpuid_entry2], name: &str) {
    for word in WORDS {
        let Some((bit, _)) = word.bits.iter().find(|(_, known)| *known == name) else { continue };
        let entries = cpuid.iter_mut();
        for entry in entries.filter(|e| e.function == word.leaf && e.index == word.subleaf) {
            let register = match word.register {
                Register::Eax => &mut entry.eax,
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            };
            *register &= !(1 << bit);
        }
    }
}

/// Every feature that has a name, and whether a processor with this CPUID table has it.
pub(crate) fn features(cpuid: &[kvm_cpuid_entry2]) -> Vec<(&'static str, bool)> {
    let mut all = Vec::new();
    for word in WORDS {
        let entry = cpuid.iter().find(|e| e.function == word.leaf && e.index == word.subleaf);
        let value = entry.map_or(0, |entry| match word.register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        });
        all.extend(word.bits.iter().map(|(bit, name)| (*name, value >> bit & 1 == 1)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_feature_has_one_bit_and_is_found_there() {
        let names: Vec<_> = features(&[])
            .into_iter()
            .map(|(name, has)| {
                assert!(!has, "{name}");
                name
            })
            .collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        let entry = kvm_cpuid_entry2 { function: 7, ebx: 1 << 5, ..Default::default() };
        let has: Vec<_> = features(&[entry]).into_iter().filter(|(_, has)| *has).collect();
        assert_eq!(has, [("avx2", true)]);
    }
}
