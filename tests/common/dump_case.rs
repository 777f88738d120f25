//! A guest made from arbitrary bytes, dumped in every form and read back. Shared by the property
//! test and the fuzz target.

use std::fs::File;
use std::io::{Read, Seek};

use godwit::dump::read::{Core, Kdump, flat_to_raw};
use godwit::dump::{
    self, Codec, Cpu, Error, Filter, Format, GuestState, Options, Output, Progress, Slices,
    VmCoreInfo,
};

/// Memory in a few places, not overlapping, and registers.
#[derive(Debug)]
pub(crate) struct Case {
    parts: Vec<(u64, Vec<u8>)>,
    cpus: Vec<Cpu>,
    filter: Option<Filter>,
    vmcoreinfo: Option<VmCoreInfo>,
}

struct Bytes<'d>(&'d [u8]);

impl Bytes<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

const UNITS: [u64; 5] = [1, 1 << 9, 1 << 12, 1 << 20, 1 << 21];
/// kdumps have a bitmap up to their last page; cases above this are dumped as ELF only.
const KDUMP_END_MAX: u64 = 1 << 34;

impl Case {
    pub(crate) fn new(data: &[u8]) -> Case {
        let mut from = Bytes(data);
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        for _ in 0..1 + from.number(1) % 6 {
            let unit = UNITS[from.number(1) as usize % UNITS.len()];
            let start = from.number(2) * unit;
            let len = match from.number(2) {
                len if len % 3 == 0 => len & 0xf000,
                len => len % 20_000,
            };
            parts.push((start, contents(&mut from, len as usize)));
        }
        parts.sort_by_key(|(start, _)| *start);
        let mut end = 0;
        parts.retain(|(start, bytes)| {
            let keep = *start >= end && !bytes.is_empty();
            end = if keep { start + bytes.len() as u64 } else { end };
            keep
        });
        let cpus = (0..from.number(1) % 4).map(|_| cpu(&mut from)).collect();
        let filter = (from.number(1) % 2 == 1).then(|| {
            let unit = UNITS[from.number(1) as usize % UNITS.len()];
            let begin = (from.number(2) as i16 as i64 as u64).wrapping_mul(unit);
            Filter { begin, length: from.number(4) as i32 as i64 as u64 }
        });
        let vmcoreinfo = (from.number(1) % 2 == 1).then(|| VmCoreInfo {
            guest_format: 1,
            size: from.number(2) as u32,
            address: from.number(3),
        });
        Case { parts, cpus, filter, vmcoreinfo }
    }

    /// Dumps the guest in every form and checks that each holds its memory.
    pub(crate) fn check(&self) {
        for (filter, paging) in
            [(None, false), (self.filter, false), (None, true), (self.filter, true)]
        {
            let options = Options { filter, paging, threads: 1, ..Options::new(Format::Elf) };
            let sparse = self.dump(&options, false);
            let Some(file) = sparse else { continue };
            self.check_elf(&Core::parse(&file).unwrap(), filter, paging);
            assert!(self.dump(&options, true).as_ref() == Some(&file), "a stream gets other bytes");
        }
        let end = self.parts.last().map_or(0, |(start, bytes)| start + bytes.len() as u64);
        if end == 0 || end > KDUMP_END_MAX {
            return;
        }
        for codec in [Codec::Zlib, Codec::Lzo, Codec::Snappy, Codec::Zstd] {
            let form = |raw| Options { threads: 1, ..Options::new(Format::Kdump { codec, raw }) };
            let raw = self.dump(&form(true), false).unwrap();
            let flat = self.dump(&form(false), true).unwrap();
            assert!(flat_to_raw(&flat).unwrap() == raw, "the two forms of {codec:?} differ");
            self.check_kdump(&Kdump::parse(&raw).unwrap());
        }
    }

