//! Snapshots that hold what differs from another one, of a guest that is a thread writing memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::capabilities::Capability;
use super::fake_guest::{FREE, FakeGuest, RAM_BYTES};
use super::guest::Migratable;
use super::incoming::{Arrival, Incoming, Origin};
use super::mapped_tests::{assert_same, save_into, settings};
use super::outgoing::{Destination, Source, blocks_of};
use super::progress::{Counters, Progress};
use super::status::Status;
use crate::io::{Connection, Waker};
use crate::machine::RunState;
use crate::memory::PAGE_BYTES;
use crate::snapshot::{self, Save};

const BACKGROUND: &[Capability] = &[Capability::BackgroundSnapshot];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A guest, stopped, and the base that was made of it.
    fn base(&self) -> Arc<FakeGuest> {
        let guest = FakeGuest::busy();
        let file = File::create(self.at("base")).unwrap();
        save_into(&guest, &file, &[Capability::MappedRam], json!({"max-bandwidth": 0}));
        guest
    }

    /// An increment of what is in the guest now.
    fn save(&self, guest: &Arc<FakeGuest>, name: &str, base: &str) -> Arc<Progress> {
        self.save_with(guest, name, base, &[])
    }

    fn save_with(
        &self,
        guest: &Arc<FakeGuest>,
        name: &str,
        base: &str,
        capabilities: &[Capability],
    ) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        assert!(progress.life.enter(Status::Setup));
        let source = Source {
            guest: guest.clone(),
            settings: settings(capabilities, json!({"max-bandwidth": 0})),
            progress: progress.clone(),
            waker: Waker::new(),
            go_on: Arc::default(),
            uuid: None,
        };
        let save = Save::begin(&self.at(name), &self.at(base), &blocks_of(&guest.ram)).unwrap();
        source.run(Destination::Increment(Box::new(save)));
        progress
    }

    /// A base and two increments on it, and the guest as it is in the last.
    fn chain(&self) -> Arc<FakeGuest> {
        let guest = self.base();
        for (name, base) in [("first", "base"), ("second", "first")] {
            change(&guest, name.len() as u64);
            let progress = self.save(&guest, name, base);
            assert_eq!(progress.status(), Status::Completed, "{:?}", progress.figures().error);
        }
        guest
    }

    fn load(&self, name: &str) -> Result<Arc<FakeGuest>, String> {
        load(&self.at(name))
    }

    /// What the file says when a bit of it is another.
    fn flipped(&self, name: &str, byte: u64) -> String {
        let file = File::options().read(true).write(true).open(self.at(name)).unwrap();
        let mut before = [0];
        file.read_exact_at(&mut before, byte).unwrap();
        file.write_all_at(&[before[0] ^ 1 << (byte % 8)], byte).unwrap();
        let said = self.load("second").err().unwrap_or_else(|| panic!("{name}, byte {byte}"));
        file.write_all_at(&before, byte).unwrap();
        said
    }
}

fn load(path: &Path) -> Result<Arc<FakeGuest>, String> {
    let guest = FakeGuest::new(RunState::InMigrate);
    guest.ram.write(5000 * PAGE_BYTES, &[7; 8192]).unwrap();
    let target = Incoming {
        guest: guest.clone(),
        settings: settings(&[], json!({})),
        arrival: Arc::new(Arrival::default()),
        events: Arc::new(|_| {}),
        waker: Waker::new(),
        autostart: Arc::new(|| false),
        arrived: Arc::new(|_| {}),
        uuid: None,
        file_name: Some(path.to_owned()),
    };
    let connection = Connection::from_fd(File::open(path).unwrap().into());
    let result = target.run(Origin::Open(connection)).map_err(|error| error.to_string());
    let expected = if result.is_ok() { RunState::Paused } else { RunState::InMigrate };
    assert_eq!(guest.run_state(), expected, "a guest whose snapshot is broken does not run");
    result.map(|()| guest)
}

/// Small changes, whole pages, zeros, and a page that gets its old bytes back.
fn change(guest: &FakeGuest, seed: u64) {
    for page in 100..200 {
        guest.ram.write(page * PAGE_BYTES + 8 * seed, &[seed as u8; 3]).unwrap();
    }
    let mut random = seed;
    for page in 3100..3120 {
        let words = (0..512).flat_map(|_| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            random.to_be_bytes()
        });
        guest.ram.write(page * PAGE_BYTES, &words.collect::<Vec<u8>>()).unwrap();
    }
    for page in 300 + seed..320 {
        guest.ram.write(page * PAGE_BYTES, &[0; 4096]).unwrap();
    }
    let page = 3100 + seed;
    guest.ram.write(page * PAGE_BYTES, &[0; 4096]).unwrap();
}

