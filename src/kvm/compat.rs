//! Whether a guest that was given one processor can go on with another.

use super::tsc::TscRates;
use std::fmt;

/// False if a guest can certainly not have its TSC rate here, so that no RAM has to move to find
/// out. Without scaling KVM can still make a counter faster than it is, by correcting it at each
/// entry: it is asked when the state is applied.
pub(crate) fn may_run_at(rates: TscRates, scales: bool) -> bool {
    let unknown = rates.guest_khz == 0 || rates.host_khz == 0;
    unknown || scales || rates.guest_khz >= rates.host_khz || rates.are_close()
}

/// CPUID leaves whose registers are sets of features, by function and index.
const FEATURE_LEAVES: [(u32, u32, [bool; 4]); 5] = [
    // Register order: eax, ebx, ecx, edx.
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, false, false, true]),
    (0xd, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
];

/// Bits that say something about the moment or the vCPU, not about the processor: OSXSAVE, APIC and
/// OSPKE follow control registers.
fn is_dynamic(function: u32, register: usize, bit: u32) -> bool {
    matches!(
        (function, register, bit),
        (0x1, 2, 27 | 31) | (0x1, 3, 9) | (0x7, 2, 4) | (0x8000_0001, 3, 9)
    )
}

/// A feature that a guest was given and a host lacks, by the place of its bit in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    function: u32,
    index: u32,
    register: usize,
    bit: u32,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lack { function, index, register, bit } = self;
        let register = ["eax", "ebx", "ecx", "edx"][*register];
        write!(f, "CPUID {function:#x}.{index} {register} bit {bit}")
    }
}

/// The first feature that `theirs` has and `ours` lacks.
pub(crate) fn first_lack(theirs: &[[u32; 7]], ours: &[[u32; 7]]) -> Option<Lack> {
    let find = |table: &[[u32; 7]], function, index| {
        table
            .iter()
            .find(|leaf| leaf[0] == function && leaf[1] == index)
            .map_or([0; 4], |leaf| [leaf[3], leaf[4], leaf[5], leaf[6]])
    };
    for (function, index, registers) in FEATURE_LEAVES {
        let (theirs, ours) = (find(theirs, function, index), find(ours, function, index));
        for register in (0..4).filter(|register| registers[*register]) {
            let missing = theirs[register] & !ours[register];
            let bit = (0..32)
                .find(|bit| missing >> bit & 1 == 1 && !is_dynamic(function, register, *bit));
            if let Some(bit) = bit {
                return Some(Lack { function, index, register, bit });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_counter_needs_scaling() {
        let may =
            |guest_khz, scales| may_run_at(TscRates { guest_khz, host_khz: 2_000_000 }, scales);
        assert!(
            may(1_999_600, false) && may(3_000_000, false) && may(1_000_000, true) && may(0, false)
        );
        assert!(!may(1_000_000, false));
    }

    #[test]
    fn a_missing_feature_is_named_and_a_dynamic_bit_is_none() {
        let leaf = |function, ecx| [function, 0, 0, 0, 0, ecx, 0];
        assert_eq!(first_lack(&[leaf(1, 1 << 27)], &[]), None);
        assert_eq!(
            first_lack(&[leaf(1, 0b11)], &[leaf(1, 0b01)]).unwrap().to_string(),
            "CPUID 0x1.0 ecx bit 1"
        );
        assert_eq!(first_lack(&[leaf(1, 0b01)], &[leaf(1, 0b11)]), None);
    }
}
