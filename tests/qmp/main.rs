//! Conversations recorded from QEMU, and many clients, against the server: over a machine in this
//! process (`behaviour` and `replay` need no privileges) and in the real one (`process`).

mod addresses;
mod balloon;
mod behaviour;
mod chardevs;
#[path = "../common/mod.rs"]
mod common;
mod consoles;
mod descriptors;
mod dirty;
mod fake;
mod objects;
mod process;
mod random;
mod recorded;
mod replay;
mod schema;
mod stats;
mod threads;
mod waiting;
