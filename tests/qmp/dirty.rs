//! How fast the guest dirties memory, measured and limited. What is measured is held against what the
//! guest's own memory shows, so that no clock but the measurement's own counts.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::common::PATIENCE;
use crate::common::vm::{Launch, Vm};
use crate::process::with_monitors;
use crate::replay::{Peer, replay};

/// Bytes of the guest's working set, and where it lies.
const SET_BYTES: usize = 32 << 20;
const SET_AT: u64 = godwit::builtin::SET_ADDRESS;
const PAGE: usize = 4096;

fn start(words: &[&str]) -> Vm {
    Launch::alone().guest("ws=32").words(words).start()
}

/// Rings that a KVM which logs each write, as one that interprets does, does not fill.
const RING: [&str; 2] = ["-accel", "kvm,dirty-ring-size=65536"];

/// A guest that writes 16 MiB a second.
fn with_ring() -> Vm {
    Launch::alone().guest("ws=8 rate=4096").words(&RING).start()
}

/// The working set of a guest that stands still.
fn working_set(vm: &mut Vm, name: &str) -> Vec<u8> {
    let file = vm.path(name);
    let arguments = json!({"val": SET_AT, "size": SET_BYTES, "filename": file.to_str().unwrap()});
    vm.ask("pmemsave", arguments);
    std::fs::read(file).unwrap()
}

/// The result, once it is there.
fn measured(vm: &mut Vm) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let report = vm.ask("query-dirty-rate", json!({"calc-time-unit": "millisecond"}));
        if report["status"] == "measured" {
            return report;
        }
        assert_eq!(report["status"], "measuring", "{report}");
        assert!(Instant::now() < end, "{report}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// MiB that were dirtied by what was measured.
fn mib(report: &Value) -> f64 {
    report["dirty-rate"].as_f64().unwrap() * report["calc-time"].as_f64().unwrap() / 1000.0
}

/// How often each page was written since it was first filled.
fn versions(set: &[u8]) -> impl Iterator<Item = u64> + '_ {
    set.chunks(PAGE).map(|page| u64::from_le_bytes(page[..8].try_into().unwrap()) >> 32)
}

/// Lets the guest run in the middle of a measurement, and returns the MiB that were measured, those
/// of pages that it changed, and those that it wrote.
fn measured_and_true(vm: &mut Vm, mode: &str) -> (f64, f64, f64) {
    let mut ms = 1500;
    loop {
        vm.ask("stop", json!({}));
        let before = working_set(vm, "before");
        let arguments = json!({"calc-time": ms, "calc-time-unit": "millisecond", "mode": mode});
        vm.ask("calc-dirty-rate", arguments);
        let sweeps = vm.sweeps().len();
        vm.ask("cont", json!({}));
        vm.wait_for_sweeps(sweeps + 1);
        vm.ask("stop", json!({}));
        let within = vm.ask("query-dirty-rate", json!({}))["status"] == "measuring";
        let after = working_set(vm, "after");
        let pages = versions(&before).zip(versions(&after));
        let written: Vec<u64> = pages.map(|(before, after)| after - before).collect();
        let changed = written.iter().filter(|times| **times > 0).count() as u64;
        let report = measured(vm);
        if within {
            assert_eq!(report["mode"], mode);
            let to_mib = |pages: u64| (pages * PAGE as u64) as f64 / f64::from(1 << 20);
            return (mib(&report), to_mib(changed), to_mib(written.iter().sum()));
        }
        // The host had something else to do.
        ms *= 2;
        assert!(ms < 30_000, "the guest does not come to the end of a sweep: {report}");
    }
}

/// A rate is told in whole MiB per second.
fn rounding(report_seconds: f64) -> f64 {
    0.5 * report_seconds + 0.5
}

