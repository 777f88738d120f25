//! Shared parts of the benchmarks.

pub mod drive;
pub mod plot;
pub mod policy;
pub mod random;
pub mod synthetic;
pub mod trace;
