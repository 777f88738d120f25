//! `query-migrate`, state by state, in the shape that the specification of the command shows.

use crate::common::vm::{Launch, Vm};
use serde_json::{Value, json};

const RAM: [&str; 7] =
    ["transferred", "remaining", "total", "total-time", "duplicate", "normal", "normal-bytes"];
const CACHE: [&str; 5] = ["cache-size", "bytes", "pages", "cache-miss", "overflow"];

/// Every one of `members` is there and an integer that is not negative.
fn assert_integers(object: &Value, members: &[&str]) {
    for member in members {
        assert!(object[member].is_u64(), "{member}: {object}");
    }
}

fn assert_ram(report: &Value) {
    let ram = &report["ram"];
    assert_integers(ram, &RAM);
    assert_integers(report, &["total-time"]);
    let number = |member: &str| ram[member].as_u64().unwrap();
    assert_eq!(number("total"), 64 << 20);
    assert!(number("remaining") <= number("total"));
    assert_eq!(number("normal-bytes"), number("normal") * 4096);
}

fn start(dir: &std::path::Path, name: &str) -> Vm {
    Launch::new(dir, name).guest("ws=8 pattern=hot").start()
}

fn active(vm: &mut Vm) -> Value {
    vm.wait_for("active", |report| report["status"] == "active")
}

#[test]
fn every_state_comes_out_in_the_specifications_shape() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}", dir.path().join("socket").display());
    let mut source = start(dir.path(), "source");
    source.wait_for_sweeps(1);

    // 1. Before the first migration.
    assert_eq!(source.ask("query-migrate", json!({})), json!({}));

    // 3. Done, and failed: what the specification shows, and why.
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 1 << 20, "downtime-limit": 0}));
    let mut target = Launch::new(dir.path(), "killed").incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    active(&mut source);
    target.kill();
    let report = source.outcome();
    assert_eq!(report["status"], "failed");
    assert!(report["error-desc"].is_string());
    assert_eq!(report.as_object().unwrap().len(), 2, "{report}");

    // 4. Being performed; no block migration, so no member `disk`, and no cache.
    let mut target = Launch::new(dir.path(), "cancelled").incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    let report = active(&mut source);
    assert_ram(&report);
    assert!(
        ["disk", "xbzrle-cache", "capabilities", "downtime"]
            .iter()
            .all(|name| report.get(name).is_none())
    );
    source.ask("migrate_cancel", json!({}));
    assert_eq!(source.outcome(), json!({"status": "cancelled"}));
    assert_eq!(target.exit_code(), Some(1));

    // 6. Being performed with XBZRLE.
    source.set(&["xbzrle"], &json!({"xbzrle-cache-size": 64 << 20}));
    let mut target = Launch::new(dir.path(), "target").incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    let report = active(&mut source);
    assert_ram(&report);
    assert_eq!(report["capabilities"], json!([{"capability": "xbzrle", "state": true}]));
    assert_integers(&report["xbzrle-cache"], &CACHE);
    assert_eq!(report["xbzrle-cache"]["cache-size"], 64 << 20);

    // 2. Done, and succeeded.
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0, "downtime-limit": 1000}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    assert_ram(&report);
    assert_integers(&report, &["downtime", "setup-time"]);
    assert_eq!(report["ram"]["remaining"], 0);
    target.assert_alive();
}

#[test]
fn cache_size_is_rounded_down_to_a_power_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = start(dir.path(), "vm");
    assert_eq!(vm.ask("query-migrate-cache-size", json!({})), json!(67_108_864));
    assert_eq!(vm.ask("migrate-set-cache-size", json!({"value": 536_870_912})), json!({}));
    assert_eq!(vm.ask("query-migrate-cache-size", json!({})), json!(536_870_912));
    vm.ask("migrate-set-cache-size", json!({"value": 100_000_000}));
    assert_eq!(vm.ask("query-migrate-cache-size", json!({})), json!(67_108_864));
}

#[test]
fn a_guest_that_counts_on_its_tsc_does_not_move() {
    for (cpu, shown) in [("host", false), ("host,+invtsc", true), ("host,migratable=off", true)] {
        let mut vm = Launch::alone().guest("").words(&["-cpu", cpu, "-S"]).start();
        let model = json!({"type": "full", "model": {"name": "host"}});
        let expanded = vm.ask("query-cpu-model-expansion", model);
        let invariant = expanded["model"]["props"]["invtsc"] == true;
        assert!(shown || !invariant, "{cpu}");
        let file = vm.path("state").display().to_string();
        let moved = vm.try_ask("migrate", json!({"uri": format!("file:{file}")}));
        let reasons = &vm.ask("query-migrate", json!({}))["blocked-reasons"];
        // A host may have none to show.
        match invariant {
            true => {
                let why = "State blocked by non-migratable CPU device (invtsc flag)";
                assert!(moved.unwrap_err().contains(why), "{cpu}");
                assert_eq!(*reasons, json!([why]), "{cpu}");
            }
            false => assert!(moved.is_ok() && reasons.is_null(), "{cpu}: {moved:?}"),
        }
    }
}

/// What is dirtied in a second is not what the link takes in one, and a migration that ends by itself
/// says when.
#[test]
fn the_rate_is_the_guests_and_the_end_is_foretold() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("unix:{}", dir.path().join("socket").display());
    let mut source = Launch::new(dir.path(), "source").guest("ws=4 rate=1000 fill=random").start();
    source.wait_for_sweeps(1);
    // 16384 pages a second; the guest is held back by nobody, and may be slower than it was told.
    let parameters = json!({"max-bandwidth": 64 << 20, "downtime-limit": 0});
    source.ask("migrate-set-parameters", parameters);
    let _target = Launch::new(dir.path(), "target").incoming(&uri).start();
    source.ask("migrate", json!({"uri": uri}));
    let report = source.wait_for("a rate", |report| {
        report["ram"]["dirty-sync-count"].as_u64() > Some(3) || report["status"] == "completed"
    });
    let rate = report["ram"]["dirty-pages-rate"].as_u64().unwrap();
    assert!(rate < 8000, "{report}");
    if report["status"] != "completed" {
        let end = report["x-godwit"]["predicted-end"].as_u64();
        assert!(end.is_some_and(|ms| ms < 10_000), "{report}");
    }
}
