//! Why a machine could not be built or told to do something.

use crate::arch::x86_64::boot::BootError;
use crate::{devices, kvm, memory};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Device(#[from] devices::Error),
    #[error("cannot start a thread: {}{}", .0, kvm::advice::on_call(.0))]
    Thread(io::Error),
    #[error("this needs a guest that stands still")]
    Running,
    #[error("the machine is gone")]
    Gone,
    /// See [`super::moment`].
    #[error("{0}")]
    Moment(&'static str),
}

/// Why `cont` was refused. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum ContRefused {
    /// `internal-error` or `shutdown`.
    #[error("Resetting the Virtual Machine is required")]
    NeedsReset,
    /// The guest is about to be elsewhere, or a dump reads it: see [`super::moment`].
    #[error("{0}")]
    Moment(&'static str),
    /// `inmigrate`: the guest is not here yet.
    #[error("the guest has not arrived yet")]
    Arriving,
    /// The machine was told to quit.
    #[error("the machine is gone")]
    Gone,
    #[error(transparent)]
    Device(#[from] devices::Error),
}
