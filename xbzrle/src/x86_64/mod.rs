//! The vector paths: one walk, written once over a block of 64 bytes, and a small type for each instruction set.
//!
//! Unsafe, because vector loads and stores take pointers, because stores run past the bytes they are for (within the
//! output), and because live memory may have no reference formed to it.
//!
//! No AVX-512: it has not been run on a machine that has it.
#![allow(unsafe_code)]

mod avx2;
mod changed;
mod decode;
mod lanes;
mod sse2;
mod walk;

pub use avx2::Avx2;
pub use sse2::Sse2;