fn bytes_of(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

#[test]
fn a_chain_of_increments_is_loaded_and_holds_only_what_differs() {
    let folder = Folder::new();
    let guest = folder.chain();
    let progress = folder.save(&guest, "third", "second");
    let loaded = folder.load("third").unwrap();
    assert_same(&guest, &loaded);
    assert_eq!(guest.count(), loaded.count());
    // 20 whole pages less one, and 100 of which a few bytes differ.
    let second = bytes_of(&folder.at("second"));
    assert!((19 * 4096..40 * 4096).contains(&second), "{second}");
    // Nothing differs.
    assert!(bytes_of(&folder.at("third")) < 4096);
    let counters = &progress.counters;
    let pages = [&counters.normal, &counters.deltas, &counters.duplicate].map(Counters::get);
    assert_eq!(pages, [0; 3]);
    // They may be moved together.
    let moved = folder.at("moved");
    std::fs::create_dir(&moved).unwrap();
    for name in ["base", "first", "second", "third"] {
        std::fs::rename(folder.at(name), moved.join(name)).unwrap();
    }
    assert_same(&guest, &load(&moved.join("third")).unwrap());
}

#[test]
fn a_guest_that_writes_meanwhile_is_saved_as_it_is_at_the_end_and_in_the_background() {
    let folder = Folder::new();
    let guest = folder.base();
    guest.cont().unwrap();
    let progress = folder.save(&guest, "first", "base");
    assert_eq!(progress.status(), Status::Completed, "{:?}", progress.figures().error);
    let loaded = folder.load("first").unwrap();
    assert_same(&guest, &loaded);
    assert_eq!(guest.count(), loaded.count());

    change(&guest, 5);
    guest.cont().unwrap();
    let progress = folder.save_with(&guest, "second", "first", BACKGROUND);
    assert_eq!(progress.status(), Status::Completed, "{:?}", progress.figures().error);
    assert_eq!(guest.run_state(), RunState::Running);
    guest.stop(RunState::Paused).unwrap();
    let loaded = folder.load("second").unwrap();
    assert!(loaded.count() <= guest.count());
    let mut page = [0; 4096];
    loaded.ram.read(3110 * PAGE_BYTES, &mut page).unwrap();
    assert_ne!(page, [0; 4096]);
    // The same state, saved once more where nothing writes, is the same memory.
    let progress = folder.save_with(&loaded, "third", "base", BACKGROUND);
    assert_eq!(progress.status(), Status::Completed, "{:?}", progress.figures().error);
    assert_same(&loaded, &folder.load("third").unwrap());
}

#[test]
fn a_flipped_bit_anywhere_in_a_chain_is_found_by_the_files_name() {
    let folder = Folder::new();
    folder.chain();
    for name in ["base", "first", "second"] {
        let bytes = bytes_of(&folder.at(name));
        let file = folder.at(name);
        // Without its first bytes the snapshot itself is taken for a stream.
        let ends = [9, 13, 20, 40, 50, 60, 70, bytes - 1, bytes - 300];
        let within = (1..6).map(|part| bytes / 6 * part);
        for byte in ends.into_iter().chain(within) {
            let said = folder.flipped(name, byte);
            assert!(said.contains(file.to_str().unwrap()), "{name}, byte {byte}: {said}");
        }
    }
    folder.load("second").unwrap();
}

#[test]
fn files_that_are_missing_cut_or_others_are_named() {
    let folder = Folder::new();
    let guest = folder.chain();
    let says = |name: &str, why: &str| {
        let said = folder.load("second").err().unwrap();
        let file = folder.at(name);
        assert!(said.contains(file.to_str().unwrap()) && said.contains(why), "{name}: {said}");
    };
    for name in ["base", "first"] {
        let (file, aside) = (folder.at(name), folder.at("aside"));
        std::fs::rename(&file, &aside).unwrap();
        says(name, "No such file");
        std::fs::create_dir(&file).unwrap();
        says(name, "is no regular file");
        std::fs::remove_dir(&file).unwrap();
        // A pipe is not waited for.
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, 0o600.into()).unwrap();
        says(name, "is no regular file");
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        says(name, "is no snapshot");
        std::fs::remove_file(&file).unwrap();
        // In a circle: the file's own name leads to the one that builds on it.
        std::os::unix::fs::symlink(folder.at("second"), &file).unwrap();
        says(name, "needs its base");
        std::fs::remove_file(&file).unwrap();
        std::fs::copy(&aside, &file).unwrap();
        let whole = bytes_of(&file);
        for bytes in [whole - 1, whole / 2, 64, 63, 8] {
            File::options().write(true).open(&file).unwrap().set_len(bytes).unwrap();
            assert!(folder.load("second").err().unwrap().contains(file.to_str().unwrap()));
        }
        std::fs::rename(&aside, &file).unwrap();
    }
    // Written anew: another snapshot, of the same guest and size.
    change(&guest, 7);
    folder.save(&guest, "first", "base");
    says("first", "another snapshot than the one it was built upon");
    let file = File::create(folder.at("base")).unwrap();
    save_into(&guest, &file, &[Capability::MappedRam], json!({"max-bandwidth": 0}));
    let said = folder.load("first").err().unwrap();
    assert!(said.contains("checksum") && said.contains("base"), "{said}");
}

