//! Hosts that lack what a guest needs: `godwit run` ends at once and says what to do.

use crate::common::filter;
use rustix::fs::{CWD, FileType};
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

const GUEST: [&str; 7] =
    ["run", "-M", "microvm,acpi=off", "-nodefaults", "-display", "none", "-kernel"];

fn godwit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(GUEST).arg("builtin").stdin(Stdio::null());
    command
}

/// What it says when it refuses, which must be one line.
fn refusal(output: Output) -> String {
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn without_kvm() {
    let text = refusal(godwit().args(["-accel", "kvm,device=/dev/no-kvm"]).output().unwrap());
    assert!(
        text.starts_with("godwit: cannot open /dev/no-kvm: No such file or directory"),
        "{text}"
    );
    assert!(
        text.contains("modprobe kvm_intel or kvm_amd") && text.contains("--device /dev/kvm"),
        "{text}"
    );
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
    let text = refusal(godwit().args(["-accel", "kvm,device=/dev/null"]).output().unwrap());
    assert!(text.contains("/dev/null is not KVM"), "{text}");
}

#[test]
fn without_io_uring() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut command = godwit();
        filter::forbid(&mut command, libc::SYS_io_uring_setup, errno);
        let text = refusal(command.output().unwrap());
        assert!(text.starts_with("godwit: io_uring is not available here"), "{text}");
        assert!(text.contains("seccomp") || text.contains("io_uring_disabled"), "{text}");
    }
}

#[test]
fn without_memory() {
    let words = format!(
        "ulimit -v 1000000; exec {} {} builtin -m 2G",
        env!("CARGO_BIN_EXE_godwit"),
        GUEST.join(" ")
    );
    let text =
        refusal(Command::new("sh").args(["-c", &words]).stdin(Stdio::null()).output().unwrap());
    assert!(text.contains("cannot get 2147483648 bytes of guest RAM"), "{text}");
    assert!(text.contains("less with -m") && text.contains("ulimit -v"), "{text}");
}

/// As another user, because root has no such limit.
#[test]
fn without_threads() {
    const USER: u32 = 54321;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_godwit"), path("godwit")).unwrap();
    // A device that this user may open, whatever the groups are.
    let device = std::fs::metadata("/dev/kvm").unwrap().rdev();
    rustix::fs::mknodat(CWD, path("kvm"), FileType::CharacterDevice, 0o600.into(), device)
        .expect("this needs root");
    std::fs::set_permissions(path("kvm"), Permissions::from_mode(0o666)).unwrap();
    let mut works = 0;
    for limit in 1..=8 {
        let script = format!("ulimit -u {limit}; exec ./godwit \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(GUEST)
            .args(["builtin", "-append", "ws=1", "-m", "16", "-smp", "2", "-serial", "stdio"])
            .args(["-accel", "kvm,device=kvm"])
            .current_dir(folder.path())
            .uid(USER)
            .gid(USER)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The guest speaks, or the process ends.
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let spoke = said.any(|line| line.is_ok_and(|line| line.contains("sweep")));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if spoke {
            works += 1;
            continue;
        }
        let text = refusal(output);
        assert!(works == 0 && text.contains("ulimit -u"), "{limit}: {text}");
    }
    assert!(works > 0);
}
