//! QMP, QEMU's machine protocol: the way in for people and tools.
//!
//! ```text
//!   socket → server → session (json, envelope, negotiation, schema) → commands → machine, migrate, dump …
//!      ▲                                                                  │
//!      └── outbox ◄────────────── answers, and events from any thread ◄───┘
//! ```
//!
//! `json`, `session` and [`schema`] do no I/O and are tested against conversations recorded from
//! QEMU 10.0.2. The commands stand in [`commands`], by subject, in one table that also answers
//! `query-commands`.

mod args;
pub mod commands;
mod error;
mod events;
mod fds;
pub(crate) mod human;
mod introspect;
pub mod json;
mod outbox;
pub mod schema;
mod server;
mod session;
pub(crate) mod version;
mod wire;

pub use error::Error;
pub use fds::{Monitor, MonitorFds};
pub use introspect::schema as introspection;
pub use server::Server;
pub use session::{Item, Session};
