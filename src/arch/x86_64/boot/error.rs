use std::io;
use std::path::PathBuf;

/// Why a guest could not be prepared to start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no kernel: neither ELF nor a bzImage", .0.display())]
    NotAKernel(PathBuf),
    #[error("{} is a bzImage without a 64-bit entry (boot protocol 2.12 or later is needed)", .0.display())]
    Not64Bit(PathBuf),
    #[error("{} is a 32-bit ELF file without a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY)", .0.display())]
    NoPvhNote(PathBuf),
    #[error("{} is damaged: {what} is outside of the file or of any sense", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{} needs RAM up to {needs:#x}, the guest has {has:#x} bytes; give it more with -m", what.display())]
    NoRoom { what: PathBuf, needs: u64, has: u64 },
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    #[error("the kernel's command line has {bytes} bytes, {max} is the most it takes")]
    Cmdline { bytes: usize, max: usize },
    #[error("-append: {0}")]
    Builtin(String),
}
