//! The memory map a guest is told.

use super::{Firmware, mptable};
use crate::memory::{GuestRam, Region};

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;
/// Conventional memory ends here, less what firmware keeps.
const CONVENTIONAL_END: u64 = 0xa_0000;
const EBDA_MAX: u64 = 0x9_fc00;
/// Where SMBIOS tables are looked for.
pub(super) const BIOS: u64 = 0xf_0000;
const HIGH: u64 = 0x10_0000;

/// One range, in the terms of e820.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub start: u64,
    pub bytes: u64,
    pub kind: u32,
}

/// The upper end of conventional memory, where firmware keeps its tables. Those who search for them
/// look into the first KiB of the EBDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Low {
    /// ACPI's tables, on a page; where usable memory ends.
    pub tables: u64,
    /// The extended BIOS data area, on a KiB.
    pub ebda: u64,
    /// ACPI's root pointer, in the EBDA.
    pub rsdp: Option<u64>,
    /// The MP table's floating pointer, in the EBDA.
    pub mptable: u64,
}

impl Low {
    pub(crate) fn new(firmware: &Firmware<'_>) -> Low {
        let rsdp_bytes = firmware.acpi.map_or(0, |_| RSDP_BYTES);
        let mptable = mptable::FLOATING_BYTES + mptable::bytes(firmware.cpus.count.into());
        let ebda = EBDA_MAX.min((CONVENTIONAL_END - rsdp_bytes - mptable as u64) & !0x3ff);
        let tables = match firmware.acpi {
            Some(acpi) => (ebda - acpi.tables.len() as u64) & !0xfff,
            None => ebda,
        };
        Low { tables, ebda, rsdp: firmware.acpi.map(|_| ebda), mptable: ebda + rsdp_bytes }
    }
}

/// Room for ACPI's root pointer, so that what follows lies on 16 bytes.
const RSDP_BYTES: u64 = 64;

/// All ranges, ascending.
pub(crate) fn ranges(regions: &[Region], firmware: &Firmware<'_>) -> Vec<Range> {
    let low = Low::new(firmware);
    let range = |start, end, kind| Range { start, bytes: end - start, kind };
    let mut map = vec![
        range(0, low.tables, RAM),
        range(low.tables, low.ebda, ACPI),
        range(low.ebda, CONVENTIONAL_END, RESERVED),
        range(BIOS, HIGH, RESERVED),
    ];
    map.retain(|range| range.bytes > 0);
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
    use crate::arch::x86_64::acpi;
    use crate::config::{Cpu, Oem};

    #[test]
    fn tables_always_fit_below_640_kib() {
        for cpus in 1..=254 {
            let count = u32::from(cpus);
            let cpus = Cpu::cores(cpus);
            let acpi = acpi::Tables::new(&Oem::default(), &cpus, true, vec![0; 4000]);
            for acpi in [None, Some(&acpi)] {
                let low = Low::new(&Firmware { cpus: &cpus, acpi, smbios: None });
                let end = low.mptable + (mptable::FLOATING_BYTES + mptable::bytes(count)) as u64;
                assert!(end <= CONVENTIONAL_END && low.tables > 0x9_0000 && low.ebda & 0x3ff == 0);
                assert!(low.mptable < low.ebda + 0x3f0 && low.mptable & 0xf == 0);
                match acpi {
                    None => assert_eq!((low.tables, low.rsdp), (low.ebda, None)),
                    Some(acpi) => {
                        assert!(low.tables + acpi.tables.len() as u64 <= low.ebda);
                        assert_eq!(low.rsdp, Some(low.ebda));
                    }
                }
            }
        }
        let low = Low::new(&Firmware { cpus: &Cpu::cores(1), acpi: None, smbios: None });
        assert_eq!(low.ebda, 0x9_fc00);
    }

    #[test]
    fn the_tables_are_said_to_be_acpis() {
        let (cpus, regions) = (Cpu::cores(2), crate::memory::layout(64 << 20));
        let acpi = acpi::Tables::new(&Oem::default(), &cpus, true, Vec::new());
        let map = ranges(&regions, &Firmware { cpus: &cpus, acpi: Some(&acpi), smbios: None });
        let kinds: Vec<_> = map.iter().map(|range| (range.start, range.kind)).collect();
        let wanted =
            [(0, RAM), (0x9_f000, ACPI), (0x9_fc00, RESERVED), (BIOS, RESERVED), (HIGH, RAM)];
        assert_eq!(kinds, wanted);
    }
}
