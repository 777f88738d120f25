//! What a process gives up once its machine is built, and what it was started with.

use crate::common::PATIENCE;
use crate::common::process::{Ended, qemus_name};
use crate::common::qmp::Client;
use crate::common::vm::Launch;
use serde_json::json;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A line of a process's status.
fn status_of(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap_or_default().to_owned()
}

fn wait_for(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while !std::fs::metadata(path).is_ok_and(|is| is.len() > 0) {
        assert!(Instant::now() < end, "{}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_process_that_gave_up_its_rights_still_runs_and_saves_its_guest() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let run_with = "user=nobody,chroot=@DIR@,async-teardown=on";
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [7; 8192]).unwrap();
    std::fs::set_permissions(&disk, Permissions::from_mode(0o666)).unwrap();
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let words = ["-run-with", run_with, "-sandbox", sandbox, "-name", "g,process=its-own-name"];
    let drive = ["-drive", "file=@DIR@/disk,format=raw,if=none,id=d", "-device"];
    let drive =
        Launch::new(folder.path(), "vm").words(&drive).words(&["virtio-blk-device,drive=d"]);
    let mut vm = drive.words(&words).start();
    let pid = vm.pid();
    // Each thread, for a right that one has all have.
    let nobody = std::fs::read_to_string("/etc/passwd").unwrap();
    let nobody = nobody.lines().find(|line| line.starts_with("nobody:")).unwrap();
    let uid = nobody.split(':').nth(2).unwrap().to_owned();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        let name = status_of(thread, "Name");
        // The kernel's own, which never run this program.
        if !name.starts_with("iou-") && !name.starts_with("kvm-") {
            assert_eq!(status_of(thread, "Uid"), uid, "{name}");
            assert_eq!(status_of(thread, "Seccomp"), "2", "{name}");
        }
    }
    assert_eq!(status_of(pid, "Name"), "its-own-name");
    assert_eq!(status_of(pid, "CapEff"), "0000000000000000");
    let root = std::fs::metadata(format!("/proc/{pid}/root/")).unwrap();
    assert_eq!(root.ino(), folder.path().metadata().unwrap().ino());

    // What this machine uses is seen to be so, by its name under the new root.
    let pmemsave = json!({"val": 0, "size": 4096, "filename": "/disk"});
    assert!(vm.try_ask("pmemsave", pmemsave).unwrap_err().contains("this machine uses it"));
    assert_eq!(std::fs::read(&disk).unwrap(), [7; 8192]);
    // Names are the new root's, and what was never touched is still no data.
    vm.ask("migrate", json!({"uri": "file:/saved"}));
    let end = Instant::now() + PATIENCE;
    loop {
        let told = vm.ask("query-migrate", json!({}));
        match told["status"].as_str() {
            Some("completed") => break,
            Some("failed") => panic!("{told}"),
            _ => assert!(Instant::now() < end, "{told}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let saved = folder.path().join("saved").metadata().unwrap();
    assert!(saved.uid().to_string() == uid && saved.len() < 40 << 20, "{} bytes", saved.len());
    vm.ask("quit", json!({}));
    assert_eq!(vm.exit_code(), Some(0));
}

#[test]
fn a_program_that_may_not_be_started_costs_the_guest_nothing() {
    let mut vm = Launch::alone().words(&["-sandbox", "on,spawn=deny"]).start();
    let refused = vm.try_ask("migrate", json!({"uri": "exec:cat > /dev/null"})).unwrap_err();
    assert!(refused.contains("Operation not permitted"), "{refused}");
    assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
}

#[test]
fn what_cannot_be_given_up_ends_the_start_with_a_reason() {
    for (words, why) in [
        (["-run-with", "user=no-such-user"], "the host has no such user"),
        (["-run-with", "chroot=/no/such/place"], "-run-with chroot=/no/such/place"),
        (["-add-fd", "fd=999,set=1"], "-add-fd fd=999"),
    ] {
        let mut vm = Launch::alone().words(&words).spawn();
        assert_eq!(vm.exit_code(), Some(1), "{words:?}");
        assert!(vm.stderr().contains(why), "{words:?}: {}", vm.stderr());
    }
}

#[test]
fn a_set_of_descriptors_is_there_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("state"), b"").unwrap();
    let script = "exec 7>\"$1\"; exec \"$0\" run -M microvm,acpi=off -m 16 -nodefaults -display none -kernel builtin \
                  -serial null -qmp unix:\"$2\",server=on,wait=off -add-fd fd=7,set=4,opaque=state \
                  -object memory-backend-memfd,id=mem,size=16M,share=on -numa node,memdev=mem";
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_godwit"), &path("state"), &path("qmp")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let end = Instant::now() + PATIENCE;
    while Client::try_connect(path("qmp").as_ref()).is_err() {
        assert!(Instant::now() < end && child.0.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut qmp = Client::negotiated(path("qmp").as_ref());
    let sets = qmp.ask("query-fdsets", json!({}));
    assert_eq!((&sets[0]["fdset-id"], &sets[0]["fds"][0]["opaque"]), (&json!(4), &json!("state")));
    let memory = qmp.ask("query-memdev", json!({}));
    assert_eq!(memory[0]["id"], "mem");
    qmp.ask("migrate", json!({"uri": "file:/dev/fdset/4"}));
    loop {
        let told = qmp.ask("query-migrate", json!({}));
        match told["status"].as_str() {
            Some("completed") => break,
            Some("failed") => panic!("{told}"),
            _ => assert!(Instant::now() < end, "{told}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let saved = std::fs::read(path("state")).unwrap();
    assert!(saved.starts_with(b"QEVM") && saved.windows(4).any(|at| at == b"\x03mem"));
    qmp.ask("quit", json!({}));
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn by_qemus_name_it_goes_to_the_background_too() {
    let folder = tempfile::tempdir().unwrap();
    let (link, pid) = (qemus_name(folder.path()), folder.path().join("pid"));
    let qmp = folder.path().join("qmp");
    let line = "-M microvm -m 16 -nodefaults -display none -kernel builtin -daemonize -run-with user=nobody";
    let started = Command::new(&link)
        .args(line.split_whitespace())
        .args(["-pidfile", pid.to_str().unwrap()])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    wait_for(&pid);
    let mut monitor = Client::negotiated(&qmp);
    assert_eq!(monitor.ask("query-status", json!({}))["running"], true);
    monitor.ask("quit", json!({}));
}
