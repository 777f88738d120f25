//! The built-in guest under `godwit run`: it counts as long as nothing is wrong, and says what is
//! wrong when we make it so.
//!
//! Guest RAM is a shared file, so that the test can reach into it as a faulty migration would.

use crate::common::is_blocked_in;
use crate::common::vm::{Launch, PATIENCE, Vm};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// A page in the middle of every working set used here.
const VICTIM: u64 = 77;

struct Guest {
    vm: Vm,
    ram: File,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start(append: &str, processors: u8) -> Guest {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let ram = folder.path().join("ram");
        let file = File::options().read(true).write(true).create_new(true).open(&ram).unwrap();
        file.set_len(64 << 20).unwrap();
        let object =
            format!("memory-backend-file,id=m,size=64M,mem-path={},share=on", ram.display());
        let vm = Launch::new(folder.path(), "vm")
            .guest(append)
            .processors(processors)
            .words(&["-M", "microvm,acpi=off,memory-backend=m", "-object", &object])
            .start();
        Guest { vm, ram: file, _folder: folder }
    }

    fn said(&self) -> String {
        self.vm.serial()
    }

    /// Waits for `enough`; gives out all that was said.
    fn wait(&mut self, what: &str, enough: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let said = self.said();
            if enough(&said) {
                return said;
            }
            assert!(self.vm.child.try_wait().unwrap().is_none(), "the machine ended: {said}");
            assert!(begin.elapsed() < PATIENCE, "waited for {what}: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Until every processor has told of `more` further sweeps.
    fn sweeps(&mut self, processors: u8, more: usize) -> String {
        let lines = |said: &str, cpu: u8| match processors {
            1 => said.lines().filter(|l| l.starts_with("sweep ")).count(),
            _ => said.lines().filter(|l| l.starts_with(&format!("cpu {cpu} sweep "))).count(),
        };
        let before: Vec<usize> = (0..processors).map(|cpu| lines(&self.said(), cpu)).collect();
        self.wait("sweeps", |said| {
            said.contains("CORRUPT")
                || (0..processors).all(|cpu| lines(said, cpu) >= before[cpu as usize] + more)
        })
    }

    fn page(&self, page: u64) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        self.ram.read_exact_at(&mut bytes, godwit::builtin::SET_ADDRESS + page * 4096).unwrap();
        bytes
    }

    fn write(&self, page: u64, offset: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, godwit::builtin::SET_ADDRESS + page * 4096 + offset).unwrap();
    }

    fn corrupt_line(&mut self) -> String {
        let said = self.wait("CORRUPT", |said| {
            said.lines().any(|line| line.starts_with("CORRUPT")) && said.ends_with('\n')
        });
        said.lines().find(|line| line.starts_with("CORRUPT")).unwrap().into()
    }
}

/// Version and page number of a stamp in a CORRUPT line, after the word `which`.
fn stamp(line: &str, which: &str) -> (u32, u32) {
    let mut words = line.split(' ').skip_while(|word| *word != which);
    let stamp = u64::from_str_radix(words.nth(1).unwrap(), 16).unwrap();
    ((stamp >> 32) as u32, (stamp as u32).wrapping_sub(0x4000_0000))
}

#[test]
fn every_pattern_counts_on_and_finds_nothing_wrong() {
    for (append, processors) in [
        ("ws=2", 1),
        ("ws=2 pattern=random bytes=64", 1),
        ("ws=1 pattern=hot", 1),
        ("ws=1 pattern=zipf", 1),
        ("ws=3 pattern=random fill=text", 2),
        ("ws=1 rate=2000", 2),
    ] {
        let mut guest = Guest::start(append, processors);
        let said = guest.sweeps(processors, 3);
        assert!(!said.contains("CORRUPT") && !said.contains("EXCEPTION"), "{append}: {said}");
        let hello = format!("godwit guest: ws {} MiB, processors {processors}", &append[3..4]);
        assert!(said.starts_with(&hello), "{append}: {said}");
    }
}

#[test]
fn a_page_of_an_older_version_is_named() {
    for (append, processors) in [
        ("ws=1", 1),
        ("ws=1 pattern=random", 1),
        ("ws=1 pattern=hot", 1),
        ("ws=1 pattern=zipf", 1),
        ("ws=1 pattern=random", 2),
    ] {
        let mut guest = Guest::start(append, processors);
        guest.sweeps(processors, 1);
        let old = guest.page(VICTIM);
        guest.sweeps(processors, 2);
        guest.write(VICTIM, 0, &old);
        let line = guest.corrupt_line();
        let (expected, found) = (stamp(&line, "expected"), stamp(&line, "found"));
        assert_eq!((expected.1, found.1), (VICTIM as u32, VICTIM as u32), "{append}: {line}");
        assert!(found.0 < expected.0, "{append}: {line}");
    }
}

#[test]
fn a_page_that_went_back_one_version_is_noticed() {
    // A slow guest is stopped between two writes of the page by the clock: a sweep of 256 pages
    // takes two seconds.
    let mut guest = Guest::start("ws=1 rate=128", 1);
    guest.wait("the guest", |said| said.contains("processors"));
    let fresh = guest.page(VICTIM);
    let version = |bytes: &[u8; PAGE_BYTES]| u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let begin = Instant::now();
    while version(&guest.page(VICTIM)) != version(&fresh) + 1 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    guest.write(VICTIM, 0, &fresh);
    let line = guest.corrupt_line();
    assert_eq!(stamp(&line, "expected").0, stamp(&line, "found").0 + 1, "{line}");
}

#[test]
fn lost_torn_and_foreign_pages_are_noticed() {
    /// What is done to the victim, given its contents of a while ago.
    type Spoil = fn(&Guest, &[u8; PAGE_BYTES]);
    let sabotage: [(&str, Spoil); 3] = [
        ("lost", |guest, _| guest.write(VICTIM, 0, &[0; PAGE_BYTES])),
        ("torn", |guest, old| guest.write(VICTIM, 2048, &old[2048..])),
        ("foreign", |guest, _| guest.write(VICTIM, 0, &guest.page(VICTIM + 1))),
    ];
    for (name, spoil) in sabotage {
        let mut guest = Guest::start("ws=1 bytes=64", 1);
        guest.sweeps(1, 1);
        let old = guest.page(VICTIM);
        guest.sweeps(1, 2);
        spoil(&guest, &old);
        let line = guest.corrupt_line();
        assert!(line.starts_with(&format!("CORRUPT page {VICTIM} at ")), "{name}: {line}");
        let offset = if name == "torn" { "at 2048 " } else { "at 0 " };
        assert!(line.contains(offset), "{name}: {line}");
        let vcpu = guest.vm.ask("query-cpus-fast", json!({}))[0]["thread-id"].as_i64().unwrap();
        let process = guest.vm.pid();
        let halted = |_: &str| is_blocked_in(process, vcpu as i32, libc::SYS_ioctl);
        let said = guest.wait("the guest to halt", halted);
        assert!(said.trim_end().ends_with(&line), "{name}: it stopped there: {said}");
    }
}

#[test]
fn a_working_set_larger_than_ram_is_refused_by_the_guest() {
    let mut guest = Guest::start("ws=100", 1);
    let said = guest.wait("a refusal", |said| said.ends_with('\n'));
    assert_eq!(said, "godwit guest: ws= is too large, RAM has room for 60 MiB\n");
}
