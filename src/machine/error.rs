//! Why a machine could not be built or told to do something.

use super::RunState;
use crate::memory;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// Why `cont` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContRefused {
    /// `internal-error` or `shutdown`.
    #[error("Resetting the Virtual Machine is required")]
    NeedsReset,
    /// The guest is about to be elsewhere (`finish-migrate`), or is still coming (`inmigrate`).
    #[error("the guest cannot go on in state {}", .0.name())]
    State(RunState),
    /// The machine was told to quit.
    #[error("the machine is gone")]
    Gone,
}
