//! Page-table walks: which virtual addresses a stopped guest has mapped to its memory.
//!
//! Each CPU that pages contributes its mappings. A guest may point its tables anywhere, also at
//! themselves, so both the tables visited and the mappings kept are bounded.

use std::collections::HashSet;

use super::cpu::{Cpu, Paging};
use super::error::Error;
use super::ranges::{self, PAGE, Range};
use super::view::GuestView;

/// Guest-virtual `va .. va + len` shows guest-physical `pa .. pa + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mapping {
    pub pa: u64,
    pub va: u64,
    pub len: u64,
}

/// Mappings that a dump may have, 24 bytes each: what keeps a dump's memory below 64 MiB. A 64-bit
/// Linux guest has some hundreds; a guest of 8 GiB with every page mapped by itself, in no order,
/// reaches it.
pub(super) const MAPPINGS_MAX: usize = 2 << 20;

/// Page tables visited: 4 GiB of them.
const TABLES_MAX: usize = 1 << 20;

/// Bits 12 to 51 of a 64-bit entry; above are software bits, protection keys and no-execute.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Everything mapped to `memory` (sorted, disjoint), sorted by physical address and joined where
/// both addresses run on. None if no CPU pages. CPUs before the first one that pages count as not
/// yet started.
pub(super) fn mappings(
    view: &dyn GuestView,
    cpus: &[Cpu],
    memory: &[Range],
) -> Result<Option<Vec<Mapping>>, Error> {
    mappings_up_to(view, cpus, memory, MAPPINGS_MAX)
}

fn mappings_up_to(
    view: &dyn GuestView,
    cpus: &[Cpu],
    memory: &[Range],
    limit: usize,
) -> Result<Option<Vec<Mapping>>, Error> {
    if cpus.iter().all(|cpu| cpu.paging() == Paging::Off) {
        return Ok(None);
    }
    let tables = ranges::cut(view.ranges(), None);
    let mut walk = Walk {
        view,
        tables: &tables,
        memory,
        limit,
        visited: 0,
        seen: HashSet::new(),
        found: Vec::new(),
    };
    for cpu in cpus {
        walk.cpu(cpu)?;
    }
    walk.join();
    if walk.found.len() > limit {
        return Err(Error::TooManyMappings { limit });
    }
    walk.found.sort_unstable();
    Ok(Some(walk.found))
}

struct Walk<'a> {
    view: &'a dyn GuestView,
    /// where page tables can be: all memory, also when only a part is dumped
    tables: &'a [Range],
    memory: &'a [Range],
    limit: usize,
    visited: usize,
    /// tables above the last level that were walked, with the virtual address they stand for: CPUs
    /// share most
    seen: HashSet<(Paging, u64, u64)>,
    found: Vec<Mapping>,
}

