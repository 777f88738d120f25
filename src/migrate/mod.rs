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
pub mod converge;
pub mod guest;
pub mod guest_error;
mod handle;
pub mod incoming;
mod machine;
pub mod outgoing;
pub mod parameters;
pub mod progress;
pub mod settings;
pub mod status;

pub use handle::{Handle, OnFailure, Parts, Refused};
pub use status::Event;

#[cfg(test)]
mod moments;
#[cfg(test)]
mod tests;
