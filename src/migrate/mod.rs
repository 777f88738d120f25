//! Live migration: a running guest leaves for another process, or arrives from one.
//!
//! | file | what |
//! | --- | --- |
//! | [`capabilities`], [`parameters`], [`settings`] | what can be set, with QEMU's names and rules |
//! | [`converge`] | pure decisions: rounds, throttling, predictions |
//! | [`guest`] | what a migration needs of a machine |
//! | [`guest_error`] | why the machine could not do what a migration asked of it |
//! | `handle` | start, cancel, look: what the control plane uses |
//! | `machine` | the real machine as a guest |
//! | [`outgoing`] | the side that sends |
//! | [`incoming`] | the side that receives |
//! | [`status`] | its states, and how they follow each other |
//! | [`progress`] | counters and figures, and `query-migrate` |

pub mod capabilities;
pub(crate) mod converge;
mod dirty_curve;
pub mod guest;
pub mod guest_error;
mod handle;
pub mod incoming;
mod machine;
pub(crate) mod outgoing;
pub(crate) mod parameters;
pub(crate) mod progress;
pub mod settings;
pub(crate) mod status;

pub(crate) use handle::Refused;
pub use handle::{Handle, Held, Parts};
pub(crate) use status::Event;

#[cfg(test)]
mod fake_guest;
#[cfg(test)]
mod increment_tests;
#[cfg(test)]
mod mapped_tests;
#[cfg(test)]
mod moments;
#[cfg(test)]
mod tests;
