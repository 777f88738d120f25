//! The friendly verbs with QEMU on the other end of the monitor. Runs with `GODWIT_PEERS=1`.

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn wanted() -> bool {
    let wanted = std::env::var_os("GODWIT_PEERS").is_some();
    if !wanted {
        eprintln!("skipped: set GODWIT_PEERS=1 to run QEMU");
    }
    wanted
}

fn godwit(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_godwit")).args(words).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

struct Qemu(Child);

impl Qemu {
    fn start(folder: &Path, side: &str, extra: &[&str]) -> (Qemu, String) {
        let kernel = folder.join("guest.elf");
        std::fs::write(&kernel, godwit::builtin::elf()).unwrap();
        let socket = folder.join(side);
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "kvm",
                "-M",
                "microvm,acpi=off",
                "-m",
                "64",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args(["-serial", "null", "-append", "ws=2", "-kernel"])
            .arg(kernel)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(extra)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !socket.exists() {
            assert!(begin.elapsed() < Duration::from_secs(20), "no monitor");
            std::thread::sleep(Duration::from_millis(10));
        }
        (Qemu(child), format!("unix:{}", socket.display()))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn demo_moves_the_guest_between_two_qemus_twice() {
    if !wanted() {
        return;
    }
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
fn migrate_prepares_both_sides_and_tells_why_it_failed() {
    if !wanted() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (_source, source_qmp) = Qemu::start(folder.path(), "source", &[]);
    let failed = godwit(&["migrate", "--qmp", &source_qmp, "tcp:127.0.0.1:1"]);
    assert!(!failed.status.success());
    assert!(text(&failed.stderr).contains("the migration failed: "), "{}", text(&failed.stderr));

    let (_target, target_qmp) = Qemu::start(folder.path(), "target", &["-incoming", "defer"]);
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
