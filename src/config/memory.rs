//! What is behind guest RAM.

use std::path::PathBuf;

/// Guest RAM: one block, whatever lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// A multiple of 8 KiB, at least one.
    pub bytes: u64,
    /// The block's name in migration streams: `microvm.ram`, or the id of the backend that was
    /// named with `memory-backend=`.
    pub block: String,
    pub backend: MemoryBackend,
    /// Touch every page before the guest starts.
    pub prealloc: bool,
    /// Let KSM merge equal pages (`MADV_MERGEABLE`).
    pub merge: bool,
    /// Include guest RAM in core dumps of the VMM itself.
    pub dump: bool,
}

/// Where guest RAM comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryBackend {
    /// `memory-backend-ram`, and the default without any `-object`: anonymous memory; shared, it is
    /// a memfd like the next.
    Anonymous { share: bool },
    /// `memory-backend-memfd`.
    Memfd { share: bool, seal: bool, huge_pages: Option<HugePages> },
    /// `memory-backend-file`: a file, a file on hugetlbfs, or a fresh unnamed file if `path` is a
    /// directory.
    File { path: PathBuf, share: bool, offset: u64, readonly: bool, discard_at_exit: bool },
}

impl MemoryBackend {
    /// QEMU's names of the kinds there are.
    pub(crate) const TYPES: [&str; 3] =
        ["memory-backend-ram", "memory-backend-file", "memory-backend-memfd"];

    /// The one that this is.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            MemoryBackend::Anonymous { .. } => Self::TYPES[0],
            MemoryBackend::File { .. } => Self::TYPES[1],
            MemoryBackend::Memfd { .. } => Self::TYPES[2],
        }
    }

    /// Whether other processes can have it, too.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            MemoryBackend::Anonymous { share }
            | MemoryBackend::File { share, .. }
            | MemoryBackend::Memfd { share, .. } => *share,
        }
    }
}

/// The hugetlb page size of a memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// The host's default size.
    Default,
    /// A power of two.
    Bytes(u64),
}
