//! Why a verb did not do what it was asked for.

use super::demo::error::Error as DemoError;
use super::qmp;
use std::path::PathBuf;

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
    #[error("{command}: {why}")]
    Argument { command: String, why: String },
    #[error("the prompt cannot go on")]
    Prompt(#[from] rustyline::error::ReadlineError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    File(#[from] crate::output::Error),
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
    #[error("cannot write the answer")]
    Output(#[from] std::io::Error),
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("{0}")]
    Failed(String),
    #[error("the dump was cancelled; the guest goes on")]
    Cancelled,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("{} is not written, and what was there stays as it was: {}", .0.display(), .1)]
    Failed(PathBuf, String),
    #[error("the snapshot was cancelled: {} is as it was, and the guest goes on", .0.display())]
    Cancelled(PathBuf),
    #[error(
        "{} is nothing that a finished file can take the place of (a device, a mount point, another user's): a snapshot \
         is written beside it first; name another file",
        .0.display()
    )]
    NotBeside(PathBuf),
    #[error("the temporary file beside {} cannot be opened for writing", .0.display())]
    Temporary(PathBuf, #[source] std::io::Error),
    #[error("{} is whole, but the guest does not go on: {}", .0.display(), .1)]
    Stands(PathBuf, String),
    #[error(
        "the guest stands still since a migration or a snapshot; `cont` first, if it is to go on here"
    )]
    StandsSince,
    #[error("this VMM has no capability {0}; a newer one has")]
    NotThere(&'static str),
}

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{} cannot be opened", .0.display())]
    Open(PathBuf, #[source] std::io::Error),
    #[error("{} is no snapshot: `godwit save` writes one", .0.display())]
    NoSnapshot(PathBuf),
    #[error("restore says itself where the guest comes from; leave out -incoming")]
    Incoming,
    #[error("the name of {} is not UTF-8; a link of another name would do", .0.display())]
    NotUtf8(PathBuf),
    #[error("the name {} has \",offset=\" in it, which an address takes for its own; a link of another name would do", .0.display())]
    Offset(PathBuf),
}
