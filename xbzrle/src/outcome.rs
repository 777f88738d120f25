//! What the encoder has to say about a page, and why the decoder refuses a delta.

use std::fmt;

/// What became of a page that was compared with its older copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The page equals the older copy; nothing was written and nothing needs to be sent.
    Unchanged,
    /// The delta fills this many bytes at the start of the output, at least 3 and at most the page
    /// size.
    Delta(usize),
    /// The delta would be longer than the page, so send the page whole. The output holds nothing of
    /// use.
    TooLong,
}

/// Why a delta was refused. Offsets count bytes into the delta, positions count bytes into the
/// page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The delta is longer than the page it is meant for.
    TooLong { delta_bytes: usize, page_bytes: usize },
    /// Fewer than two bytes are left at `offset`, where a run length is expected.
    Truncated { offset: usize },
    /// The second byte of the run length at `offset` has its top bit set.
    LengthPast14Bits { offset: usize },
    /// The run at `offset` is empty. Only the first unchanged run of a delta may be.
    EmptyRun { offset: usize },
    /// The run of `run_bytes` announced at `offset` starts at `position` of the page and ends past
    /// the page.
    RunPastPage { offset: usize, run_bytes: usize, position: usize, page_bytes: usize },
    /// The changed run of `run_bytes` announced at `offset` ends past the delta.
    RunPastDelta { offset: usize, run_bytes: usize, delta_bytes: usize },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLong { delta_bytes, page_bytes } => {
                write!(f, "delta of {delta_bytes} bytes is longer than the {page_bytes}-byte page")
            }
            Self::Truncated { offset } => {
                write!(f, "delta ends where a run length is expected, at offset {offset}")
            }
            Self::LengthPast14Bits { offset } => {
                write!(f, "run length at delta offset {offset} has more than 14 bits")
            }
            Self::EmptyRun { offset } => write!(f, "empty run at delta offset {offset}"),
            Self::RunPastPage { offset, run_bytes, position, page_bytes } => write!(
                f,
                "run of {run_bytes} bytes at delta offset {offset} starts at {position} and ends past the \
                 {page_bytes}-byte page"
            ),
            Self::RunPastDelta { offset, run_bytes, delta_bytes } => write!(
                f,
                "changed run of {run_bytes} bytes at delta offset {offset} ends past the {delta_bytes}-byte delta"
            ),
        }
    }
}

impl std::error::Error for DecodeError {}
