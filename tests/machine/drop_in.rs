//! Godwit under QEMU's name, and what programs ask it before they start a machine; what firmware would
//! leave to the guest.

use crate::common::process::qemus_name;
use crate::common::vm::Launch;
use crate::common::{acpi_guest, guest};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn by_its_name_it_is_qemu_and_answers_what_programs_ask() {
    let folder = tempfile::tempdir().unwrap();
    let link = qemus_name(folder.path());
    let says = |words: &str| {
        let told = Command::new(&link).args(words.split(' ')).output().unwrap();
        assert!(told.status.success(), "{words}: {told:?}");
        String::from_utf8(told.stdout).unwrap()
    };
    let version = says("--version");
    assert!(version.starts_with("QEMU emulator version 10.0.2 (Godwit "), "{version}");
    assert!(says("-accel help").lines().any(|line| line == "kvm"));
    assert!(says("-accel kvm,help").contains("dirty-ring-size="));
    let machines = says("-machine help");
    assert!(machines.lines().any(|line| line.starts_with("microvm ")), "{machines}");
    assert!(machines.lines().any(|line| line.starts_with("none ")), "{machines}");
    assert!(says("-M microvm,help").contains("acpi=on|off|auto"));
    assert!(says("-cpu help").contains("  host "));
    let devices = says("-device help");
    assert!(devices.contains("name \"virtio-rng-device\", bus virtio-mmio-bus"), "{devices}");
    assert!(says("-device virtio-rng-device,help").contains("max-bytes="));
    let refused = Command::new(&link).arg("-nonsense").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn an_empty_machine_answers_over_qmp_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Launch::new(folder.path(), "vm").no_guest().words(&["-M", "none", "-S"]).start();
    assert_eq!(vm.ask("query-machines", json!({}))[0]["name"], "microvm");
    assert_eq!(vm.ask("query-status", json!({}))["status"], "prelaunch");
    vm.ask("cont", json!({}));
    assert_eq!(vm.ask("query-status", json!({}))["status"], "running");
    vm.ask("system_reset", json!({}));
    vm.ask("stop", json!({}));
    assert_eq!(vm.ask("query-status", json!({}))["status"], "paused");
}

#[test]
fn a_machine_ends_with_the_process_that_started_it() {
    ends_with_its_parent("exit-with-parent=on");
    // The kernel forgets about parents where the user changes.
    ends_with_its_parent("exit-with-parent=on,user=nobody");
}

fn ends_with_its_parent(run_with: &str) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (link, pid) = (qemus_name(folder.path()), folder.path().join("pid"));
    // The shell starts it and waits, until it is ended itself.
    let script = "\"$0\" -M microvm -m 16 -nodefaults -display none -kernel builtin -run-with \"$2\" -pidfile \"$1\" & wait";
    let mut shell = Command::new("sh")
        .args(["-c", script])
        .args([&link, &pid])
        .arg(run_with)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let there = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| !text.is_empty());
    while !there(&pid) {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    shell.kill().unwrap();
    shell.wait().unwrap();
    // Its pid file goes when it ends as it should.
    while pid.exists() {
        assert!(Instant::now() < end, "it lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_reads_files_of_the_command_line_by_dma_and_finds_smbios_tables() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, file) = (folder.path().join("kernel"), folder.path().join("file"));
    std::fs::write(&kernel, guest::elf(&acpi_guest::reader())).unwrap();
    std::fs::write(&file, "from a file").unwrap();
    for (content, more, wanted) in [
        ("string=of two words".to_owned(), &["-smbios", "type=1,product=P"][..], "of two words+"),
        (format!("file={}", file.display()), &[], "from a file"),
    ] {
        let words = ["-fw_cfg", &format!("name=opt/org.godwit/test,{content}")];
        let launch = Launch::new(folder.path(), "vm").no_guest().words(&words).words(more);
        let vm = launch.words(&["-kernel", kernel.to_str().unwrap()]).start();
        let end = Instant::now() + Duration::from_secs(60);
        while vm.serial() != wanted {
            assert!(Instant::now() < end, "{} {}", vm.serial(), vm.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
