//! The friendly verbs with QEMU on the other end of the monitor.

use crate::common::cli::{godwit, text};
use crate::common::vm::{Launch, Vm};
use serde_json::Value;
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
