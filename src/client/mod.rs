//! The friendly verbs: QMP clients that talk to Godwit, and to QEMU, from a shell.
//!
//! Plain blocking sockets; nothing here runs inside a machine's process. Progress goes to stderr,
//! as a bar on a terminal and as lines elsewhere; results go to stdout.

use std::io::Write;

pub mod builtin_guest;
pub mod demo;
pub mod dump;
mod figures;
pub mod interrupt;
pub mod migrate;
mod progress;
pub mod qmp;
pub mod shell;
pub mod status;
mod table;

/// Why a verb did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    #[error("the migration failed: {0}")]
    Failed(String),
    #[error("the migration was cancelled; the guest runs on where it was")]
    Cancelled,
    #[error("the target waits already, at {0}: migrate to there, or start it again")]
    WaitsElsewhere(String),
    #[error("this VMM has no {0}; leave it out, or use a newer one")]
    NotThere(&'static str),
    #[error(transparent)]
    Dump(#[from] dump::DumpError),
    #[error(transparent)]
    Demo(#[from] demo::Error),
    #[error(transparent)]
    File(#[from] crate::output::Error),
    #[error("cannot write the answer")]
    Output(#[from] std::io::Error),
}

/// A result, on stdout.
fn show(text: impl std::fmt::Display) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A line on stderr. That it cannot be read any more (the terminal has gone) is no reason to stop.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
