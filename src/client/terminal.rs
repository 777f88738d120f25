//! What is said on a terminal, or to whatever stands in its place.

use super::error::Error;
use std::io::Write;

/// A result, on stdout.
pub fn show(text: impl std::fmt::Display) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A line on stderr. That it cannot be read any more (the terminal has gone) is no reason to stop.
pub fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
