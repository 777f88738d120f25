//! The friendly verbs: QMP clients that talk to Godwit, and to QEMU, from a shell.
//!
//! Plain blocking sockets; nothing here runs inside a machine's process. Progress goes to stderr,
//! as a bar on a terminal and as lines elsewhere; results go to stdout.

pub mod builtin_guest;
pub mod demo;
pub mod dump;
mod error;
mod figures;
pub mod interrupt;
pub mod migrate;
mod progress;
mod prompt;
pub(crate) mod qmp;
pub mod restore;
pub mod save;
pub mod shell;
pub mod snapshot;
pub mod status;
mod table;
mod terminal;
mod typed;
mod words;

pub use error::Error;

/// A result, on stdout.
pub fn show(text: impl std::fmt::Display) -> Result<(), Error> {
    Ok(terminal::show(text)?)
}
