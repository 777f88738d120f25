//! Guests that move between processes, over every road and past every fault.

mod background;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod incoming_file;
mod increments;
mod live;
mod mapped_ram;
mod mapped_restore;
mod network;
mod query_migrate;
mod soak;
