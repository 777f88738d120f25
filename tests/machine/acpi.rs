//! `acpi=on`: tables, power button, reset and power-off registers, and the second I/O APIC.

use crate::common::machines::build;
use crate::common::vm::{Launch, Vm};
use crate::common::{acpi_guest, guest};
use godwit::machine::Machine;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

fn block(machine: &Machine, name: &str, bytes: usize) -> Vec<u8> {
    let block = machine.ram().block(&format!("/rom@etc/{name}")).expect(name);
    let mut content = vec![0; block.bytes() as usize];
    block.copy_out(0, &mut content);
    let rest = content.split_off(bytes);
    assert!(rest.iter().all(|byte| *byte == 0), "{name} is longer");
    content
}

#[test]
fn tables_are_those_of_qemu() {
    let vector = |name: &str| std::fs::read(Path::new("tests/vectors/acpi").join(name)).unwrap();
    const VIRTIO: &str = "-device virtio-rng-device -device virtio-serial-device";
    for (name, line) in [
        ("two-cpus", "-M microvm -smp 2 -serial null".to_owned()),
        ("devices", format!("-M microvm,acpi=on,rtc=on -serial null {VIRTIO}")),
        ("one-ioapic", format!("-M microvm,ioapic2=off -smp 2,maxcpus=3 -nodefaults {VIRTIO}")),
    ] {
        let (machine, _) = build(&format!("{line} -m 16 -kernel builtin"));
        let wanted = vector(&format!("{name}.tables"));
        let found = block(&machine, "acpi/tables", wanted.len());
        let differs = wanted.iter().zip(&found).position(|(wanted, found)| wanted != found);
        assert_eq!(differs, None, "{name}: {wanted:x?} {found:x?}");
        if name == "two-cpus" {
            let [loader, rsdp] = ["loader", "rsdp"].map(|part| vector(&format!("{name}.{part}")));
            assert!(loader == block(&machine, "table-loader", loader.len()), "the script");
            assert_eq!(rsdp, block(&machine, "acpi/rsdp", rsdp.len()));
        }
        machine.quit();
    }
}

/// Has the tables decoded by ACPI's own reference compiler.
#[test]
#[ignore = "needs iasl"]
fn a_compiler_reads_the_tables_back() {
    let folder = tempfile::tempdir().unwrap();
    let words = "-M microvm -smp 2 -m 16 -nodefaults -serial null -kernel builtin -device virtio-rng-device";
    let (machine, _) = build(words);
    let tables = machine.ram().block("/rom@etc/acpi/tables").unwrap();
    let mut content = vec![0; tables.bytes() as usize];
    tables.copy_out(0, &mut content);
    machine.quit();
    let bytes = u32::from_le_bytes(content[4..8].try_into().unwrap()) as usize;
    std::fs::write(folder.path().join("dsdt.dat"), &content[..bytes]).unwrap();
    let run = std::process::Command::new("iasl")
        .args(["-d", "dsdt.dat"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let text = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
    for words in ["Device (VR23)", "Device (FWCF)", "Notify (PWRB, 0x80)", "0x0000002F"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

fn launch(folder: &Path, name: &str) -> Launch {
    let kernel = folder.join(format!("{name}.kernel"));
    std::fs::write(&kernel, guest::elf(&acpi_guest::button())).unwrap();
    let launch = Launch::new(folder, name).no_guest();
    launch.words(&[
        "-M",
        "acpi=on",
        "-device",
        "virtio-rng-device",
        "-kernel",
        kernel.to_str().unwrap(),
    ])
}

fn wait_for(vm: &Vm, words: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !vm.serial().ends_with(words) {
        assert!(
            !vm.serial().contains('!') && Instant::now() < end,
            "{} {}",
            vm.serial(),
            vm.stderr()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_sees_the_button_resets_itself_and_switches_itself_off() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = launch(folder.path(), "vm").words(&["-no-shutdown"]).start();
    wait_for(&vm, "riiw");
    vm.ask("system_powerdown", json!({}));
    wait_for(&vm, "riiwbriiw");
    // A button that is pressed while the guest stands still is found pressed later.
    vm.ask("stop", json!({}));
    vm.ask("system_powerdown", json!({}));
    vm.ask("cont", json!({}));
    vm.wait_for_state(|state| state == "shutdown");
    assert_eq!(vm.serial(), "riiwbriiwb");
}

#[test]
fn the_button_and_the_interrupts_go_along_with_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    moves(launch(folder.path(), "source"), launch(folder.path(), "target"));
}

/// Moves a guest that waits for its button, which works at the target.
fn moves(source: Launch, target: Launch) {
    let folder = tempfile::tempdir().unwrap();
    let mut source = source.start();
    wait_for(&source, "riiw");
    let mut target = target.words(&["-no-shutdown"]).incoming("defer").start();
    let uri = format!("unix:{}", folder.path().join("migration").display());
    target.ask("migrate-incoming", json!({"uri": uri}));
    source.ask("migrate", json!({"uri": uri}));
    let report = source.outcome();
    assert_eq!(report["status"], "completed", "{report} {}", target.stderr());
    target.wait_for_state(|state| state == "running");
    target.ask("system_powerdown", json!({}));
    // It resets the machine then; a QEMU that took the guest has no kernel to start again.
    let end = Instant::now() + Duration::from_secs(60);
    while !target.serial().starts_with('b') {
        let said = (target.serial(), target.stderr());
        assert!(said.0.is_empty() && Instant::now() < end, "{said:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs QEMU"]
fn the_button_and_the_interrupts_go_to_qemu_and_come_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let launch = |name: &str, qemu: bool| {
        let launch = launch(folder.path(), name);
        if qemu { launch.qemu() } else { launch }
    };
    moves(launch("a", false), launch("b", true));
    moves(launch("c", true), launch("d", false));
}
