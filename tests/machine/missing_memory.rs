//! Guest memory that the host cannot supply: a file system that is full, a file that was cut short.
//! The guest stops by name, no command ends it, and nothing reads as zeros that was not.

use crate::common::small::Small;
use crate::common::vm::{Launch, Vm};
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::process::Command;

fn launch(dir: &Path, ram: &Path, share: &str, set: &str) -> Launch {
    let ram = format!(
        "memory-backend-file,id=guest-ram,size=64M,share={share},mem-path={}",
        ram.display()
    );
    let words = ["-object", &ram, "-M", "microvm,acpi=off,memory-backend=guest-ram"];
    Launch::new(dir, "vm").guest(set).words(&words)
}

/// The state says so, and an event and stderr which memory it is.
fn assert_stopped_by_name(vm: &mut Vm, ram: &Path, reason: &str) {
    vm.wait_for_status("internal-error");
    let name = ram.to_str().unwrap();
    let said = vm.stderr();
    assert!(said.contains(name) && said.contains(reason), "{said}");
    let event = vm.session().event("MEMORY_FAILURE");
    let data = &event["data"];
    assert_eq!((&data["recipient"], &data["action"]), (&json!("guest"), &json!("fatal")));
    assert!(data["x-godwit-reason"].as_str().unwrap().contains(name), "{data}");
    assert!(!vm.serial().contains("CORRUPT"), "the guest saw it: {}", vm.serial());
    assert!(vm.try_ask("cont", json!({})).is_err(), "a reset is needed");
}

#[test]
fn a_guest_whose_memory_is_full_stops_and_names_it() {
    for share in ["on", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let small = Small::mount(dir.path(), 20 << 20);
        let ram = small.0.join("ram");
        let mut vm = launch(dir.path(), &ram, share, "ws=48").start();
        assert_stopped_by_name(&mut vm, &ram, "no memory for the guest");
        assert!(vm.stderr().contains("is full"), "{}", vm.stderr());
        // What is there can be saved, and holes are not read: there is no memory for them.
        let saved = dir.path().join("saved");
        vm.ask("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": saved}));
        let protocol = format!("file:{}", dir.path().join("core").display());
        vm.ask("dump-guest-memory", json!({"paging": false, "protocol": protocol}));
        assert_eq!(std::fs::metadata(&saved).unwrap().len(), 64 << 20);
        vm.ask("quit", json!({}));
        assert_eq!(vm.exit_code(), Some(0));
    }
}

#[test]
fn a_machine_whose_kernel_finds_no_memory_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(dir.path(), 16 << 10);
    let ram = format!(
        "memory-backend-file,id=guest-ram,size=64M,share=on,mem-path={}/ram",
        small.0.display()
    );
    let made = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["run", "-M", "microvm,acpi=off,memory-backend=guest-ram", "-m", "64M"])
        .args(["-object", &ram, "-kernel", "builtin", "-display", "none", "-serial", "none"])
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(1));
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(said.contains("no memory for the guest") && said.contains("/ram"), "{said}");
}

#[test]
fn a_file_cut_short_is_an_error_of_each_command_and_no_end_of_the_guest() {
    for share in ["on", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let ram = dir.path().join("ram");
        let mut vm = launch(dir.path(), &ram, share, "ws=16").start();
        vm.wait_for_sweeps(1);
        vm.ask("stop", json!({}));
        File::options().write(true).open(&ram).unwrap().set_len(8 << 20).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let dump = |format: &str| json!({"paging": false, "protocol": format!("file:{}", path(format)), "format": format});
        let commands = [
            ("pmemsave", json!({"val": 0, "size": 64 << 20, "filename": path("p")})),
            ("memsave", json!({"val": 4 << 20, "size": 32 << 20, "filename": path("m")})),
            ("dump-guest-memory", dump("elf")),
            ("dump-guest-memory", dump("kdump-zlib")),
            ("dump-guest-memory", dump("kdump-raw-zlib")),
        ];
        for (command, arguments) in commands {
            let error = vm.try_ask(command, arguments.clone()).unwrap_err();
            assert!(error.contains("cut short"), "{share} {command} {arguments}: {error}");
            assert_eq!(vm.status(), "paused");
        }
        vm.ask("migrate", json!({"uri": format!("file:{}", path("state"))}));
        let report = vm.outcome();
        assert_eq!(report["status"], "failed", "{report}");
        assert!(report["error-desc"].as_str().unwrap().contains("cut short"), "{report}");
        // What is still there can be saved.
        vm.ask("pmemsave", json!({"val": 0, "size": 8 << 20, "filename": path("rest")}));
        vm.ask("cont", json!({}));
        assert_stopped_by_name(&mut vm, &ram, "cut short");
    }
}

#[test]
fn a_file_of_the_users_that_is_too_short_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ram = dir.path().join("precious");
    std::fs::write(&ram, "words").unwrap();
    let object =
        format!("memory-backend-file,id=guest-ram,size=64M,share=on,mem-path={}", ram.display());
    let made = Command::new(env!("CARGO_BIN_EXE_godwit"))
        .args(["run", "-M", "microvm,acpi=off,memory-backend=guest-ram", "-m", "64M"])
        .args(["-object", &object, "-kernel", "builtin", "-display", "none", "-serial", "none"])
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(1));
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(said.contains("precious has 5 bytes and 67108864 are needed"), "{said}");
    assert_eq!(std::fs::read(&ram).unwrap(), b"words");
}
