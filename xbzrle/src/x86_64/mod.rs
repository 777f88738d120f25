//! The vector paths: one walk, written once over a block of 64 bytes, and a small type for each
//! instruction set.
//!
//! Unsafe, because vector loads and stores take pointers, because stores run past the bytes they
//! are for (within the output), and because live memory may have no reference formed to it.
#![allow(unsafe_code)]

mod avx2;
mod avx512;
mod changed;
mod decode;
mod lanes;
mod path;
mod sse2;
mod unaligned;
mod walk;

pub use avx2::Avx2;
pub use avx512::Avx512;
pub(crate) use decode::decode_at;
pub use sse2::Sse2;
pub(crate) use unaligned::copy_live as copy_live_unaligned;
