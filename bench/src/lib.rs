//! Shared parts of the benchmarks.

pub mod clock;
pub mod drive;
pub mod patterns;
pub mod peer;
#[cfg(target_arch = "x86_64")]
pub mod peer512;
pub mod plot;
pub mod policy;
pub mod random;
pub mod region;
pub mod synthetic;
pub mod trace;
