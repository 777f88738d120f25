//! A guest that drives the balloon natively: blown up, moved, let out, beside QEMU.

use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const RAM: u64 = 64 << 20;
const GIVEN: u64 = 64 * 4096;

fn start(folder: &Path, name: &str, qemu: bool, more: &[&str]) -> Vm {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&virtio_guest::balloonist())).unwrap();
    let launch = Launch::new(folder, name).no_guest().words(more);
    let launch = launch.words(&["-kernel", kernel.to_str().unwrap()]);
    let launch = launch.words(&["-device", "virtio-balloon-device,id=b0,deflate-on-oom=on"]);
    if qemu { launch.qemu().start() } else { launch.start() }
}

/// Sets a target, and waits until the guest says that it did what was wanted.
fn blow(vm: &mut Vm, bytes: u64, said: char) {
    let before = vm.serial().matches(said).count();
    vm.ask("balloon", json!({"value": bytes}));
    let end = Instant::now() + Duration::from_secs(60);
    while vm.serial().matches(said).count() == before {
        let said = vm.serial();
        assert!(!said.contains('!') && Instant::now() < end, "{}: {said} {}", vm.name, vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let event = vm.session().event("BALLOON_CHANGE");
    assert_eq!(event["data"]["actual"], bytes);
    assert_eq!(vm.ask("query-balloon", json!({})), json!({"actual": bytes}));
}

/// Moves the guest with its balloon blown up.
fn moves(source_is_qemu: bool, target_is_qemu: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut source = start(folder.path(), "source", source_is_qemu, &[]);
    blow(&mut source, RAM - GIVEN, 'b');
    blow(&mut source, RAM, 'd');
    blow(&mut source, RAM - GIVEN, 'b');
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let mut target = start(folder.path(), "target", target_is_qemu, &["-incoming", &uri]);
    if !source_is_qemu && !target_is_qemu {
        source.ask("migrate-set-parameters", json!({"x-godwit-verify": true}));
    }
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    target.wait_for_state(|state| state == "running");
    assert_eq!(target.ask("query-balloon", json!({})), json!({"actual": RAM - GIVEN}));
    blow(&mut target, RAM, 'd');
    blow(&mut target, RAM - GIVEN, 'b');
}

#[test]
fn the_balloon_moves_with_the_guest() {
    moves(false, false);
}

#[test]
#[ignore = "needs QEMU"]
fn the_balloon_moves_to_qemu_and_comes_from_it() {
    moves(false, true);
    moves(true, false);
}

/// As QEMU does: what is in the balloon, and what is wanted, outlive a reset.
fn survives_a_reset(qemu: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = start(folder.path(), "vm", qemu, &[]);
    blow(&mut vm, RAM - GIVEN, 'b');
    vm.ask("stop", json!({}));
    vm.ask("system_reset", json!({}));
    assert_eq!(vm.ask("query-balloon", json!({})), json!({"actual": RAM - GIVEN}));
}

#[test]
fn a_reset_leaves_the_balloon() {
    survives_a_reset(false);
}

#[test]
#[ignore = "needs QEMU"]
fn qemus_reset_leaves_the_balloon() {
    survives_a_reset(true);
}

const HINTS: &[&str] = &[
    "-object",
    "iothread,id=io0",
    "-device",
    "virtio-balloon-device,free-page-hint=on,iothread=io0",
];

/// A guest with 32 MiB of free pages, all of them written to.
fn start_hinter(folder: &Path, name: &str, qemu: bool, more: &[&str]) -> Vm {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&virtio_guest::hinter())).unwrap();
    let launch = Launch::new(folder, name).no_guest().words(HINTS).words(more);
    let launch = launch.words(&["-kernel", kernel.to_str().unwrap()]);
    if qemu { launch.qemu().start() } else { launch.start() }
}

fn wait_for(vm: &mut Vm, said: char) {
    let end = Instant::now() + Duration::from_secs(60);
    while !vm.serial().contains(said) {
        let said = vm.serial();
        assert!(!said.contains('!') && Instant::now() < end, "{}: {said} {}", vm.name, vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Moves the guest: its free pages do not travel, those that it took back do.
fn moves_without_free_pages(source_is_qemu: bool, target_is_qemu: bool, capabilities: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut source = start_hinter(folder.path(), "source", source_is_qemu, &[]);
    wait_for(&mut source, 's');
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let mut target = start_hinter(folder.path(), "target", target_is_qemu, &["-incoming", "defer"]);
    let on: Vec<_> =
        capabilities.iter().map(|name| json!({"capability": name, "state": true})).collect();
    for vm in [&mut source, &mut target] {
        vm.ask("migrate-set-capabilities", json!({"capabilities": on}));
    }
    // Slower than the guest.
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 16 << 20}));
    if !source_is_qemu && !target_is_qemu {
        source.ask("migrate-set-parameters", json!({"x-godwit-verify": true}));
    }
    target.ask("migrate-incoming", json!({"uri": uri}));
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    let travelled = report["ram"]["normal"].as_u64().unwrap();
    assert!(travelled < 4096, "{report}");
    if !source_is_qemu {
        let hinted = report["x-godwit"]["hinted"].as_u64();
        assert!(hinted > Some(4096), "{report}");
    }
    assert!(source.serial().contains('h'));
    wait_for(&mut target, 'd');
}

#[test]
fn free_pages_do_not_move_with_the_guest() {
    moves_without_free_pages(false, false, &[]);
}

#[test]
#[ignore = "needs QEMU"]
fn free_pages_do_not_move_to_qemu_nor_from_it() {
    moves_without_free_pages(false, true, &["multifd"]);
    moves_without_free_pages(false, true, &["xbzrle"]);
    moves_without_free_pages(true, false, &[]);
}

/// A guest that stays hears that its free pages are its own, and can be asked again.
#[test]
fn free_pages_are_left_out_of_a_file_and_the_guests_again_where_it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = start_hinter(folder.path(), "vm", false, &[]);
    wait_for(&mut vm, 's');
    let file = folder.path().join("file");
    let uri = format!("file:{}", file.display());
    let on = json!([{"capability": "mapped-ram", "state": true}]);
    vm.ask("migrate-set-capabilities", json!({"capabilities": on}));
    vm.ask("migrate-set-parameters", json!({"max-bandwidth": 16 << 20}));
    vm.ask("migrate", json!({"uri": uri}));
    let report = vm.outcome();
    assert_eq!(report["status"], "completed", "{report}");
    assert!(report["x-godwit"]["hinted"].as_u64() > Some(4096), "{report}");
    vm.ask("cont", json!({}));
    wait_for(&mut vm, 'd');
    let mut target = start_hinter(folder.path(), "target", false, &["-incoming", "defer"]);
    target.ask("migrate-set-capabilities", json!({"capabilities": on}));
    target.ask("migrate-incoming", json!({"uri": uri}));
    wait_for(&mut target, 'd');
}
