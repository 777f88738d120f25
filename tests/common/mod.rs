//! What several test binaries share.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod dump_case;
pub mod guest;
pub mod machines;
pub mod process;
pub mod vectors;
pub mod vm;
