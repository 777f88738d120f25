//! Dumps of guests that run.

#[path = "../common/mod.rs"]
mod common;
mod holes;
mod live;
mod output_files;
mod process;
mod vmcoreinfo;
