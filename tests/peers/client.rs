//! The friendly verbs with QEMU on the other end of the monitor.

use crate::common::cli::{godwit, text};
use crate::common::vm::{Launch, Vm};
use serde_json::{Value, json};
use std::path::Path;

fn qemu(folder: &Path, side: &str, extra: &[&str]) -> (Vm, String) {
    let mut vm = Launch::new(folder, side).qemu().guest("ws=2").words(extra).start();
    vm.hang_up();
    let monitor = format!("unix:{}", vm.monitor().display());
    (vm, monitor)
}

#[test]
#[ignore = "needs QEMU"]
fn demo_moves_the_guest_between_two_qemus_twice() {
    let demo = godwit(&[
        "demo",
        "--vmm",
        "qemu-system-x86_64",
        "--memory",
        "128M",
        "--working-set",
        "16M",
        "--rate",
        "4000",
    ]);
    let table = text(&demo.stdout);
    assert!(demo.status.success(), "{table}{}", text(&demo.stderr));
    let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_string();
    assert_eq!(row("outcome").matches("completed").count(), 2, "{table}");
    assert_eq!(row("corrupted pages").matches("none").count(), 2, "{table}");
}

#[test]
#[ignore = "needs QEMU"]
fn migrate_prepares_both_sides_and_tells_why_it_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (_source, source_qmp) = qemu(folder.path(), "source", &[]);
    let failed = godwit(&["migrate", "--qmp", &source_qmp, "tcp:127.0.0.1:1"]);
    assert!(!failed.status.success());
    assert!(text(&failed.stderr).contains("the migration failed: "), "{}", text(&failed.stderr));

    let (_target, target_qmp) = qemu(folder.path(), "target", &["-incoming", "defer"]);
    let uri = format!("unix:{}", folder.path().join("stream").display());
    let moved = godwit(&[
        "migrate",
        "--qmp",
        &source_qmp,
        "--target-qmp",
        &target_qmp,
        "--xbzrle=3M",
        "--json",
        &uri,
    ]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    let answer: Value = serde_json::from_str(&text(&moved.stdout)).unwrap();
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["xbzrle-cache"]["cache-size"], 2 << 20);
    let glance = text(&godwit(&["status", "--qmp", &target_qmp]).stdout);
    assert!(glance.contains("state       running"), "{glance}");
}

/// A QEMU is saved as a Godwit is, and what it had set is set again.
#[test]
#[ignore = "needs QEMU"]
fn save_and_restore_take_a_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, qmp) = qemu(folder.path(), "source", &[]);
    let file = folder.path().join("snapshot");
    let name = file.to_str().unwrap();
    source.connect();
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 55 << 20, "direct-io": true}));
    source.hang_up();
    for words in [&[name][..], &[name, "--channels", "2"]] {
        let made = godwit(&[&["save", "--qmp", &qmp], words].concat());
        let said = text(&made.stdout);
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(said.contains("goes on"), "{said}");
        source.connect();
        source.assert_alive();
        let set = source.ask("query-migrate-parameters", json!({}));
        assert_eq!((&set["max-bandwidth"], &set["direct-io"]), (&json!(55 << 20), &json!(true)));
        let list = source.ask("query-migrate-capabilities", json!({}));
        assert!(!list.as_array().unwrap().iter().any(|c| c["state"] == true), "{list}");
        assert_eq!(source.ask("query-fdsets", json!({})), json!([]));
        source.hang_up();
    }
    let launch = Launch::new(folder.path(), "target").guest("ws=2");
    let place = format!("file:{name},x-godwit-restore=mapped");
    launch.incoming(&place).start().wait_for_sweeps(2);
}
