//! What several test binaries share.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod machines;
pub mod vectors;
pub mod vm;
