//! Dumps of guests that run.

#[path = "../common/mod.rs"]
mod common;
mod live;
mod process;
mod vmcoreinfo;
