//! `-device isa-debug-exit`, from the command line to the status of the process.

use crate::common::guest;
use std::process::{Command, Stdio};

/// Runs a guest that writes 0x15 to port 0xf4, and to port 0x501 if it is still there.
fn status(device: &str) -> Option<i32> {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, guest::elf(&guest::exiting())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(["run", "-M", "microvm,acpi=off", "-m", "16", "-nodefaults", "-no-reboot"]);
    command.args(["-device", device, "-kernel"]).arg(kernel).stdin(Stdio::null());
    command.status().unwrap().code()
}

#[test]
fn a_guests_byte_is_the_status() {
    assert_eq!(status("isa-debug-exit,iobase=0xf4,iosize=0x04"), Some(0x15 << 1 | 1));
    assert_eq!(status("isa-debug-exit"), Some((0x90 << 1 | 1) & 0xff), "QEMU's default port");
    assert_eq!(status("isa-debug-exit,iobase=0x600"), Some(0), "nobody there: it shuts down");
}
