//! Each fault made on purpose is seen: by the RAM hash before the guest goes on, and without it by
//! the guest itself. `cargo test --features sabotage --test sabotage`

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::guest;
use common::vm::{Launch, PATIENCE, Vm};
use serde_json::{Value, json};

/// A source and a target, each with a fault or none; what `query-migrate` says at the source's end.
fn panics(source: &str, target: &str, capabilities: &[&str]) -> (tempfile::TempDir, Vm, Vm, Value) {
    let dir = tempfile::tempdir().unwrap();
    let launch = |name: &str, fault: &str| {
        let launch = Launch::new(dir.path(), name).guest("ws=4");
        if fault.is_empty() { launch } else { launch.environment("GODWIT_SABOTAGE", fault) }
    };
    let mut to = launch("target", target).incoming("defer").start();
    let mut from = launch("source", source).start();
    for vm in [&mut from, &mut to] {
        vm.set(capabilities, &json!({"max-bandwidth": 0, "downtime-limit": 2000}));
    }
    let uri = format!("unix:{}", dir.path().join("socket").display());
    to.ask("migrate-incoming", json!({"uri": uri}));
    from.wait_for_sweeps(1);
    from.ask("migrate", json!({"uri": uri}));
    let report = from.outcome();
    (dir, from, to, report)
}

/// Before GO the guest is the source's, whichever thread dies.
#[test]
fn a_thread_that_dies_before_go_leaves_the_guest_at_the_source() {
    for capabilities in [&[][..], &["multifd"], &["xbzrle"]] {
        for (source, target) in [
            ("panic-in-round", ""),
            ("panic-before-go", ""),
            ("", "panic-in-round"),
            ("", "panic-before-go"),
        ] {
            let what = format!("{source:?} {target:?} {capabilities:?}");
            let (_dir, mut from, mut to, report) = panics(source, target, capabilities);
            assert_eq!(report["status"], "failed", "{what}: {report}");
            let error = report["error-desc"].as_str().unwrap();
            assert!(error.contains("has panicked") || source.is_empty(), "{what}: {error}");
            from.assert_alive();
            assert_eq!(to.exit_code(), Some(1), "{what}");
            assert!(to.sweeps().is_empty(), "{what}: it ran at both");
            let told = to.stderr().contains("has panicked");
            assert!(told || target.is_empty(), "{what}: {}", to.stderr());
        }
    }
}

/// From GO on the source does not know, says so, and does not run the guest.
#[test]
fn a_thread_that_dies_after_go_never_lets_the_guest_run_twice() {
    // The source dies of it: the target has heard GO, and runs.
    let (_dir, mut from, mut to, report) = panics("panic-after-go", "", &[]);
    let error = report["error-desc"].as_str().unwrap();
    assert!(error.contains("nobody can know") && error.contains("has panicked"), "{error}");
    assert_eq!(from.status(), "postmigrate");
    to.assert_alive();
    // The target, before the guest ran there: a person may let it go on at the source.
    let (_dir, mut from, mut to, report) = panics("", "panic-after-go", &[]);
    assert!(report["error-desc"].as_str().unwrap().contains("nobody can know"), "{report}");
    assert_eq!(from.status(), "postmigrate");
    assert_eq!(to.exit_code(), Some(1));
    assert!(to.stderr().contains("has panicked") && to.sweeps().is_empty(), "{}", to.stderr());
    from.ask("cont", json!({}));
    from.assert_alive();
    // The target, when the guest runs there: it stays.
    let (_dir, mut from, mut to, report) = panics("", "panic-when-arrived", &[]);
    assert!(report["error-desc"].as_str().unwrap().contains("nobody can know"), "{report}");
    assert_eq!(from.status(), "postmigrate");
    to.wait_for_stderr("the guest was here, and stays");
    to.assert_alive();
    assert_eq!(to.ask("query-migrate", json!({}))["status"], "completed");
}

/// The threads of a machine.
#[test]
fn a_thread_of_the_machine_that_dies_is_told_and_nobody_waits_for_it() {
    let faulty = |fault: &str, cpus: u8| {
        Launch::alone().guest("ws=1").processors(cpus).environment("GODWIT_SABOTAGE", fault)
    };
    for cpus in [1, 2] {
        let mut vm = faulty("panic-in-vcpu", cpus).start();
        vm.wait_for_status("internal-error");
        vm.wait_for_stderr("its thread has panicked");
        assert!(vm.try_ask("cont", json!({})).is_err(), "the state is not known");
        vm.ask("stop", json!({}));
        vm.ask("quit", json!({}));
        assert_eq!(vm.exit_code(), Some(0));
    }
    let mut asks = faulty("panic-in-request", 1).no_guest();
    let kernel = asks.path("kernel");
    guest::write(&kernel, &guest::restarter());
    asks = asks.words(&["-kernel", kernel.to_str().unwrap()]);
    let mut vm = asks.start();
    vm.wait_for_status("internal-error");
    vm.wait_for_stderr("what it asked for has panicked");
    vm.ask("system_reset", json!({}));
    vm.ask("quit", json!({}));
    assert_eq!(vm.exit_code(), Some(0));
    let mut vm = faulty("panic-in-dump", 1).start();
    vm.wait_for_sweeps(1);
    for (live, detach) in [(false, false), (false, true), (true, false), (true, true)] {
        let protocol = format!("file:{}", vm.path("core").display());
        let asked =
            json!({"paging": false, "protocol": protocol, "detach": detach, "x-live": live});
        let answer = vm.try_ask("dump-guest-memory", asked);
        assert_eq!(answer.is_ok(), detach, "{answer:?}");
        let told = vm.session().event("DUMP_COMPLETED");
        let error = told["data"]["error"].as_str().unwrap();
        assert!(error.contains("has panicked"), "{told}");
        assert_eq!(told["data"]["result"]["status"], "failed");
        assert_eq!(vm.ask("query-dump", json!({}))["status"], "failed");
        vm.assert_alive();
    }
}

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
