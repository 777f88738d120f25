//! Our dumps beside those that QEMU 10.0.2 made of the same guests.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use godwit::dump::read::{Core, Kdump, Load, Note, cpu, flat_to_raw, notes};
use godwit::dump::{
    self, Codec, Cpu, Filter, Format, GuestState, Options, Output, Progress, Slices, VmCoreInfo,
};

fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/dump").join(name);
    zstd::stream::decode_all(File::open(path).unwrap()).unwrap()
}

/// The notes of a 64-bit core of which only the head is there.
fn head_notes(file: &[u8]) -> (Vec<Note>, Vec<u8>) {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let note = word(32);
    let (offset, size) = (word(note + 8), word(note + 32));
    let bytes = file[offset..offset + size].to_vec();
    (notes(&bytes).unwrap(), bytes)
}

fn cpus(notes: &[Note], long_mode: bool) -> Vec<Cpu> {
    notes
        .iter()
        .filter(|note| note.name == "QEMU")
        .map(|note| cpu(note, long_mode).unwrap())
        .collect()
}

fn joined(loads: &[Load]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for load in loads {
        match out.last_mut() {
            Some(last) if last.1 == load.pa => last.1 += load.memory_bytes,
            _ => out.push((load.pa, load.pa + load.memory_bytes)),
        }
    }
    out
}

