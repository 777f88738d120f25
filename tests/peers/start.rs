//! Names that a Godwit and a QEMU on one host both want.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::common::PATIENCE;
use crate::common::process::Ended;

const LINE: [&str; 11] = [
    "-M",
    "microvm,acpi=off",
    "-m",
    "16",
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-pidfile",
    "p",
    "-qmp",
];

fn godwit(folder: &Path, socket: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.arg("run").args(LINE).arg(socket).args(["-kernel", "builtin"]).current_dir(folder);
    command
}

fn qemu(folder: &Path, socket: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"]);
    command.args(LINE).arg(socket).current_dir(folder);
    command
}

fn start(mut command: Command, socket: &Path) -> Ended {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let running = Ended(child);
    let end = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < end, "no monitor");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running
}

fn refusal(output: Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "needs QEMU"]
fn a_pid_file_belongs_to_one_of_both_and_a_living_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mine, other) = ("unix:q,server=on,wait=off", "unix:other,server=on,wait=off");
    let first = start(qemu(folder, mine), &folder.join("q"));
    let text = refusal(godwit(folder, other).output().unwrap());
    let held = format!("-pidfile p: a running machine holds it (process {})", first.0.id());
    assert!(text.contains(&held), "{text}");
    let mut without_pid_file = godwit(folder, mine);
    without_pid_file.args(["-pidfile", "p2"]);
    let text = refusal(without_pid_file.output().unwrap());
    assert!(text.contains("unix:q: a running program listens there"), "{text}");
    UnixStream::connect(folder.join("q")).unwrap();
    drop(first);

    let _second = start(godwit(folder, mine), &folder.join("q"));
    let text = refusal(qemu(folder, other).output().unwrap());
    assert!(text.contains("Cannot lock pid file"), "{text}");
}
