//! Why a stream was refused, and where.

use std::fmt;

/// A stream that cannot be read, with the place that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The part of the stream: `stream header`, `configuration`, `section ram`, `section cpu
    /// instance 0`, …
    pub section: String,
    /// The field in it, by its name in the format.
    pub field: String,
    /// Bytes from the start of the stream (of this connection), or of its file, to that field.
    pub offset: u64,
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("found {found:#x}, expected {expected:#x}")]
    Unexpected { found: u64, expected: u64 },
    #[error("version {found} is newer than {known}, the newest this reader knows")]
    Newer { found: u32, known: u32 },
    #[error("version {found} is older than {oldest}, the oldest this reader knows")]
    Older { found: u32, oldest: u32 },
    #[error("value {found:#x} is above the limit of {limit:#x}")]
    TooLarge { found: u64, limit: u64 },
    #[error("value {found:#x} is not allowed")]
    Invalid { found: u64 },
    #[error("\"{name}\" is not known")]
    Unknown { name: String },
    #[error("\"{name}\" appears twice")]
    Repeated { name: String },
    #[error("the stream ends here")]
    Ends,
    #[error("{0}")]
    Says(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, field {}, offset {:#x}: {}",
            self.section, self.field, self.offset, self.problem
        )
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn new(
        section: impl Into<String>,
        field: impl Into<String>,
        offset: u64,
        problem: Problem,
    ) -> Self {
        Self { section: section.into(), field: field.into(), offset, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_section_field_and_offset() {
        let error = Error::new(
            "section ram",
            "block name",
            0x5e,
            Problem::Unknown { name: "vga.vram".into() },
        );
        assert_eq!(
            error.to_string(),
            "section ram, field block name, offset 0x5e: \"vga.vram\" is not known"
        );
    }
}
