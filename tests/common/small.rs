//! A file system of a few MiB, which fills up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs, taken away with the test. Needs root.
pub(crate) struct Small(pub PathBuf);

impl Small {
    /// Of `bytes` bytes, at `dir`/small.
    pub(crate) fn mount(dir: &Path, bytes: u64) -> Self {
        let at = dir.join("small");
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={bytes}");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(&at)
            .status()
            .unwrap();
        assert!(done.success(), "a tmpfs cannot be mounted; is this root?");
        Self(at)
    }

    /// Somebody else takes all the space that is left.
    pub(crate) fn fill(&self) {
        let mut ballast = std::fs::File::create(self.0.join("ballast")).unwrap();
        let full = (0..).find_map(|_| ballast.write_all(&[1; 4096]).err());
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
