//! A guest that ends its process.

use crate::common::guest;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MACHINE: &str = "-M microvm,acpi=off -m 16 -nodefaults -display none -serial stdio -kernel";

fn kernel(folder: &Path) -> PathBuf {
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, guest::elf(&guest::exiter())).unwrap();
    kernel
}

fn run(program: &str, first: &[&str], more: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(program)
        .args(first)
        .args(MACHINE.split(' '))
        .arg(kernel(folder.path()))
        .args(more.split(' '))
        .output()
        .unwrap()
}

fn godwit(more: &str) -> Output {
    run(env!("CARGO_BIN_EXE_godwit"), &["run"], more)
}

/// The status for a byte written to 0xf4 (0x2a, as a word), then to 0x501 (0x15); the last device
/// is the first to be written to.
const CASES: [(&str, i32); 3] = [
    ("-device isa-debug-exit", 43),
    ("-device isa-debug-exit,iobase=0xf4,iosize=0x04", 85),
    ("-device isa-debug-exit,id=a -device isa-debug-exit,iobase=244,iosize=4,id=b", 85),
];

#[test]
fn the_guest_gives_the_exit_status_and_does_nothing_after_it() {
    for (device, status) in CASES {
        let ended = godwit(device);
        assert_eq!(ended.status.code(), Some(status), "{device}: {ended:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stdout).matches('!').count(), 0, "{device}");
    }
}

#[test]
#[ignore = "needs QEMU"]
fn qemu_ends_with_the_same_status() {
    // QEMU lets the guest run on for a moment, so that a second device may have the last word.
    for (device, status) in CASES.into_iter().take(2) {
        let ended = run("qemu-system-x86_64", &["-accel", "kvm"], device);
        assert_eq!(ended.status.code(), Some(status), "{device}: {ended:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |device: &str| {
        let ended = godwit(device);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        String::from_utf8(ended.stderr).unwrap()
    };
    let text = refused("-device isa-debug-exit,iobase=0x3f7");
    assert!(text.contains("I/O ports 0x3f7 to 0x3f8 belong to another device"), "{text}");
    let text = refused("-device isa-debug-exit,iobase=0xffff,iosize=2");
    assert!(text.contains("I/O ports 0xffff to 0x10000"), "{text}");
    let text = refused("-device isa-debug-exit,iosize=0");
    assert!(text.contains("-device iosize=0: expects a number from 1 to 65536"), "{text}");
    let text = refused("-device isa-debug-exit,id=a -device vmcoreinfo,id=a");
    assert!(text.contains("-device vmcoreinfo: there is already a device with this id"), "{text}");
}

#[test]
fn help_tells_its_properties() {
    let help = |what: &str| {
        let told = godwit(&format!("-device {what}"));
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stdout).unwrap()
    };
    assert!(
        help("help")
            .contains("name \"isa-debug-exit\", bus isa.0, desc \"lets the guest end the process")
    );
    assert_eq!(help("isa-debug-exit,help"), "iobase=0x501\niosize=2\nid=ID\n");
}
