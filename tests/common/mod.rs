//! What several test binaries share.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod cli;
pub mod dump_case;
pub mod guest;
pub mod machines;
pub mod process;
pub mod qmp;
pub mod small;
pub mod vectors;
pub mod vm;

/// Longer than anything takes on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);
