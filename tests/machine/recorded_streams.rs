//! Streams of QEMU's go on here, ours go on in QEMU, and a machine saved and loaded is the same
//! machine.

use crate::common::machines::{Output, build, load, save, sections};
use crate::common::vectors::Vector;
use godwit::arch::x86_64::cpu::CpuState;
use godwit::devices::pit::PitState;
use godwit::machine::{Machine, RunState};
use std::process::Command;
use std::time::{Duration, Instant};

const WAITING: &str = "-accel kvm -M microvm,acpi=off -m 16 -nodefaults -display none -serial file:/dev/null -incoming defer";

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn go_on(machine: &Machine) {
    machine.set_state(RunState::Paused);
    machine.cont().expect("the guest goes on");
}

/// The window of memory that the vector's guest writes.
fn window(machine: &Machine, vector: &Vector) -> Vec<u8> {
    let guest = &vector.meta["guest"];
    let mut bytes = vec![0; guest["pages"].as_u64().unwrap() as usize * 4096];
    machine.ram().read(guest["base"].as_u64().unwrap(), &mut bytes).unwrap();
    bytes
}

/// A machine that runs the built-in guest.
fn build_with_guest() -> (std::sync::Arc<Machine>, Output) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, godwit::builtin::elf()).unwrap();
    build(&format!(
        "-accel kvm -M microvm,acpi=off -m 16 -nodefaults -display none -serial file:/dev/null -kernel {} -append ws=2",
        kernel.display()
    ))
}

fn guest_of_qemu_goes_on(name: &str, more: &str) {
    let vector = Vector::named(name);
    let (machine, _) = build(&format!("{WAITING} {more}"));
    let (report, run_state) =
        load(&machine, &vector.main()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(run_state, Some(RunState::Running), "{name}");
    assert_eq!(report.refused_msrs, [], "{name}");
    let before = window(&machine, &vector);
    go_on(&machine);
    for _ in 0..3 {
        let now = window(&machine, &vector);
        wait_for("the guest's memory to change", || window(&machine, &vector) != now);
    }
    assert_ne!(window(&machine, &vector), before);
    machine.stop(RunState::Paused).unwrap();
    machine.quit();
}

#[test]
fn guests_of_qemu_go_on() {
    guest_of_qemu_goes_on("kvm-acpi-off-16m", "");
    guest_of_qemu_goes_on("kvm-host-cpu-16m", "");
    guest_of_qemu_goes_on("kvm-2cpu-16m", "-smp 2");
    guest_of_qemu_goes_on("kvm-acpi-on-16m", "-M acpi=on,rtc=on");
}

#[test]
fn streams_that_do_not_fit_are_refused_with_the_place() {
    let refused = |name: &str, more: &str| {
        let (machine, _) = build(&format!("{WAITING} {more}"));
        let error = load(&machine, &Vector::named(name).main()).expect_err(name).to_string();
        machine.quit();
        error
    };
    let error = refused("kvm-acpi-on-16m", "");
    assert!(error.starts_with("section ioapic instance 1, field name, offset 0x"), "{error}");
    assert!(error.ends_with("the second I/O APIC of acpi=on and ioapic2=on"), "{error}");
    let error = refused("kvm-virtio-xbzrle-16m", "");
    assert!(
        error.starts_with("section virtio-mmio@00000000feb00e00/virtio-blk, field name"),
        "{error}"
    );
    let error = refused("kvm-acpi-off-16m", "-m 32");
    assert!(
        error.contains("16777216 bytes (16 MiB) of RAM, this machine has 33554432 (-m 32)"),
        "{error}"
    );
    let error = refused("kvm-2cpu-16m", "");
    assert!(error.contains("section cpu_common instance 1") && error.contains("-smp 1"), "{error}");
    let error = refused("kvm-acpi-off-16m", "-smp 2");
    assert!(error.starts_with("section cpu instance 1") && error.contains("missing"), "{error}");
    let error = refused("tcg-max-cpu-16m", "");
    assert!(
        error.contains("section mc146818rtc") && error.contains("MC146818 clock of rtc=on"),
        "{error}"
    );
}

#[test]
fn damage_and_misfits_are_refused_by_name() {
    let bytes = Vector::named("kvm-acpi-off-16m").main();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        let (machine, _) = build(WAITING);
        let result = load(&machine, &bytes);
        machine.quit();
        result.expect_err("the stream was edited").to_string()
    };
    let cpu = bytes.windows(9).position(|w| w == b"\x03cpu\0\0\0\0\0").unwrap();
    let error = edited(&|b| b[13..20].copy_from_slice(b"isapcxx"));
    assert!(
        error.contains("field machine name") && error.contains("\"isapcxx\", this is a microvm"),
        "{error}"
    );
    let error = edited(&|b| b[cpu + 11] = 13);
    assert!(
        error.contains("section cpu, field version") && error.contains("13 is newer than 12"),
        "{error}"
    );
    let khz = bytes.windows(11).position(|w| w == b"cpu/tsc_khz").unwrap();
    let error = edited(&|b| b[khz + 4] = b'x');
    assert!(
        error.contains("section cpu, field subsection")
            && error.contains("\"cpu/xsc_khz\" is not known"),
        "{error}"
    );
    let error = edited(&|b| b[khz + 14] = 2);
    assert!(error.contains("field cpu/tsc_khz") && error.contains("2 is newer than 1"), "{error}");
}

