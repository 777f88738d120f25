//! Why a verb did not do what it was asked for.

use super::demo::error::Error as DemoError;
use super::qmp;

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
    Demo(#[from] DemoError),
    #[error(transparent)]
    File(#[from] crate::output::Error),
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
