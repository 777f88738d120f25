//! Readers for the formats that dumps have, made apart from the writers: nothing is shared but the
//! page size.
//!
//! They look at a whole file in memory and believe nothing it says. Tests and fuzz targets compare
//! what they find with what was written.

mod bytes;
mod elf;
mod kdump;
mod registers;

pub use bytes::{BadFile, Note, notes};
pub use elf::{Core, Load};
pub use kdump::{Kdump, flat_to_raw};
pub use registers::{cpu, cpus};