/// Register state, without what runs on or is told relative to now.
fn standing(machine: &Machine) -> Vec<String> {
    sections(machine)
        .iter()
        .map(|(header, section)| {
            let mut section = section.clone();
            if let Some(cpu) = section.downcast_mut::<CpuState>() {
                cpu.tsc = 0;
            }
            if let Some(pit) = section.downcast_mut::<PitState>() {
                pit.next_transition_time = 0;
                for channel in &mut pit.channels {
                    (channel.count_load_time, channel.next_transition_time) = (0, 0);
                }
            }
            format!("{header}: {section:#?}")
        })
        .collect()
}

fn sound(output: &Output) {
    let text = output.text();
    assert!(!text.contains("CORRUPT"), "{text}");
}

#[test]
fn saved_and_loaded_fifty_times_is_the_same_machine() {
    let (mut machine, mut output) = build_with_guest();
    machine.cont().unwrap();
    wait_for("the first line", || output.text().lines().count() > 1);
    for round in 0..50 {
        machine.stop(RunState::Paused).unwrap();
        let (before, stream) = (standing(&machine), save(&machine));
        sound(&output);
        machine.quit();
        drop(machine);
        (machine, output) = build(WAITING);
        let (report, _) = load(&machine, &stream).unwrap();
        assert_eq!(report.refused_msrs, [], "round {round}");
        for (before, after) in before.iter().zip(standing(&machine)) {
            assert_eq!(*before, after, "round {round}");
        }
        go_on(&machine);
        wait_for("a line of output", || output.text().lines().count() > 1);
    }
    machine.stop(RunState::Paused).unwrap();
    sound(&output);
    machine.quit();
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_goes_on_with_our_guest() {
    let (machine, output) = build_with_guest();
    machine.cont().unwrap();
    wait_for("the first line", || output.text().lines().count() > 1);
    machine.stop(RunState::Paused).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("stream"), save(&machine)).unwrap();
    std::fs::write(path("kernel"), godwit::builtin::elf()).unwrap();
    machine.quit();
    let words = format!(
        "-accel kvm -cpu host,arch-capabilities=off -M microvm,acpi=off -m 16 -nodefaults -display none -no-reboot -serial file:{} -kernel {} \
         -incoming exec:cat~{}",
        path("serial"),
        path("kernel"),
        path("stream")
    );
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(words.split_whitespace().map(|word| word.replace('~', " ")))
        .stderr(std::fs::File::create(path("errors")).unwrap())
        .spawn()
        .unwrap();
    let read = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(path(name)).unwrap_or_default()).into_owned()
    };
    let start = Instant::now();
    while read("serial").lines().count() < 3 && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = qemu.try_wait().unwrap();
    let _ = qemu.kill();
    let _ = qemu.wait();
    let (serial, errors) = (read("serial"), read("errors"));
    assert!(ended.is_none(), "QEMU ended: {errors}");
    assert!(serial.lines().count() >= 3 && !serial.contains("CORRUPT"), "{serial}\n{errors}");
    eprintln!("QEMU's guest says:\n{serial}{errors}");
}

#[test]
fn a_machine_without_a_serial_port_has_none_in_its_streams() {
    let words = "-M microvm,acpi=off -m 16 -nodefaults -display none";
    let (source, _) = build(&format!("{words} -kernel builtin"));
    let stream = save(&source);
    assert!(
        !stream.windows(6).any(|bytes| bytes == b"serial"),
        "a section of a port that is not there"
    );
    for serial in ["", "-serial null"] {
        let (target, _) = build(&format!("{words} {serial} -incoming defer"));
        load(&target, &stream).unwrap();
    }
}
