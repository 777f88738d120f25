//! Shared parts of the benchmarks.

pub mod clock;
pub mod drive;
pub mod patterns;
pub mod peer;
pub mod plot;
pub mod policy;
pub mod random;
pub mod region;
pub mod synthetic;
pub mod trace;