    /// The file, or nothing if the guest has no memory there or too many mappings.
    fn dump(&self, options: &Options, appending: bool) -> Option<Vec<u8>> {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().write(!appending).append(appending).open(named.path()).unwrap();
        let view = Slices::new(self.parts.iter().map(|(start, bytes)| (*start, &bytes[..])));
        let guest = GuestState { view: &view, cpus: &self.cpus, vmcoreinfo: self.vmcoreinfo };
        let progress = Progress::default();
        match dump::write(&guest, options, Output::new(file).unwrap(), &progress) {
            Ok(_) => assert!(progress.completed() >= progress.total()),
            Err(Error::NoMemory | Error::TooManyMappings { .. }) => return None,
            Err(error) => panic!("{error}"),
        }
        let mut bytes = Vec::new();
        let mut file = named.reopen().unwrap();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn check_elf(&self, core: &Core<'_>, filter: Option<Filter>, paging: bool) {
        let (low, high) = filter.map_or((0, i128::from(i64::MAX)), |filter| {
            (i128::from(filter.begin), i128::from(filter.begin) + i128::from(filter.length))
        });
        for load in &core.loads {
            assert!(i128::from(load.pa) >= low && i128::from(load.pa + load.memory_bytes) <= high);
            assert_eq!(load.file_bytes, load.memory_bytes);
            self.same(load.pa, core.bytes(load));
        }
        let paged = paging && self.cpus.iter().any(|cpu| cpu.cr0 >> 31 & 1 != 0);
        if !paged {
            let expected: i128 = self
                .parts
                .iter()
                .map(|(start, bytes)| {
                    let (start, end) =
                        (i128::from(*start), i128::from(*start) + bytes.len() as i128);
                    (end.min(high) - start.max(low)).max(0)
                })
                .sum();
            let held: u64 = core.loads.iter().map(|load| load.memory_bytes).sum();
            assert_eq!(i128::from(held), expected, "every byte once");
        }
        assert_eq!(core.notes.iter().filter(|note| note.name == "CORE").count(), self.cpus.len());
    }

    fn check_kdump(&self, file: &Kdump<'_>) {
        let mut held = vec![0; 4096];
        for (index, page) in file.pages().iter().enumerate() {
            let bytes = file.page(index).unwrap();
            held.fill(0);
            let start = page * 4096;
            for (at, part) in &self.parts {
                let (low, high) = (start.max(*at), (start + 4096).min(at + part.len() as u64));
                if low < high {
                    held[(low - start) as usize..(high - start) as usize]
                        .copy_from_slice(&part[(low - at) as usize..(high - at) as usize]);
                }
            }
            assert!(bytes == held, "page {page:#x}");
        }
        let touched: std::collections::BTreeSet<u64> = self
            .parts
            .iter()
            .flat_map(|(start, bytes)| start / 4096..(start + bytes.len() as u64).div_ceil(4096))
            .collect();
        assert!(file.pages().iter().eq(&touched));
        assert_eq!(file.cpus as usize, self.cpus.len());
    }

    /// Does guest-physical `pa` hold `bytes`?
    fn same(&self, pa: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let here = pa + at as u64;
            let part = self
                .parts
                .iter()
                .find(|(start, part)| (*start..start + part.len() as u64).contains(&here));
            let (start, part) = part.expect("a segment outside memory");
            let from = &part[(here - start) as usize..];
            let count = from.len().min(bytes.len() - at);
            assert!(bytes[at..at + count] == from[..count], "memory at {here:#x}");
            at += count;
        }
    }
}

/// Zeros, a pattern, noise, page-table entries, or a note.
fn contents(from: &mut Bytes<'_>, len: usize) -> Vec<u8> {
    let (kind, seed) = (from.number(1), from.number(2));
    match kind % 5 {
        0 => vec![0; len],
        1 => (0..len).map(|at| if at / 4096 % 2 == 0 { 0 } else { seed as u8 }).collect(),
        2 => {
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            };
            (0..len).map(|_| next()).collect()
        }
        3 => {
            let entry = |index: usize| {
                let target = (index as u64 * seed) % 0x40 * 0x1000;
                target
                    | if (index as u64).is_multiple_of(1 + seed % 7) { 3 } else { 0 }
                    | (index as u64 & 8) << 4
            };
            (0..len.div_ceil(8)).flat_map(|index| entry(index).to_le_bytes()).take(len).collect()
        }
        _ => {
            let header = [11u32, (seed as u32) % 64, 0].map(u32::to_le_bytes).concat();
            let text = b"VMCOREINFO\0\0OSRELEASE=6.12\nNUMBER(phys_base)=-4096\n";
            header.iter().chain(text).copied().chain(std::iter::repeat(b'\n')).take(len).collect()
        }
    }
}

fn cpu(from: &mut Bytes<'_>) -> Cpu {
    let modes = from.number(1);
    Cpu {
        cr0: (modes & 1) << 31 | 1,
        cr4: (modes >> 1 & 1) << 4 | (modes >> 2 & 1) << 5 | (modes >> 3 & 1) << 12,
        efer: (modes >> 4 & 1) << 10,
        cr3: from.number(3),
        rip: from.number(8),
        ..Cpu::default()
    }
}