impl Walk<'_> {
    fn cpu(&mut self, cpu: &Cpu) -> Result<(), Error> {
        let mode = cpu.paging();
        match mode {
            Paging::Off => Ok(()),
            Paging::Level4 => self.table(mode, cpu.cr3 & ADDRESS, 4, 0),
            Paging::Level5 => self.table(mode, cpu.cr3 & ADDRESS, 5, 0),
            Paging::Pae => self.pae(cpu.cr3 & 0xffff_ffe0),
            Paging::Bits32 { large } => self.directory_32(mode, cpu.cr3 & 0xffff_f000, large),
        }
    }

    /// A table of 512 entries: level 1 maps pages, level 2 pages of 2 MiB, level 3 of 1 GiB.
    fn table(&mut self, mode: Paging, at: u64, level: u32, va: u64) -> Result<(), Error> {
        if level > 1 && !self.seen.insert((mode, va, at | u64::from(level))) {
            return Ok(());
        }
        let Some(table) = self.read_table(at, PAGE)? else {
            return Ok(());
        };
        let shift = 12 + 9 * (level - 1);
        for (index, entry) in entries::<8>(&table).enumerate() {
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                continue;
            }
            let va = canonical(mode, va | (index as u64) << shift);
            let leaf = level == 1
                || (entry & LARGE != 0 && (level == 2 || (level == 3 && mode != Paging::Pae)));
            if leaf {
                let size = 1 << shift;
                self.map(va, entry & ADDRESS & !(size - 1), size)?;
            } else {
                self.table(mode, entry & ADDRESS, level - 1, va)?;
            }
        }
        Ok(())
    }

    /// The four entries at the top of PAE tables, each a gigabyte.
    fn pae(&mut self, at: u64) -> Result<(), Error> {
        let Some(table) = self.read_table(at, 32)? else {
            return Ok(());
        };
        for (index, entry) in entries::<8>(&table).enumerate() {
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT != 0 {
                self.table(Paging::Pae, entry & ADDRESS, 2, (index as u64) << 30)?;
            }
        }
        Ok(())
    }

    /// A directory of 1024 entries: tables of 4 KiB pages, or 4 MiB pages with address bits 32 to
    /// 39 in bits 13 to 20 (PSE-36).
    fn directory_32(&mut self, mode: Paging, at: u64, large: bool) -> Result<(), Error> {
        if !self.seen.insert((mode, 0, at)) {
            return Ok(());
        }
        let Some(table) = self.read_table(at, PAGE)? else {
            return Ok(());
        };
        for (index, entry) in entries::<4>(&table).enumerate() {
            let entry = u64::from(u32::from_le_bytes(entry));
            if entry & PRESENT == 0 {
                continue;
            }
            let va = (index as u64) << 22;
            if large && entry & LARGE != 0 {
                let pa = (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32;
                self.map(va, pa, 4 << 20)?;
            } else {
                self.table_32(entry & 0xffff_f000, va)?;
            }
        }
        Ok(())
    }

    fn table_32(&mut self, at: u64, va: u64) -> Result<(), Error> {
        let Some(table) = self.read_table(at, PAGE)? else {
            return Ok(());
        };
        for (index, entry) in entries::<4>(&table).enumerate() {
            let entry = u64::from(u32::from_le_bytes(entry));
            if entry & PRESENT != 0 {
                self.map(va | (index as u64) << 12, entry & 0xffff_f000, PAGE as u64)?;
            }
        }
        Ok(())
    }

    /// Keeps the parts of a mapping that lie in memory: one for each range it touches.
    fn map(&mut self, va: u64, pa: u64, len: u64) -> Result<(), Error> {
        for part in ranges::overlaps(self.memory, pa, len) {
            let mapping =
                Mapping { pa: part.start, va: va.wrapping_add(part.start - pa), len: part.len };
            match self.found.last_mut() {
                Some(last) if runs_on(last, &mapping) => last.len += mapping.len,
                _ => self.found.push(mapping),
            }
        }
        if self.found.len() > 2 * self.limit {
            self.join();
            if self.found.len() > self.limit {
                return Err(Error::TooManyMappings { limit: self.limit });
            }
        }
        Ok(())
    }

    /// Joins mappings that show the same memory at the same distance and touch or overlap.
    ///
    /// Two that touch in virtual but not in physical memory differ in that distance, so sorting by
    /// it puts all that can be joined side by side.
    fn join(&mut self) {
        let distance = |mapping: &Mapping| mapping.va.wrapping_sub(mapping.pa);
        self.found.sort_unstable_by_key(|mapping| (distance(mapping), mapping.va));
        self.found.dedup_by(|next, kept| {
            let offset = next.va.wrapping_sub(kept.va);
            let joined = distance(next) == distance(kept)
                && offset <= kept.len
                && same_range(self.memory, kept.pa, next.pa);
            if joined {
                kept.len = kept.len.max(offset + next.len);
            }
            joined
        });
    }

    /// A table's bytes, or nothing if it does not lie in memory.
    fn read_table(&mut self, at: u64, bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        self.visited += 1;
        if self.visited > TABLES_MAX {
            return Err(Error::TooManyMappings { limit: self.limit });
        }
        let mut parts = ranges::overlaps(self.tables, at, bytes as u64);
        if parts.next().is_none_or(|part| part.len < bytes as u64) {
            return Ok(None);
        }
        let mut table = vec![0; bytes];
        super::pipeline::read(self.view, at, &mut table)?;
        Ok(Some(table))
    }
}

/// Sign-extends the top bit of the address space that the tables span.
fn canonical(mode: Paging, va: u64) -> u64 {
    let unused = match mode {
        Paging::Level4 => 16,
        Paging::Level5 => 7,
        Paging::Off | Paging::Pae | Paging::Bits32 { .. } => return va,
    };
    ((va << unused) as i64 >> unused) as u64
}

