//! Memory and disks that are full.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{GUEST, uri};
use crate::common::vm::Launch;

/// A file system of 3 MiB, which is less than the guest has. Needs root.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Self {
        let at = dir.join("small");
        std::fs::create_dir(&at).unwrap();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "none"]).arg(&at).status().unwrap();
        assert!(done.success(), "a tmpfs cannot be mounted; is this root?");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_target_whose_memory_is_full_says_so_and_the_guest_stays() {
    for framing in ["auto", "qemu"] {
        let dir = tempfile::tempdir().unwrap();
        let small = Small::mount(dir.path());
        // The block has the same name on all sides.
        let launch = |name: &str, backend: &str| {
            let backend = format!("memory-backend-{backend},id=ram,size=64M,share=on");
            let words = ["-object", &backend, "-M", "microvm,acpi=off,memory-backend=ram"];
            Launch::new(dir.path(), name).guest(GUEST).words(&words)
        };
        let full = format!("file,mem-path={}", small.0.join("ram").display());
        let mut target = launch("target", &full).incoming(&uri(dir.path())).start();
        let mut source = launch("source", "memfd").start();
        source.wait_for_sweeps(1);
        source.ask("migrate-set-parameters", json!({"x-godwit-stream": framing, "max-bandwidth": 0}));
        source.ask("migrate", json!({"uri": uri(dir.path())}));
        let report = source.outcome();
        assert_eq!(report["status"], "failed", "{framing}: {report}");
        source.assert_alive();
        assert_eq!(target.exit_code(), Some(1), "{framing}: {}", target.stderr());
        assert!(target.stderr().contains("no memory for the guest"), "{framing}: {}", target.stderr());
        drop(target);
        drop(small);
        let mut target = launch("second", "memfd").incoming(&uri(dir.path())).start();
        source.ask("migrate", json!({"uri": uri(dir.path())}));
        assert_eq!(source.outcome()["status"], "completed");
        target.assert_alive();
    }
}

#[test]
fn a_full_disk_ends_a_migration_to_a_file_and_the_guest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(dir.path());
    let mut source = Launch::new(dir.path(), "source").guest(GUEST).start();
    source.wait_for_sweeps(1);
    source.ask("migrate-set-parameters", json!({"max-bandwidth": 0}));
    source.ask("migrate", json!({"uri": format!("file:{}", small.0.join("state").display())}));
    let report = source.outcome();
    assert_eq!(report["status"], "failed");
    assert!(report["error-desc"].as_str().unwrap().contains("No space left"), "{report}");
    source.assert_alive();
    let roomy = dir.path().join("state");
    source.ask("migrate", json!({"uri": format!("file:{}", roomy.display())}));
    assert_eq!(source.outcome()["status"], "completed");
    let mut target =
        Launch::new(dir.path(), "target").guest(GUEST).incoming(&format!("file:{}", roomy.display())).start();
    target.outcome();
    target.assert_alive();
}