#[test]
fn what_is_measured_is_what_the_guest_wrote() {
    for (mode, words, tolerance) in [
        ("dirty-bitmap", &[][..], 0.02),
        ("dirty-ring", &RING[..], 0.02),
        ("page-sampling", &[][..], 0.25),
    ] {
        let mut vm = start(words);
        vm.wait_for_sweeps(1);
        let (measured, changed, written) = measured_and_true(&mut vm, mode);
        // A ring has an entry for each time that a clean page was written.
        let most = if mode == "dirty-ring" { written } else { changed };
        let seconds = vm.ask("query-dirty-rate", json!({}))["calc-time"].as_f64().unwrap() + 1.0;
        let off = measured - measured.clamp(changed, most);
        assert!(
            off.abs() <= changed * tolerance + rounding(seconds),
            "{mode}: {measured} MiB measured, {changed} MiB changed, {written} MiB written"
        );
        // A guest that stands still dirties nothing.
        vm.ask(
            "calc-dirty-rate",
            json!({"calc-time": 50, "calc-time-unit": "millisecond", "mode": mode}),
        );
        let still = self::measured(&mut vm);
        assert_eq!(still["dirty-rate"], 0, "{mode}: {still}");
        let vcpus =
            if mode == "dirty-ring" { json!([{"id": 0, "dirty-rate": 0}]) } else { Value::Null };
        assert_eq!(still["vcpu-dirty-rate"], vcpus);
    }
}

#[test]
fn refusals_are_those_of_the_recording() {
    let mut godwit = with_monitors(1, &["-S"]);
    replay("dirtyrate", godwit.folder(), Peer::Process, Some("while measuring"));
    let mut monitor = crate::process::monitor(&godwit, 0);
    let refused = |client: &mut crate::common::qmp::Client, command: &str, arguments: Value| {
        client.try_message(command, arguments).unwrap()["error"]["desc"].as_str().map(str::to_owned)
    };
    assert_eq!(
        refused(&mut monitor, "calc-dirty-rate", json!({"calc-time": 1})).unwrap(),
        "the dirty rate is already being measured."
    );
    assert_eq!(
        refused(&mut monitor, "set-vcpu-dirty-limit", json!({"dirty-rate": 100})).unwrap(),
        "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"
    );
    assert_eq!(refused(&mut monitor, "cancel-vcpu-dirty-limit", json!({})), None);
    assert_eq!(monitor.ask("query-vcpu-dirty-limit", json!({})), json!([]));
    let on = json!({"capabilities": [{"capability": "dirty-limit", "state": true}]});
    assert_eq!(
        refused(&mut monitor, "migrate-set-capabilities", on).unwrap(),
        "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set"
    );
    drop(monitor);
    godwit.kill();
    let mut ring = with_ring();
    let time = json!({"calc-time": 1, "mode": "dirty-bitmap"});
    assert_eq!(
        ring.try_ask("calc-dirty-rate", time).unwrap_err(),
        "mode dirty-bitmap is not enabled, use other method instead."
    );
    for command in ["set-vcpu-dirty-limit", "cancel-vcpu-dirty-limit"] {
        let mut arguments = json!({"cpu-index": 7});
        if command.starts_with("set") {
            arguments["dirty-rate"] = 1.into();
        }
        assert_eq!(ring.try_ask(command, arguments).unwrap_err(), "incorrect cpu index specified");
    }
}

/// A migration that a slow connection holds up.
fn migrate_slowly(vm: &mut Vm, capabilities: &[&str], parameters: Value) {
    vm.set(capabilities, &parameters);
    vm.ask("migrate", json!({"uri": "exec:cat > /dev/null"}));
    vm.wait_for("a migration", |report| report["status"] == "active");
}

