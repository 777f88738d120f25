//! What is said on a terminal, or to whatever stands in its place.

pub(super) use crate::stderr::say;
use std::io::{self, Write};

/// A result, on stdout.
pub(super) fn show(text: impl std::fmt::Display) -> io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()
}
