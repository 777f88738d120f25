//! Why the machine could not do what a migration asked.

use crate::kvm::compat::Lack;
use crate::machine::{self, ContRefused};
use crate::{devices, kvm, stream};

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Cont(#[from] ContRefused),
    #[error(transparent)]
    Device(#[from] devices::Error),
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The sections of a stream are not all that the guest needs, or do not fit together.
    #[error(transparent)]
    State(#[from] stream::Error),
    #[error("this host's processor lacks what the guest was given: {0}")]
    Processor(Lack),
    #[error("{0}")]
    TscRate(kvm::TscRates),
    #[error("the state was applied before")]
    AppliedBefore,
    /// Of a guest that is none: tests put one in the machine's place.
    #[cfg(test)]
    #[error("{0}")]
    Fake(&'static str),
}
