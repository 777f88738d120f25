//! The memory map a guest is told.

use super::mptable;
use crate::memory::{GuestRam, Region};

const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// Conventional memory ends here, less what firmware keeps.
const CONVENTIONAL_END: u64 = 0xa_0000;
const EBDA_MAX: u64 = 0x9_fc00;
const BIOS: u64 = 0xf_0000;
const HIGH: u64 = 0x10_0000;

/// One range, in the terms of e820.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: u64,
    pub bytes: u64,
    pub kind: u32,
}

/// Where usable conventional memory ends and the MP table starts, on a KiB.
pub(crate) fn low_end(cpus: u32) -> u64 {
    let table = mptable::FLOATING_BYTES + mptable::bytes(cpus);
    EBDA_MAX.min((CONVENTIONAL_END - table as u64) & !0x3ff)
}

/// All ranges, ascending.
pub(crate) fn ranges(regions: &[Region], cpus: u32) -> Vec<Range> {
    let low_end = low_end(cpus);
    let range = |start, end, kind| Range { start, bytes: end - start, kind };
    let mut map = vec![
        range(0, low_end, RAM),
        range(low_end, CONVENTIONAL_END, RESERVED),
        range(BIOS, HIGH, RESERVED),
    ];
    for region in regions {
        let start = region.gpa.max(HIGH);
        if start < region.gpa + region.bytes {
            map.push(range(start, region.gpa + region.bytes, RAM));
        }
    }
    map
}

/// The fw_cfg file `etc/e820`: RAM only, as QEMU gives it. Each entry is le64 start, le64 bytes,
/// le32 kind.
pub(crate) fn e820_file(ram: &GuestRam) -> Vec<u8> {
    let regions = ram.main().regions().iter();
    regions.flat_map(|r| entry(Range { start: r.gpa, bytes: r.bytes, kind: RAM })).collect()
}

/// A packed e820 entry.
pub(crate) fn entry(range: Range) -> [u8; 20] {
    let mut out = [0; 20];
    out[..8].copy_from_slice(&range.start.to_le_bytes());
    out[8..16].copy_from_slice(&range.bytes.to_le_bytes());
    out[16..].copy_from_slice(&range.kind.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mp_table_always_fits_below_640_kib() {
        assert_eq!(low_end(1), 0x9_fc00);
        for cpus in 1..=254 {
            let end = low_end(cpus) + (mptable::FLOATING_BYTES + mptable::bytes(cpus)) as u64;
            assert!(end <= CONVENTIONAL_END && low_end(cpus) > 0x9_0000);
        }
    }
}
