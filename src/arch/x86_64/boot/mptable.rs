//! The MP table (Intel MultiProcessor Specification 1.4), by which a guest without ACPI finds its
//! processors, its IOAPIC, and how ISA interrupts reach it.

use crate::arch::x86_64::checksum;
use crate::config::Cpu;

/// Bytes of the floating pointer, which the table follows.
pub(crate) const FLOATING_BYTES: usize = 16;

const HEADER_BYTES: usize = 44;
const CPU_BYTES: usize = 20;
const ENTRY_BYTES: usize = 8;
/// ISA interrupts but the cascade.
const INTERRUPTS: usize = 15;
const LOCAL_INTERRUPTS: usize = 2;

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const SPEC_1_4: u8 = 4;
const ISA_BUS: u8 = 0;
/// IOAPIC pin of the timer; the others keep their number.
const TIMER_PIN: u8 = 2;
const ALL_LAPICS: u8 = 0xff;
/// Interrupt types.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// CPU flags: enabled, bootstrap processor.
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;

/// Bytes of the table of `cpus` processors.
pub(crate) const fn bytes(cpus: u32) -> usize {
    let entries = 2 + INTERRUPTS + LOCAL_INTERRUPTS;
    HEADER_BYTES + CPU_BYTES * cpus as usize + ENTRY_BYTES * entries
}

/// The table; the IOAPIC takes the id that follows the last processor's.
pub(crate) fn build(cpus: &Cpu) -> Vec<u8> {
    let ids = || cpus.apic_ids().map(|id| id as u8);
    let ioapic_id = ids().max().map_or(0, |last| last + 1);
    let mut table = vec![0; HEADER_BYTES];
    for id in ids() {
        let flags = ENABLED | if id == 0 { BOOTSTRAP } else { 0 };
        table.extend([0, id, LAPIC_VERSION, flags]);
        // Signature and features: an APIC is all that the specification wants to see (CPUID tells
        // the rest).
        table.extend([0x0600u32, 0x0201, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
    }
    table.extend([1, ISA_BUS]);
    table.extend(b"ISA   ");
    table.extend([2, ioapic_id, IOAPIC_VERSION, 1]);
    table.extend(IOAPIC.to_le_bytes());
    for irq in (0..16).filter(|&irq| irq != 2) {
        let pin = if irq == 0 { TIMER_PIN } else { irq };
        table.extend([3, VECTORED, 0, 0, ISA_BUS, irq, ioapic_id, pin]);
    }
    table.extend([4, EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
    table.extend([4, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]);
    fill_header(&mut table, usize::from(cpus.count) + 2 + INTERRUPTS + LOCAL_INTERRUPTS);
    table
}

/// The floating pointer for a table that follows it at `start`, and the table.
pub(crate) fn at(start: u64, table: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FLOATING_BYTES + table.len());
    out.extend(b"_MP_");
    out.extend((start as u32 + FLOATING_BYTES as u32).to_le_bytes());
    out.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    out[10] = checksum(&out);
    out.extend(table);
    out
}

fn fill_header(table: &mut [u8], entries: usize) {
    let bytes = table.len() as u16;
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&bytes.to_le_bytes());
    table[6] = SPEC_1_4;
    table[8..16].copy_from_slice(b"GODWIT  ");
    table[16..28].copy_from_slice(b"microvm     ");
    table[34..36].copy_from_slice(&(entries as u16).to_le_bytes());
    table[36..40].copy_from_slice(&LAPIC.to_le_bytes());
    table[7] = checksum(table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Topology;

    #[test]
    fn sizes_and_checksums_hold_for_every_number_of_cpus() {
        for cpus in [1, 2, 40, 254] {
            let table = build(&Cpu::cores(cpus));
            assert_eq!(table.len(), bytes(cpus.into()));
            assert_eq!(checksum(&table), 0);
            let all = at(0x9_fc00, &table);
            assert_eq!(checksum(&all[..16]), 0);
            assert_eq!(all[4..8], 0x9_fc10u32.to_le_bytes());
            // Entries are as many as the header says, and fill the table.
            let (mut at, mut count) = (HEADER_BYTES, 0);
            while at < table.len() {
                at += if table[at] == 0 { CPU_BYTES } else { ENTRY_BYTES };
                count += 1;
            }
            assert_eq!(at, table.len());
            assert_eq!(table[34..36], (count as u16).to_le_bytes());
        }
    }

    #[test]
    fn the_ioapic_id_is_no_cpus_id() {
        let ioapic = |cpus: Cpu| {
            let table = build(&cpus);
            let ids: Vec<_> = (0..usize::from(cpus.count))
                .map(|n| table[HEADER_BYTES + n * CPU_BYTES + 1])
                .collect();
            let at = HEADER_BYTES + usize::from(cpus.count) * CPU_BYTES + ENTRY_BYTES;
            assert_eq!(table[at], 2);
            (ids, table[at + 1])
        };
        assert_eq!(ioapic(Cpu::cores(2)), (vec![0, 1], 2));
        let topology = Topology { sockets: 2, cores: 3, threads: 1 };
        assert_eq!(ioapic(Cpu::of(5, topology)), (vec![0, 1, 2, 4, 5], 6));
    }
}
