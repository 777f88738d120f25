//! Why a device could not be built, or told to do something.

use crate::kvm;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    #[error(
        "{what} {start:#x} to {:#x} belong to another device, or are not there",
        start.saturating_add(*count - 1)
    )]
    Taken { what: &'static str, start: u64, count: u64 },
    /// What the host did not give.
    #[error("{what}: {source}")]
    Host { what: String, source: std::io::Error },
    /// What a disk is made of.
    #[error("disk image {name}: {why}")]
    Image { name: String, why: String },
    /// A section that decodes and yet cannot be taken: the field and why.
    #[error("section {section}, field {field}: {why}")]
    Misfit { section: String, field: &'static str, why: String },
}
