//! Guests that drive the entropy device natively: well-formed, hostile, moved, beside QEMU.

use crate::common::vm::{Launch, Vm};
use crate::common::{guest, virtio_guest};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const RNG: [&str; 2] = ["-device", "virtio-rng-device"];
const MODERN: [&str; 2] = ["-global", "virtio-mmio.force-legacy=off"];

fn launch(folder: &Path, name: &str, code: &[u8], modern: bool) -> Launch {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(code)).unwrap();
    let launch = Launch::new(folder, name).no_guest().words(&RNG);
    let launch = launch.words(&["-kernel", kernel.to_str().unwrap()]);
    if modern { launch.words(&MODERN) } else { launch }
}

/// Waits until the guest has said `times` more points, and says what it said.
fn wait_for_points(vm: &Vm, times: usize) -> String {
    let before = vm.serial().matches('.').count();
    wait_for(vm, |said| {
        assert!(!said.contains('!'), "{said}");
        said.matches('.').count() >= before + times
    })
}

/// Waits until the guest has said what `is` accepts.
fn wait_for(vm: &Vm, is: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let said = vm.serial();
        if is(&said) {
            return said;
        }
        assert!(Instant::now() < end, "{}: {said} {}", vm.name, vm.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_gets_entropy_and_interrupts_through_both_kinds_of_transport() {
    for modern in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let vm = launch(folder.path(), "vm", &virtio_guest::entropy(), modern).start();
        let said = wait_for_points(&vm, 4);
        assert!(said.contains('i'), "no interrupt: {said}");
    }
}

#[test]
fn a_hostile_guest_breaks_the_device_and_not_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = launch(folder.path(), "vm", &virtio_guest::breaker(), true).start();
    let said = wait_for(&vm, |said| said.contains(['k', '!']));
    assert_eq!(said, "hhhhk");
    assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
    // People are told once.
    assert_eq!(vm.stderr().matches("stands still until the guest resets it").count(), 1);
}

#[test]
fn a_reset_and_a_stop_leave_a_device_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = launch(folder.path(), "vm", &virtio_guest::entropy(), false).start();
    wait_for_points(&vm, 1);
    vm.ask("stop", json!({}));
    vm.ask("cont", json!({}));
    wait_for_points(&vm, 1);
    vm.ask("system_reset", json!({}));
    wait_for(&vm, |said| said.matches('i').count() == 2);
    wait_for_points(&vm, 1);
}

/// Moves the guest, in the middle of its requests, and back.
fn moves(source_is_qemu: bool, target_is_qemu: bool, modern: bool) {
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, qemu: bool, more: &[&str]| {
        let launch = launch(folder.path(), name, &virtio_guest::entropy(), modern).words(more);
        if qemu { launch.qemu().start() } else { launch.start() }
    };
    let mut source = start("source", source_is_qemu, &[]);
    for (turn, is_qemu) in [target_is_qemu, source_is_qemu, target_is_qemu].into_iter().enumerate()
    {
        wait_for_points(&source, 1);
        let uri = format!("unix:{}", folder.path().join(format!("stream{turn}")).display());
        let mut target = start(&format!("target{turn}"), is_qemu, &["-incoming", &uri]);
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{turn}: {report} {}", target.stderr());
        target.wait_for_state(|state| state == "running");
        wait_for_points(&target, 2);
        source = target;
    }
}

#[test]
fn the_guest_is_moved_in_the_middle_of_its_requests() {
    moves(false, false, false);
    moves(false, false, true);
}

#[test]
#[ignore = "needs QEMU"]
fn the_guest_moves_between_godwit_and_qemu_in_the_middle_of_its_requests() {
    for modern in [false, true] {
        moves(false, true, modern);
        moves(true, false, modern);
    }
}

#[test]
fn a_device_on_one_side_only_is_refused_by_name_and_the_guest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = launch(folder.path(), "source", &virtio_guest::entropy(), false).start();
    wait_for_points(&source, 1);
    let name = "virtio-mmio@00000000feb00e00/virtio-rng";
    let two = [RNG, RNG].concat();
    for (words, word) in [
        (&["-M", "pit=on"][..], "-device virtio-rng-device is missing"),
        (&two, "virtio-mmio@00000000feb00c00/virtio-rng"),
        (&[RNG, MODERN].concat(), "force-legacy=on"),
    ] {
        let uri = format!("unix:{}", folder.path().join("stream").display());
        let mut target =
            Launch::new(folder.path(), "target").no_guest().words(words).incoming(&uri).start();
        source.ask("migrate", json!({"uri": uri}));
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{report}");
        assert_eq!(target.exit_code(), Some(1));
        let text = target.stderr();
        assert!(text.contains(word) && text.contains("virtio-rng"), "{words:?}: {text}");
        assert!(words == two || text.contains(name), "{words:?}: {text}");
        wait_for_points(&source, 1);
    }
}

#[test]
fn what_it_gives_comes_from_the_file_that_was_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("entropy");
    // The guest asks for eight bytes at a time, for as long as it runs.
    std::fs::write(&file, vec![0x5a; 16 << 20]).unwrap();
    let object = format!("rng-random,id=r,filename={}", file.display());
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, guest::elf(&virtio_guest::entropy())).unwrap();
    let words = [
        "-object",
        &object,
        "-device",
        "virtio-rng-device,rng=r",
        "-kernel",
        kernel.to_str().unwrap(),
    ];
    let mut vm = Launch::new(folder.path(), "vm").no_guest().words(&words).start();
    wait_for_points(&vm, 1);
    let dump = folder.path().join("ram");
    let end = Instant::now() + Duration::from_secs(60);
    // Before each request the guest clears them.
    let mut got = vec![0; 8];
    while got != [0x5a; 8]
        && got.iter().all(|byte| [0, 0x5a].contains(byte))
        && Instant::now() < end
    {
        vm.ask("stop", json!({}));
        vm.ask("pmemsave", json!({"val": 0x20_2000, "size": 8, "filename": dump}));
        got = std::fs::read(&dump).unwrap();
        vm.ask("cont", json!({}));
    }
    assert_eq!(got, [0x5a; 8]);

    let lost = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args("run -M microvm,acpi=off -m 16 -nodefaults -kernel builtin -append ws=1".split(' '))
        .args([
            "-object",
            "rng-random,id=r,filename=/nowhere",
            "-device",
            "virtio-rng-device,rng=r",
        ])
        .output()
        .unwrap();
    assert!(!lost.status.success());
    let text = String::from_utf8(lost.stderr).unwrap();
    assert!(text.contains("cannot read entropy from /nowhere"), "{text}");
}