#[test]
fn a_migration_does_not_wait_for_a_measurement() {
    let mut vm = start(&[]);
    vm.wait_for_sweeps(1);
    vm.ask("calc-dirty-rate", json!({"calc-time": 60, "mode": "dirty-bitmap"}));
    migrate_slowly(&mut vm, &["events"], json!({"max-bandwidth": 1 << 20}));
    let report = measured(&mut vm);
    assert!(report["calc-time"].as_u64().unwrap() < 60_000, "{report}");
    let refused = vm.try_ask("calc-dirty-rate", json!({"calc-time": 1, "mode": "dirty-bitmap"}));
    assert_eq!(
        refused.unwrap_err(),
        "a migration reads the dirty log; measure in mode page-sampling meanwhile"
    );
    assert_eq!(vm.ask("query-dirty-rate", json!({"calc-time-unit": "millisecond"})), report);
    vm.ask("calc-dirty-rate", json!({"calc-time": 100, "calc-time-unit": "millisecond"}));
    assert_eq!(measured(&mut vm)["mode"], "page-sampling");
    vm.ask("migrate_cancel", json!({}));
    vm.wait_for("its end", |report| report["status"] == "cancelled");
    let time = json!({"calc-time": 100, "calc-time-unit": "millisecond", "mode": "dirty-bitmap"});
    vm.ask("calc-dirty-rate", time);
    assert!(measured(&mut vm)["dirty-rate"].as_u64().unwrap() > 0);
    vm.assert_alive();
}

/// MiB per second, by the guest's ring.
fn rate(vm: &mut Vm) -> u64 {
    vm.ask("calc-dirty-rate", json!({"calc-time": 3, "mode": "dirty-ring"}));
    measured(vm)["dirty-rate"].as_u64().unwrap()
}

#[test]
fn a_vcpu_dirties_no_more_than_its_limit() {
    let mut vm = with_ring();
    vm.wait_for_sweeps(1);
    let free = rate(&mut vm);
    assert!(free > 8, "{free} MiB/s: this guest is too slow to be limited");
    vm.ask("set-vcpu-dirty-limit", json!({"cpu-index": 0, "dirty-rate": 4}));
    let limits = vm.ask("query-vcpu-dirty-limit", json!({}));
    assert_eq!((&limits[0]["cpu-index"], &limits[0]["limit-rate"]), (&json!(0), &json!(4)));
    let limited = rate(&mut vm);
    assert!((1..=6).contains(&limited), "{limited} MiB/s of 4, {free} without");
    vm.ask("set-vcpu-dirty-limit", json!({"dirty-rate": 0}));
    assert_eq!(vm.ask("query-vcpu-dirty-limit", json!({})), json!([]));
    let again = rate(&mut vm);
    assert!(again > 8, "{again} MiB/s once it is free, {free} before");
    vm.assert_alive();
}

#[test]
fn a_migration_that_does_not_converge_limits_its_guest() {
    let mut vm = with_ring();
    vm.wait_for_sweeps(1);
    let on = ["dirty-limit", "auto-converge"].map(|c| json!({"capability": c, "state": true}));
    assert_eq!(
        vm.try_ask("migrate-set-capabilities", json!({"capabilities": on})).unwrap_err(),
        "dirty-limit conflicts with auto-converge either of then available currently"
    );
    vm.ask("migrate-set-capabilities", json!({"capabilities": on[..1]}));
    let parameters = json!({
        "max-bandwidth": 6 << 20,
        "vcpu-dirty-limit": 2,
        "x-vcpu-dirty-limit-period": 200,
        "downtime-limit": 100,
    });
    vm.ask("migrate-set-parameters", parameters);
    let target = vm.path("stream");
    vm.ask("migrate", json!({"uri": format!("file:{}", target.display())}));
    let end = Instant::now() + PATIENCE;
    loop {
        let report = vm.ask("query-migrate", json!({}));
        if report.get("dirty-limit-ring-full-time").is_some() {
            assert!(report["dirty-limit-throttle-time-per-round"].is_u64(), "{report}");
            break;
        }
        let goes_on = ["setup", "active"].map(Value::from).contains(&report["status"]);
        assert!(goes_on, "it ends without a limit: {report}");
        assert!(Instant::now() < end, "{report}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let limits = vm.ask("query-vcpu-dirty-limit", json!({}));
    assert_eq!(limits[0]["limit-rate"], 2);
    let refused = vm.try_ask("set-vcpu-dirty-limit", json!({"dirty-rate": 9})).unwrap_err();
    assert_eq!(refused, "can't set dirty page rate limit while migration is running");
    // 2 MiB/s fit through 6 MiB/s.
    vm.wait_for("its end", |report| report["status"] == "completed");
    assert_eq!(vm.ask("query-vcpu-dirty-limit", json!({})), json!([]));
}
