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
        let backend = format!(
            "memory-backend-file,id=ram,size=64M,share=on,mem-path={}",
            small.0.join("ram").display()
        );
        let mut target = Launch::new(dir.path(), "target")
            .guest(GUEST)
            .words(&["-object", &backend, "-M", "microvm,acpi=off,memory-backend=ram"])
            .incoming(&uri(dir.path()))
            .start();
        // The block has the same name on both sides.
        let mut source = Launch::new(dir.path(), "source")
            .guest(GUEST)
            .words(&[
                "-object",
                "memory-backend-memfd,id=ram,size=64M",
                "-M",
                "microvm,acpi=off,memory-backend=ram",
            ])
            .start();
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
        let mut target = Launch::new(dir.path(), "second")
            .guest(GUEST)
            .words(&[
                "-object",
                "memory-backend-memfd,id=ram,size=64M",
                "-M",
                "microvm,acpi=off,memory-backend=ram",
            ])
            .incoming(&uri(dir.path()))
            .start();
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
