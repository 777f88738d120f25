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
