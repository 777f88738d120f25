//! Damaged and absurd streams end in an error or a machine's state: no panic, no memory for what is
//! only declared.

use crate::common::vectors::{self, Vector};
use godwit::args::{self, Request};
use godwit::devices::HostCpu;
use godwit::machine::load::{Known, Loader};
use godwit::stream::{
    Configuration, Item, RamWriter, Reader, Record, SectionHeader, SectionKind, Step,
};

fn loader() -> Loader {
    let words = "-M microvm,acpi=off -m 16 -nodefaults -display none -serial null -incoming defer";
    match args::parse(words.split(' ').map(Into::into)) {
        Ok(Request::Run(config)) => Loader::new(&config, HostCpu::default()),
        _ => panic!("a sound command line"),
    }
}

/// Reads as a machine would, as far as it goes; true if it came to a state.
fn load(bytes: &[u8]) -> bool {
    let (mut loader, mut reader) = (loader(), Reader::new(Known, Vec::new()));
    loop {
        let at = reader.offset() as usize;
        let Some(input) = bytes.get(at..) else { return false };
        match reader.next(input) {
            Ok(Step::Item(Item::Device { header, .. }, _)) => {
                if loader.section(&header, &bytes[at..], at as u64).is_err() {
                    return false;
                }
            }
            Ok(Step::Item(Item::EndOfStates, _)) => break,
            Ok(Step::Item(..)) => {}
            Ok(Step::Need(_)) | Err(_) => return false,
        }
    }
    loader.validate().is_ok()
}

#[test]
fn every_damaged_byte_of_device_state_is_survived() {
    for vector in vectors::all().iter().filter(|vector| vector.name.starts_with("kvm")) {
        let bytes = vector.main();
        // The devices follow the last page; all of a virtio device would take long.
        let start = bytes.windows(5).rposition(|w| w == b"timer").unwrap() - 6;
        let head = &bytes[..start];
        let mut tail = bytes[start..].to_vec();
        let header = head_without_pages(head);
        for at in (0..tail.len().min(6000)).chain((6000..tail.len()).step_by(997)) {
            let kept = tail[at];
            for value in [0, 5, 0x7e, 0xff, kept ^ 1] {
                tail[at] = value;
                load(&[header.as_slice(), &tail].concat());
            }
            tail[at] = kept;
        }
    }
}

/// A stream's beginning with a block list and no pages, in place of `head`.
fn head_without_pages(head: &[u8]) -> Vec<u8> {
    assert!(head.starts_with(b"QEVM"));
    let mut out = Vec::new();
    Configuration { machine: "microvm".into(), ..Configuration::default() }.write(&mut out);
    let ram = SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 };
    ram.write(SectionKind::Start, &mut out);
    RamWriter::block_list(&mut out, [("microvm.ram", 16 << 20)]);
    RamWriter::end(&mut out);
    ram.write_footer(&mut out);
    out
}

#[test]
fn undamaged_device_state_comes_to_a_machine() {
    let bytes = Vector::named("kvm-acpi-off-16m").main();
    assert!(load(&bytes));
}

#[test]
fn endless_zero_records_cost_nothing() {
    let mut head = Vec::new();
    Configuration { machine: "microvm".into(), ..Configuration::default() }.write(&mut head);
    SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 }
        .write(SectionKind::Start, &mut head);
    RamWriter::block_list(&mut head, [("microvm.ram", !0xfff)]);
    let mut records = Vec::new();
    let mut ram = RamWriter::default();
    ram.zero(&mut head, 0, "microvm.ram", 0);
    for page in 0..4096 {
        ram.zero(&mut records, 0, "microvm.ram", page << 12);
    }
    // The first record names the block; the rest are nine bytes each.
    let records = &records[records.len() - 4096 * 9..];
    let mut reader = Reader::new(Known, Vec::new());
    while let Step::Item(..) = reader.next(&head[reader.offset() as usize..]).unwrap() {}
    let mut batch = Vec::new();
    for _ in 0..1000 {
        batch.clear();
        let used = reader.ram_batch(records, usize::MAX, &mut batch).unwrap();
        assert_eq!((used, batch.len()), (records.len(), 4096));
        assert!(batch.iter().all(|record| matches!(record, Record::Zero { .. })));
    }
}
