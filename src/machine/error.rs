//! Why a machine could not be built or told to do something.

use super::RunState;
use crate::arch::x86_64::boot::BootError;
use crate::{kvm, memory};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot start a vCPU thread: {0}")]
    Thread(io::Error),
    #[error("this needs a guest that stands still")]
    Running,
    #[error("state of {found} vCPUs for a machine of {wanted}")]
    CpuCount { found: usize, wanted: usize },
    #[error("the machine is gone")]
    Gone,
}

/// Why `cont` was refused. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum ContRefused {
    /// `internal-error` or `shutdown`.
    #[error("Resetting the Virtual Machine is required")]
    NeedsReset,
    /// `finish-migrate`: the guest is about to be elsewhere.
    #[error("Migration is not finalized yet")]
    Migrating,
    /// `inmigrate`: the guest is not here yet.
    #[error("the guest has not arrived yet")]
    Arriving,
    /// The machine was told to quit.
    #[error("the machine is gone")]
    Gone,
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
}

impl ContRefused {
    /// Why a machine in `state` cannot go on, if it cannot.
    pub(super) fn of(state: RunState) -> Option<ContRefused> {
        match state {
            s if s.needs_reset() => Some(ContRefused::NeedsReset),
            RunState::FinishMigrate => Some(ContRefused::Migrating),
            RunState::InMigrate => Some(ContRefused::Arriving),
            _ => None,
        }
    }
}
