//! What is said on a terminal, or to whatever stands in its place.

use super::error::Error;
pub(super) use crate::stderr::say;
use std::io::Write;

/// A result, on stdout.
pub fn show(text: impl std::fmt::Display) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
