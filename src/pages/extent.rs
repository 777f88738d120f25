//! What is known of memory that is not read.

/// What is known about a piece of memory without reading it. The number is its length in bytes, at
/// least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Never written: reads as zeros, and is better not read, since reading may allocate it.
    Hole(u64),
    Data(u64),
}