fn runs_on(last: &Mapping, next: &Mapping) -> bool {
    last.va.wrapping_add(last.len) == next.va && last.pa + last.len == next.pa
}

/// Do both addresses lie in one range? Neighbouring ranges have been joined, so touching mappings
/// always do.
fn same_range(memory: &[Range], a: u64, b: u64) -> bool {
    let of = |pa: u64| memory.partition_point(|range| range.end() <= pa);
    of(a) == of(b)
}

fn entries<const N: usize>(table: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    table.chunks_exact(N).map(|entry| entry.try_into().expect("N bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::view::Slices;

    const CR0: u64 = 1 << 31 | 1;
    const PAE: u64 = 1 << 5;
    const PSE: u64 = 1 << 4;
    const LA57: u64 = 1 << 12;
    const LMA: u64 = 1 << 10;

    /// Guest memory with page tables in it.
    struct Memory(Vec<u8>);

    impl Memory {
        fn new(bytes: usize) -> Memory {
            Memory(vec![0; bytes])
        }

        fn entry(mut self, table: u64, index: usize, value: u64) -> Memory {
            let at = table as usize + 8 * index;
            self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
            self
        }

        fn entry_32(mut self, table: u64, index: usize, value: u32) -> Memory {
            let at = table as usize + 4 * index;
            self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
            self
        }

        fn walk(&self, cpus: &[Cpu], memory: &[Range]) -> Result<Vec<Mapping>, Error> {
            let view = Slices::new([(0, &self.0[..])]);
            mappings_up_to(&view, cpus, memory, 1000).map(|found| found.expect("a CPU pages"))
        }
    }

    fn all(memory: &Memory) -> [Range; 1] {
        [Range { start: 0, len: memory.0.len() as u64 }]
    }

    fn cpu(cr3: u64, cr4: u64, efer: u64) -> Cpu {
        Cpu { cr0: CR0, cr3, cr4, efer, ..Cpu::default() }
    }

    fn mapping(va: u64, pa: u64, len: u64) -> Mapping {
        Mapping { pa, va, len }
    }

    #[test]
    fn both_halves_of_a_4_level_space_are_canonical() {
        let memory = Memory::new(8 << 20)
            .entry(0x1000, 0, 0x2003)
            .entry(0x1000, 511, 0x2003)
            .entry(0x2000, 0, 0x3003)
            .entry(0x3000, 1, 0x20_0083);
        let found = memory.walk(&[cpu(0x1000, PAE, LMA)], &all(&memory)).unwrap();
        let expected = [
            mapping(0x20_0000, 0x20_0000, 2 << 20),
            mapping(0xffff_ff80_0020_0000, 0x20_0000, 2 << 20),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_5_level_space_is_extended_from_bit_56() {
        let memory = Memory::new(8 << 20)
            .entry(0x1000, 511, 0x2003)
            .entry(0x1000, 1, 0x2003)
            .entry(0x2000, 511, 0x3003)
            .entry(0x3000, 0, 0x4003)
            .entry(0x4000, 0, 0x5003)
            .entry(0x5000, 3, 0x6000 | PRESENT | 1 << 63 | 0x7ff << 52);
        let found = memory.walk(&[cpu(0x1000, PAE | LA57, LMA)], &all(&memory)).unwrap();
        let expected = [
            mapping(0x0001_ff80_0000_3000, 0x6000, 0x1000),
            mapping(0xffff_ff80_0000_3000, 0x6000, 0x1000),
        ];
        assert_eq!(
            found, expected,
            "no-execute, keys and software bits are no part of the address"
        );
    }

    #[test]
    fn a_gigabyte_page_is_cut_to_the_ranges_it_covers() {
        let memory = Memory::new(16 << 10).entry(0x1000, 0, 0x2003).entry(0x2000, 1, 0x83);
        let ranges = [Range { start: 0, len: 0x1000 }, Range { start: 0x3000, len: 0x1000 }];
        let found = memory.walk(&[cpu(0x1000, PAE, LMA)], &ranges).unwrap();
        assert_eq!(found, [mapping(0x4000_0000, 0, 0x1000), mapping(0x4000_3000, 0x3000, 0x1000)]);
    }

    #[test]
    fn pae_has_four_entries_at_a_32_byte_border() {
        let memory = Memory::new(8 << 20)
            .entry(0x1020, 3, 0x2001)
            .entry(0x1020, 4, 0x2001)
            .entry(0x2000, 511, 0x40_00e3)
            .entry(0x2000, 0, 0x3003)
            .entry(0x3000, 2, 0x7003)
            .entry(0x3000, 3, 0x8003);
        let found = memory.walk(&[cpu(0x1020, PAE, 0)], &all(&memory)).unwrap();
        assert_eq!(
            found,
            [mapping(0xc000_2000, 0x7000, 0x2000), mapping(0xffe0_0000, 0x40_0000, 2 << 20)]
        );
    }

    #[test]
    fn two_levels_of_32_bits_have_4_mib_pages_if_enabled() {
        let memory = Memory::new(8 << 20)
            .entry_32(0x1000, 0x300, 0x40_0083)
            .entry_32(0x1000, 1, 0x2003)
            .entry_32(0x2000, 1023, 0x5003);
        let found = memory.walk(&[cpu(0x1000, PSE, 0)], &all(&memory)).unwrap();
        assert_eq!(
            found,
            [mapping(0x7f_f000, 0x5000, 0x1000), mapping(0xc000_0000, 0x40_0000, 4 << 20)]
        );
        // Without PSE bit 7 means nothing, and 0x400000 is a table: empty.
        let found = memory.walk(&[cpu(0x1000, 0, 0)], &all(&memory)).unwrap();
        assert_eq!(found, [mapping(0x7f_f000, 0x5000, 0x1000)]);
    }

    #[test]
    fn cpus_share_what_they_share_and_add_the_rest() {
        let memory = Memory::new(8 << 20)
            .entry(0x1000, 256, 0x3003)
            .entry(0x2000, 256, 0x3003)
            .entry(0x2000, 0, 0x3003)
            .entry(0x3000, 0, 0x4003)
            .entry(0x4000, 0, 0x83);
        let off = Cpu::default();
        let found = memory
            .walk(&[off, cpu(0x1000, PAE, LMA), cpu(0x2000, PAE, LMA)], &all(&memory))
            .unwrap();
        assert_eq!(found, [mapping(0, 0, 2 << 20), mapping(0xffff_8000_0000_0000, 0, 2 << 20)]);
    }

    #[test]
    fn pages_mapped_downwards_stay_apart_and_in_order() {
        let mut memory = Memory::new(8 << 20)
            .entry(0x1000, 0, 0x2003)
            .entry(0x2000, 0, 0x3003)
            .entry(0x3000, 0, 0x4003);
        for page in 0..4 {
            memory = memory.entry(0x4000, page, 0x10_0003 - page as u64 * 0x1000);
        }
        let found = memory.walk(&[cpu(0x1000, PAE, LMA)], &all(&memory)).unwrap();
        let expected: Vec<_> = (0..4)
            .rev()
            .map(|page| mapping(page * 0x1000, 0x10_0000 - page * 0x1000, 0x1000))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn tables_that_refer_to_themselves_end_in_an_error_not_in_time() {
        let mut memory = Memory::new(64 << 10);
        for index in 0..512 {
            memory = memory.entry(0x1000, index, 0x1003 + (index as u64 & 1) * 0x2000);
            memory = memory.entry(0x3000, index, 0x1003 + (index as u64 & 1) * 0x2000);
        }
        let result = memory.walk(&[cpu(0x1000, PAE, LMA)], &all(&memory));
        assert!(matches!(result, Err(Error::TooManyMappings { limit: 1000 })));
    }

    #[test]
    fn tables_outside_memory_map_nothing() {
        let memory = Memory::new(16 << 10).entry(0x1000, 0, 0xdead_b000 | PRESENT);
        for cr3 in [0x1000, 0xffff_ffff_f000] {
            assert_eq!(memory.walk(&[cpu(cr3, PAE, LMA)], &all(&memory)).unwrap(), []);
        }
        let view = Slices::new([(0, &memory.0[..])]);
        let none = mappings(&view, &[Cpu::default()], &all(&memory)).unwrap();
        assert_eq!(none, None, "no CPU pages");
    }
}
