//! Any bytes to `inspect --core` end in a dump that reads back, or in an error that leaves no file.
#![no_main]

use godwit::dump::read::Core;
use godwit::dump::{Codec, Format};
use godwit::inspect::{Options, inspect};
use libfuzzer_sys::fuzz_target;

/// Larger memory is mostly holes: an ELF file has them too, a kdump has a descriptor for each page.
const KDUMP_BYTES_MAX: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (main, out) = (folder.path().join("main"), folder.path().join("core"));
    std::fs::write(&main, bytes).unwrap();
    let mut options = Options { main, block: "microvm.ram".into(), ..Options::default() };
    let (report, _) = inspect(&options);
    let memory = report.blocks.iter().fold(0u64, |sum, block| sum.saturating_add(block.bytes));
    options.core = Some(out.clone());
    options.paging = bytes.len() % 2 == 1;
    if memory < KDUMP_BYTES_MAX && bytes.len() % 3 == 0 {
        options.format = Format::Kdump { codec: Codec::Snappy, raw: true };
    }
    let (_, result) = inspect(&options);
    assert_eq!(result.is_ok(), out.exists());
    assert!(!folder.path().join("core.part").exists());
    if out.exists() && options.format == Format::Elf && out.metadata().unwrap().len() < 1 << 28 {
        Core::parse(&std::fs::read(&out).unwrap()).unwrap();
    }
});
