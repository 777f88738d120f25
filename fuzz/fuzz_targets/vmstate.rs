//! Any bytes to the loader of device sections end in an error or a machine's state, and a section
//! that is read is written back as one that reads the same.

#![no_main]

use godwit::args::{self, Request};
use godwit::config::Config;
use godwit::devices::HostCpu;
use godwit::machine::load::{Loader, read_section, section_kind};
use godwit::stream::{SectionHeader, Step};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

const NAMES: [&str; 19] = [
    "timer",
    "fw_cfg",
    "cpu_common",
    "cpu",
    "kvm-tpr-opt",
    "apic",
    "ioapic",
    "kvmclock",
    "acpi-ged",
    "i8259",
    "i8254",
    "mc146818rtc",
    "serial",
    "globalstate",
    "virtio-mmio@00000000feb00e00/virtio-blk",
    "virtio-mmio@00000000feb00e00/virtio-net",
    "virtio-mmio@00000000feb00e00/virtio-console",
    "virtio-mmio@00000000feb00e00/virtio-rng",
    "virtio-mmio@00000000feb00e00/virtio-balloon",
];

fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let words = "-M microvm,acpi=off -m 16 -smp 1 -nodefaults -display none -serial null -incoming defer";
        match args::parse(words.split(' ').map(Into::into)) {
            Ok(Request::Run(config)) => *config,
            _ => panic!("a sound command line"),
        }
    })
}

/// Reads one section; what is left of `bytes` begins behind it.
fn section<'a>(loader: &mut Loader, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (choice, payload) = bytes.split_first()?;
    let name = NAMES[usize::from(*choice) % NAMES.len()];
    let version = section_kind(name)?.1.version();
    let header = SectionHeader { id: 1, name: name.into(), instance: 0, version };
    if let Ok((section, used)) = read_section(&header, payload, 0, true) {
        assert!(used <= payload.len());
        let mut written = Vec::new();
        section.write(&mut written);
        let (again, all) =
            read_section(&header, &written, 0, true).expect("what was written can be read");
        assert_eq!((&again, all), (&section, written.len()));
        let shown: usize = section.rows().iter().map(|row| row.bytes).sum();
        assert_eq!(shown, written.len());
    }
    match loader.section(&header, payload, 0) {
        Ok(Step::Item((), used)) => Some(&payload[used..]),
        _ => None,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut loader = Loader::new(config(), HostCpu::default());
    let mut rest = bytes;
    while let Some(left) = section(&mut loader, rest) {
        rest = left;
    }
    let _ = (loader.run_state(), loader.validate());
});
