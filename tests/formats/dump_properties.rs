//! Whatever memory a guest has and wherever it lies, each format holds it.

use crate::common::dump_case::Case;
use godwit::dump::read::{Core, Kdump, flat_to_raw};
use godwit::dump::{self, Cpu, Format, GuestState, Options, Output, Progress, Slices};
use proptest::prelude::*;
use std::io::{Read, Seek, Write};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_format_holds_the_memory_of_any_guest(data in prop::collection::vec(any::<u8>(), 20..90)) {
        Case::new(&data).check();
    }

    #[test]
    fn readers_answer_to_any_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
        read(&data);
    }

    #[test]
    fn readers_answer_to_damaged_files(at in 0usize..12_000, with in any::<u8>(), cut in 0usize..12_000) {
        for format in Format::ALL {
            let mut file = small(format);
            let last = file.len() - 1;
            file[at.min(last)] ^= with;
            read(&file);
            file.truncate(cut);
            read(&file);
        }
    }
}

fn read(file: &[u8]) {
    if let Ok(core) = Core::parse(file) {
        for load in &core.loads {
            core.bytes(load);
        }
    }
    if let Ok(raw) = flat_to_raw(file) {
        read_kdump(&raw);
    }
    read_kdump(file);
}

fn read_kdump(file: &[u8]) {
    if let Ok(kdump) = Kdump::parse(file) {
        for index in 0..kdump.pages().len().min(100) {
            let _ = kdump.page(index);
        }
    }
}

/// A guest of 8 KiB.
fn small(format: Format) -> Vec<u8> {
    let bytes: Vec<u8> = (0..8192u32).map(|at| (at / 7) as u8).collect();
    let view = Slices::new([(0x3000, &bytes[..])]);
    dumped(
        &GuestState { view: &view, cpus: &[Cpu::default()], vmcoreinfo: None },
        &Options::new(format),
    )
}

fn dumped(guest: &GuestState<'_>, options: &Options) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    let output = Output::new(file.try_clone().unwrap()).unwrap();
    dump::write(guest, options, output, &Progress::default()).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Page tables that map one page at each of many addresses, none beside the other.
fn scattered(pages: usize) -> (Vec<u8>, Cpu) {
    let tables = pages.div_ceil(256);
    let mut memory = vec![0u8; (4 + tables) * 4096];
    let mut entry = |table: usize, index: usize, value: u64| {
        let at = table * 4096 + index * 8;
        memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    entry(1, 0, 0x2003);
    for table in 0..tables {
        entry(2, table / 512, 0x3003);
        assert!(table < 512, "one page directory");
        entry(3, table, (4 + table as u64) << 12 | 3);
    }
    for page in 0..pages {
        entry(4 + page / 256, page % 256 * 2, 0x1003);
    }
    (memory, Cpu { cr0: 1 << 31 | 1, cr4: 1 << 5, efer: 1 << 10, cr3: 0x1000, ..Cpu::default() })
}

#[test]
fn more_than_65534_segments_are_counted_in_section_zero() {
    for pages in [65_533, 65_534, 65_535, 70_000] {
        let (memory, cpu) = scattered(pages);
        let view = Slices::new([(0, &memory[..])]);
        let cpus = [cpu];
        let guest = GuestState { view: &view, cpus: &cpus, vmcoreinfo: None };
        let file = dumped(&guest, &Options { paging: true, ..Options::new(Format::Elf) });
        let core = Core::parse(&file).unwrap();
        assert_eq!(core.loads.len(), pages);
        let counted_outside = u16::from_le_bytes([file[56], file[57]]) == 0xffff;
        assert_eq!(counted_outside, pages + 1 >= 65_535);
        assert!(core.loads.iter().all(|load| core.bytes(load) == &memory[0x1000..0x2000]));
        let has_readelf = std::process::Command::new("readelf").arg("--version").output().is_ok();
        if pages == 70_000 && has_readelf {
            let mut named = tempfile::NamedTempFile::new().unwrap();
            named.write_all(&file).unwrap();
            let said = std::process::Command::new("readelf")
                .arg("-hlW")
                .arg(named.path())
                .output()
                .unwrap();
            assert!(said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
            assert!(String::from_utf8_lossy(&said.stdout).contains("65535 (70001)"));
        }
    }
}

#[test]
fn zeros_are_holes_in_a_file() {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = vec![0; 32 << 20];
    bytes[20 << 20] = 1;
    let view = Slices::new([(0, &bytes[..])]);
    let guest = GuestState { view: &view, cpus: &[Cpu::default()], vmcoreinfo: None };
    let file = tempfile::tempfile().unwrap();
    let output = Output::new(file.try_clone().unwrap()).unwrap();
    dump::write(&guest, &Options::new(Format::Elf), output, &Progress::default()).unwrap();
    let metadata = file.metadata().unwrap();
    assert!(
        metadata.len() > 32 << 20 && metadata.blocks() * 512 < 256 << 10,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn the_nth_write_may_fail_in_any_format() {
    // A file-size limit would stop the whole process; a small file system says ENOSPC at some
    // write.
    let bytes: Vec<u8> =
        (0..1 << 20u32).map(|at: u32| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    let view = Slices::new([(0, &bytes[..])]);
    let guest = GuestState { view: &view, cpus: &[Cpu::default()], vmcoreinfo: None };
    for format in Format::ALL {
        for room in [0, 1, 4096, 70_000] {
            if matches!(format, Format::Kdump { raw: true, .. }) {
                continue;
            }
            let (mut reader, writer) = std::io::pipe().unwrap();
            let limited = std::thread::spawn(move || {
                let mut taken = vec![0; room];
                let _ = reader.read_exact(&mut taken);
            });
            let output =
                Output::new(std::fs::File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
            let error = dump::write(&guest, &Options::new(format), output, &Progress::default())
                .unwrap_err();
            assert!(
                error.to_string().ends_with("Broken pipe"),
                "{format} with room for {room}: {error}"
            );
            limited.join().unwrap();
        }
    }
}
