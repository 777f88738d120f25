//! Why a stream could not be read, or what is in it not be written.

use super::options::BLOCK;
use crate::stream;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{file}: {1}", file = .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{file}: {1}", file = .0.display())]
    Stream(PathBuf, #[source] stream::Error),
    #[error("memory image: {0}")]
    Image(#[source] io::Error),
    #[error("memory image: {0}")]
    Memory(#[source] crate::memory::Error),
    #[error("no block \"{wanted}\" in the stream, but {found}")]
    NoBlock { wanted: String, found: String },
    #[error("--core knows where the memory of a microvm lies, and this is the stream of {0}")]
    Machine(String),
    #[error(
        "--core makes dumps of 4 TiB of memory at most, and the stream has a block of {0} bytes"
    )]
    TooLarge(u64),
    #[error("--core needs the image of {}; leave out --block", BLOCK)]
    OtherBlock,
    #[error(
        "--core needs the registers of the vCPUs, and the stream holds none that could be read"
    )]
    NoRegisters,
    #[error(transparent)]
    Output(#[from] crate::output::Error),
    #[error(transparent)]
    Dump(crate::dump::Error),
}

impl Failure {
    /// With the file's name, where it is not there yet.
    pub(crate) fn of(self, path: &Path) -> Self {
        match self {
            Self::Stream(known, error) if known.as_os_str().is_empty() => {
                Self::Stream(path.to_owned(), error)
            }
            other => other,
        }
    }
}

pub(super) fn read_failure(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::Read(path.to_owned(), error)
}
