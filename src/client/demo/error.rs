//! Why nothing, or not all, could be shown.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no /dev/kvm: load the module kvm_intel or kvm_amd (modprobe), after switching virtualization on in the \
         firmware or, inside a virtual machine, nested virtualization on its host"
    )]
    NoKvm,
    #[error(
        "/dev/kvm is not yours to use: `sudo usermod -aG kvm $USER`, then log in again (or run this as root)"
    )]
    NotYours,
    #[error("/dev/kvm cannot be opened: {0}")]
    Kvm(std::io::Error),
    #[error("cannot start {program}")]
    Start { program: String, source: std::io::Error },
    #[error("the {side} ended: {words}")]
    Ended { side: &'static str, words: String },
    #[error("the guest on the {side} wrote no line in {} s", .limit.as_secs())]
    Silent { side: &'static str, limit: Duration },
    #[error("the guest found its memory corrupted: {0}")]
    Corrupt(String),
    #[error("the guest went back: {0}")]
    WentBack(String),
    #[error("the target does not say where it listens")]
    NoPort,
    #[error("cannot use a folder for temporary files: {0}")]
    Folder(std::io::Error),
    #[error("the name of the folder for temporary files, {}, is not UTF-8; set TMPDIR", .0.display())]
    FolderName(PathBuf),
    #[error("interrupted")]
    Interrupted,
}
