//! Shared parts of the benchmarks.

pub mod random;
pub mod synthetic;
pub mod trace;
