//! What is told to people on stderr. It may be a file on a full disk, or a pipe that nobody reads any
//! more: what cannot be told is lost, and nobody ends for it, as they would by `eprintln!`.

use std::io::Write;

/// A line, as far as it can be said.
pub fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// [`say`] with the words of `format!`.
macro_rules! say {
    ($($words:tt)*) => { $crate::stderr::say(format_args!($($words)*)) };
}
