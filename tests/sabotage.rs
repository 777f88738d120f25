//! Each fault made on purpose is seen: by the RAM hash before the guest goes on, and without it by
//! the guest itself. `cargo test --features sabotage --test sabotage`

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::vm::{Launch, PATIENCE, Vm};
use serde_json::{Value, json};

/// A fault may find nothing to spoil in one migration, so there are several chances to see it.
const ATTEMPTS: u32 = 10;

struct Case {
    fault: &'static str,
    guest: &'static str,
    /// Sweeps before the migration.
    sweeps: usize,
    capabilities: &'static [&'static str],
    parameters: Value,
}

impl Case {
    fn new(fault: &'static str) -> Self {
        let parameters = json!({"max-bandwidth": 32 << 20, "downtime-limit": 2000});
        Self { fault, guest: "ws=8 pattern=seq", sweeps: 1, capabilities: &[], parameters }
    }

    /// One migration from a new guest; what `query-migrate` says at its end.
    fn migrate(&self, dir: &Path, verify: bool) -> (Vm, Vm, Value) {
        let launch = |name: &str| Launch::new(dir, name).guest(self.guest);
        let mut target = launch("target").incoming("defer").start();
        let mut source = launch("source").environment("GODWIT_SABOTAGE", self.fault).start();
        let mut parameters = self.parameters.clone();
        parameters["x-godwit-verify"] = verify.into();
        for vm in [&mut source, &mut target] {
            vm.set(self.capabilities, &parameters);
        }
        let uri = format!("unix:{}", dir.join("socket").display());
        target.ask("migrate-incoming", json!({"uri": uri}));
        // The guest's first line comes before its first write.
        let end = Instant::now() + PATIENCE;
        while source.serial().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        source.wait_for_sweeps(self.sweeps);
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert!(source.stderr().contains("sabotage"), "a build without the fault");
        (source, target, report)
    }

    fn caught_by_hash(&self) {
        let dir = tempfile::tempdir().unwrap();
        for attempt in 0..ATTEMPTS {
            eprintln!("{} with the hash, attempt {attempt}", self.fault);
            let (mut source, mut target, report) = self.migrate(dir.path(), true);
            if report["status"] == "completed" {
                continue;
            }
            let error = report["error-desc"].as_str().unwrap();
            assert!(error.contains("x-godwit-verify"), "{}: {error}", self.fault);
            assert_eq!(target.exit_code(), Some(1));
            assert!(target.stderr().contains("RAM here differs"), "{}", target.stderr());
            // What the target got wrong is right at the source, which goes on.
            source.assert_alive();
            return;
        }
        panic!("{}: the hash saw nothing in {ATTEMPTS} migrations", self.fault);
    }

    fn caught_by_guest(&self) {
        let dir = tempfile::tempdir().unwrap();
        for attempt in 0..ATTEMPTS {
            eprintln!("{} with the guest, attempt {attempt}", self.fault);
            let (_source, target, report) = self.migrate(dir.path(), false);
            assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
            let end = Instant::now() + PATIENCE;
            // Three lines: each page has been checked twice.
            while target.serial().lines().count() < 3 && Instant::now() < end {
                if target.serial().contains("CORRUPT page") {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if target.serial().contains("CORRUPT page") {
                return;
            }
        }
        panic!("{}: the guest saw nothing in {ATTEMPTS} migrations", self.fault);
    }

    fn caught(&self) {
        self.caught_by_hash();
        self.caught_by_guest();
    }
}

#[test]
fn a_dirty_bit_in_a_thousand_dropped() {
    // The last rounds must have thousands of bits: the whole set is dirty in each.
    Case { guest: "ws=16 pattern=seq", ..Case::new("drop-dirty-bits") }.caught();
}

#[test]
fn pages_read_before_their_bits_are_cleared() {
    Case::new("read-before-clear").caught();
}

#[test]
fn the_vmms_own_writes_not_harvested() {
    // The guest does not look at the page, so the hash alone can tell; the same writes harvested
    // are no fault.
    Case::new("skip-vmm-writes").caught_by_hash();
    let dir = tempfile::tempdir().unwrap();
    let (_source, target, report) = Case::new("write-as-vmm").migrate(dir.path(), true);
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    target.wait_for_sweeps(2);
}

#[test]
fn versions_of_a_page_swapped_between_channels() {
    let parameters =
        json!({"max-bandwidth": 32 << 20, "downtime-limit": 2000, "multifd-channels": 2});
    Case { capabilities: &["multifd"], parameters, ..Case::new("swap-versions") }.caught();
}

#[test]
fn the_harvest_after_the_stop_left_out() {
    // Short rounds of a large set: what is written after the last harvest is not owed already.
    let parameters = json!({"max-bandwidth": 0, "downtime-limit": 300});
    Case { guest: "ws=32 pattern=random", parameters, ..Case::new("no-final-harvest") }.caught();
}

#[test]
fn a_cache_ahead_of_the_wire() {
    let parameters =
        json!({"max-bandwidth": 16 << 20, "downtime-limit": 2000, "xbzrle-cache-size": 64 << 20});
    Case { capabilities: &["xbzrle"], parameters, ..Case::new("cache-ahead") }.caught();
}

#[test]
fn holes_asked_for_before_bits_are_cleared() {
    // Memory is touched for the first time while the migration starts.
    let parameters = json!({"max-bandwidth": 0, "downtime-limit": 2000});
    Case {
        guest: "ws=16 pattern=seq rate=2000",
        sweeps: 0,
        parameters,
        ..Case::new("hole-test-not-reading")
    }
    .caught();
}