#[test]
fn a_base_that_is_none_is_refused_before_anything_is_written() {
    let folder = Folder::new();
    let guest = folder.chain();
    std::fs::hard_link(folder.at("first"), folder.at("linked")).unwrap();
    std::fs::write(folder.at("text"), "not a snapshot").unwrap();
    let files = || std::fs::read_dir(folder.0.path()).unwrap().count();
    let before = files();
    let save = |name: &str, base: &str, blocks: &[(String, u64)]| {
        let save = Save::begin(&folder.at(name), &folder.at(base), blocks);
        let said = save.err().unwrap_or_else(|| panic!("{name} on {base}")).to_string();
        assert_eq!(files(), before, "{said}");
        said
    };
    let blocks = blocks_of(&guest.ram);
    // Its own base, by whatever name.
    for name in ["base", "first", "second", "linked"] {
        let said = save(name, "second", &blocks);
        assert!(said.contains(name), "{said}");
    }
    let larger = [(blocks[0].0.clone(), RAM_BYTES * 2)];
    assert!(save("new", "second", &larger).contains("another guest"));
    let other = [("pc.ram".to_owned(), RAM_BYTES)];
    assert!(save("new", "second", &other).contains("another guest"));
    assert!(save("new", "none", &blocks).contains("none: No such file"));
    assert!(save("new", "text", &blocks).contains("is no snapshot"));
}

#[test]
fn a_base_that_is_broken_or_changes_meanwhile_makes_no_increment() {
    let folder = Folder::new();
    let guest = folder.chain();
    let first = folder.at("first");
    let whole = std::fs::read(&first).unwrap();
    let mut bytes = whole.clone();
    bytes[5000] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    let progress = folder.save(&guest, "third", "second");
    assert_eq!(progress.status(), Status::Failed);
    let said = progress.figures().error.clone().unwrap();
    assert!(said.contains("first is broken: a checksum is wrong"), "{said}");
    std::fs::write(&first, &whole).unwrap();
    let save = Save::begin(&folder.at("third"), &folder.at("second"), &blocks_of(&guest.ram));
    let save = save.unwrap();
    std::fs::write(&first, &bytes).unwrap();
    assert!(matches!(save.chain.check_unchanged(), Err(snapshot::Error::Changed(_))));
    drop(save);
    assert!(!folder.at("third").exists());
    let left = std::fs::read_dir(folder.0.path()).unwrap().count();
    assert_eq!(left, 3, "no part of a file that failed stays behind");
}

/// What the guest has given up is not found again in what it had there before.
#[test]
fn pages_that_the_guest_names_free_are_empty_in_an_increment() {
    let folder = Folder::new();
    let guest = folder.base();
    for page in FREE {
        guest.ram.write(page * PAGE_BYTES, &[9; 4096]).unwrap();
    }
    assert_eq!(folder.save(&guest, "first", "base").status(), Status::Completed);
    guest.cont().unwrap();
    guest.names_free_pages(false);
    let progress = folder.save(&guest, "second", "first");
    let hinted = progress.report()["x-godwit"]["hinted"].as_u64();
    assert!(hinted >= Some(2000), "{hinted:?}");
    let loaded = folder.load("second").unwrap();
    let (mut now, mut then) = (vec![0; 4096], vec![0; 4096]);
    for page in 0..RAM_BYTES / PAGE_BYTES {
        guest.ram.read(page * PAGE_BYTES, &mut now).unwrap();
        loaded.ram.read(page * PAGE_BYTES, &mut then).unwrap();
        let given_up = FREE.contains(&page) && page % 7 != 0 && then == [0; 4096];
        assert!(given_up || now == then, "page {page}");
    }
}