fn dump(guest: &GuestState<'_>, options: &Options) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    let output = Output::new(file.try_clone().unwrap()).unwrap();
    let report = dump::write(guest, options, output, &Progress::default()).unwrap();
    assert!(report.note_refused.is_none(), "{:?}", report.note_refused);
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The guest of the `tiny64` recordings: memory from the recorded core, registers from its notes.
fn with_tiny64(test: impl FnOnce(&GuestState<'_>, &Core<'_>)) {
    let recorded = vector("tiny64-elf.core.zst");
    let recorded = Core::parse(&recorded).unwrap();
    let view = Slices::new(recorded.loads.iter().map(|load| (load.pa, recorded.bytes(load))));
    let cpus = cpus(&recorded.notes, true);
    let note_bytes = 12 + 12 + 112;
    let vmcoreinfo = Some(VmCoreInfo { guest_format: 1, size: note_bytes, address: 0x11_0000 });
    test(&GuestState { view: &view, cpus: &cpus, vmcoreinfo }, &recorded);
}

fn same_memory(ours: &Core<'_>, theirs: &Core<'_>) {
    assert_eq!(joined(&ours.loads), joined(&theirs.loads));
    for load in &theirs.loads {
        let bytes =
            ours.physical(load.pa, load.file_bytes).expect("memory that the recorded core has");
        assert!(bytes == theirs.bytes(load), "memory from {:#x} differs", load.pa);
    }
}

#[test]
fn tiny64_elf_holds_what_the_recorded_core_holds() {
    with_tiny64(|guest, recorded| {
        let ours = dump(guest, &Options::new(Format::Elf));
        let ours = Core::parse(&ours).unwrap();
        assert_eq!(ours.notes, recorded.notes);
        assert_eq!((ours.class, ours.machine), (recorded.class, recorded.machine));
        assert_eq!(
            (ours.header_bytes, ours.program_headers_at),
            (64, 64),
            "where makedumpfile looks"
        );
        assert!(
            ours.loads
                .iter()
                .all(|load| load.va == load.pa && load.file_bytes == load.memory_bytes)
        );
        same_memory(&ours, recorded);
    });
}

#[test]
fn tiny64_cuts_are_byte_exact() {
    let cuts = [
        ("", 2_088_960, 20_480),
        ("-unaligned", 2_089_251, 12_033),
        ("-end", 16_775_168, 268_435_456),
    ];
    with_tiny64(|guest, _| {
        for (name, begin, length) in cuts {
            let recorded = vector(&format!("tiny64-elf-filter{name}.core.zst"));
            let recorded = Core::parse(&recorded).unwrap();
            let filter = Some(Filter { begin, length });
            let ours = dump(guest, &Options { filter, ..Options::new(Format::Elf) });
            let ours = Core::parse(&ours).unwrap();
            assert_eq!(ours.notes, recorded.notes);
            same_memory(&ours, &recorded);
        }
    });
}

/// The address that the peer should have written: it sets the sign bits of the low half too.
fn canonical(va: u64) -> u64 {
    if va >> 48 == 0xffff && va >> 47 & 1 == 0 { va & 0xffff_ffff_ffff } else { va }
}

#[test]
fn tiny64_paging_shows_each_mapping_where_it_belongs() {
    with_tiny64(|guest, _| {
        let ours = dump(guest, &Options { paging: true, ..Options::new(Format::Elf) });
        let ours = Core::parse(&ours).unwrap();
        let recorded = vector("tiny64-elf-paging.head.zst");
        let at = |at: usize| u64::from_le_bytes(recorded[at..at + 8].try_into().unwrap());
        let count = u16::from_le_bytes(recorded[56..58].try_into().unwrap()) as usize;
        assert_eq!(count, 21);
        for index in 1..count {
            let header = at(32) as usize + 56 * index;
            let (va, pa, bytes) = (canonical(at(header + 16)), at(header + 24), at(header + 32));
            let found = ours.loads.iter().any(|load| {
                load.va <= va
                    && va - load.va == pa.wrapping_sub(load.pa)
                    && va - load.va + bytes <= load.file_bytes
            });
            assert!(found, "{bytes:#x} bytes at {va:#x} that show {pa:#x}");
        }
        // What was cut there at the border of RAM blocks is whole here, and the ROM's mapping is
        // kept.
        let whole = |va, pa, bytes| {
            ours.loads.iter().any(|load| (load.va, load.pa, load.file_bytes) == (va, pa, bytes))
        };
        assert!(whole(0xffff_8880_0000_0000, 0, 16 << 20));
        assert!(whole(0, 0, 8 << 20));
        assert!(whole(0xffff_0000, 0xffff_0000, 0x1_0000));
        assert!(ours.loads.is_sorted_by_key(|load| load.pa));
    });
}

#[test]
fn tiny64_paging_is_cut_with_its_virtual_addresses() {
    with_tiny64(|guest, _| {
        let recorded = vector("tiny64-elf-filter-paging.core.zst");
        let recorded = Core::parse(&recorded).unwrap();
        let filter = Some(Filter { begin: 3_143_680, length: 16_384 });
        let ours = dump(guest, &Options { filter, paging: true, ..Options::new(Format::Elf) });
        let ours = Core::parse(&ours).unwrap();
        let mut expected: Vec<_> = recorded
            .loads
            .iter()
            .map(|load| (load.pa, canonical(load.va), load.memory_bytes))
            .collect();
        expected.sort();
        let found: Vec<_> =
            ours.loads.iter().map(|load| (load.pa, load.va, load.memory_bytes)).collect();
        assert_eq!(found, expected);
        for (ours_load, load) in
            ours.loads.iter().map(|load| (load, ours.physical(load.pa, load.file_bytes)))
        {
            assert_eq!(
                load.unwrap(),
                recorded.physical(ours_load.pa, ours_load.file_bytes).unwrap()
            );
        }
    });
}

#[test]
fn tiny64_kdump_holds_the_recorded_pages_in_every_codec() {
    let file = vector("tiny64-kdump-raw-zlib.core.zst");
    let recorded = Kdump::parse(&file).unwrap();
    with_tiny64(|guest, _| {
        for codec in [Codec::Zlib, Codec::Lzo, Codec::Snappy, Codec::Zstd] {
            let raw = dump(guest, &Options::new(Format::Kdump { codec, raw: true }));
            let flat = dump(guest, &Options::new(Format::Kdump { codec, raw: false }));
            assert!(flat_to_raw(&flat).unwrap() == raw, "both forms of {codec:?} are one image");
            let ours = Kdump::parse(&raw).unwrap();
            assert_eq!(ours.pages(), recorded.pages());
            for index in 0..ours.pages().len() {
                assert!(
                    ours.page(index).unwrap() == recorded.page(index).unwrap(),
                    "{codec:?} page {index}"
                );
            }
            assert_eq!(ours.notes, recorded.notes);
            assert_eq!(ours.vmcoreinfo, recorded.vmcoreinfo);
            assert_eq!((ours.cpus, ours.pages_end), (recorded.cpus, recorded.pages_end));
            assert_eq!(ours.phys_base, -1_048_576, "decimal, signed");
            assert_eq!(ours.utsname, ["Linux", "(none)", "godwit-tiny", "#1", "x86_64", ""]);
            if codec == Codec::Zlib {
                assert!(
                    raw.len() <= file.len(),
                    "{} bytes, the peer needs {}",
                    raw.len(),
                    file.len()
                );
                let fixed: Vec<_> =
                    (0..12).chain(402..4096).filter(|at| raw[*at] != file[*at]).collect();
                assert_eq!(fixed, [] as [usize; 0], "bytes of the header besides utsname");
            }
        }
    });
}

#[test]
fn notes_of_recorded_guests_are_made_again_from_their_registers() {
    let names = [
        ("tiny-real", false),
        ("tiny-prot", false),
        ("linux-6.12", true),
        ("linux-6.1", true),
        ("linux-6.1-novmcoreinfo", true),
    ];
    for (name, long_mode) in names {
        let recorded = vector(&format!("{name}-elf.head.zst"));
        let (notes, bytes) = head_notes(&recorded);
        let cpus = cpus(&notes, long_mode);
        // The guest's note, where the recording has one, is the memory of this guest.
        let ours_bytes: usize = (20 + if long_mode { 336 } else { 144 } + 460) * cpus.len();
        let mut memory = bytes[ours_bytes..].to_vec();
        let vmcoreinfo = (!memory.is_empty()).then_some(VmCoreInfo {
            guest_format: 1,
            size: memory.len() as u32,
            address: 0,
        });
        memory.resize(8192, 0);
        let top = [0; 4096];
        let view = Slices::new([(0, &memory[..]), (0xffff_f000, &top[..])]);
        let guest = GuestState { view: &view, cpus: &cpus, vmcoreinfo };
        let ours = dump(&guest, &Options::new(Format::Elf));
        assert_eq!(ours[16..20], recorded[16..20], "{name}: type and machine");
        let (_, ours) = head_notes(&ours);
        assert!(ours == bytes, "{name}: notes differ");
    }
}

#[test]
fn phys_base_of_a_moved_kernel_is_signed() {
    for name in ["linux-6.12", "linux-6.1"] {
        let head = vector(&format!("{name}-kdump-raw-zlib.head.zst"));
        let text_at = u64::from_le_bytes(head[4096 + 32..4096 + 40].try_into().unwrap()) as usize;
        let text_len = u64::from_le_bytes(head[4096 + 40..4096 + 48].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&head[text_at..text_at + text_len]).unwrap();
        let said = text.lines().find_map(|line| line.strip_prefix("NUMBER(phys_base)=")).unwrap();
        let note: Vec<u8> = [11u32.to_le_bytes(), (text_len as u32).to_le_bytes(), [0; 4]].concat();
        let mut memory = [&note[..], b"VMCOREINFO\0\0", text.as_bytes()].concat();
        let size = memory.len().next_multiple_of(4) as u32;
        memory.resize(8192, 0);
        let view = Slices::new([(0, &memory[..])]);
        let cpus = [Cpu { efer: 0x500, ..Cpu::default() }];
        let vmcoreinfo = Some(VmCoreInfo { guest_format: 1, size, address: 0 });
        let guest = GuestState { view: &view, cpus: &cpus, vmcoreinfo };
        let ours = dump(&guest, &Options::new(Format::Kdump { codec: Codec::Zlib, raw: true }));
        let ours = Kdump::parse(&ours).unwrap();
        assert_eq!(ours.phys_base.to_string(), said, "{name}");
        assert_eq!(ours.vmcoreinfo, text.as_bytes());
        assert!(text.contains(&format!("OSRELEASE={}\n", ours.utsname[2])));
    }
}
