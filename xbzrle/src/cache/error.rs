//! Why there is no cache.

use std::{error, fmt, io};

use crate::PAGE_SIZE;

/// Why a cache of the wanted size was not made.
#[derive(Debug)]
pub enum CacheError {
    /// Not even one page fits in `bytes`.
    TooSmall { bytes: u64 },
    /// The kernel, or the size of an address, refuses a mapping of `bytes`.
    Memory { bytes: u64, source: io::Error },
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheError::TooSmall { bytes } => {
                write!(
                    f,
                    "a page cache of {bytes} bytes does not hold one page of {PAGE_SIZE} bytes"
                )
            }
            CacheError::Memory { bytes, .. } => {
                write!(f, "no memory for a page cache of {bytes} bytes")
            }
        }
    }
}

impl error::Error for CacheError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            CacheError::TooSmall { .. } => None,
            CacheError::Memory { source, .. } => Some(source),
        }
    }
}

impl From<CacheError> for io::Error {
    fn from(error: CacheError) -> io::Error {
        let kind = match &error {
            CacheError::TooSmall { .. } => io::ErrorKind::InvalidInput,
            CacheError::Memory { .. } => io::ErrorKind::OutOfMemory,
        };
        io::Error::new(kind, error)
    }
}
