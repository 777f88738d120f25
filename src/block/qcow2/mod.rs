//! qcow2 images and what they stand on, through the crate `imago`.
//!
//! | file | what |
//! |---|---|
//! | `header` | an image's first bytes, read and checked before anything else believes them |
//! | `storage` | files as `imago` reads and writes them |
//! | `chain` | an image with all that it stands on: read, written, made longer; made new |

mod chain;
mod header;
mod storage;

pub(super) use chain::{Chain, Part, create};
pub(crate) use header::Header;
#[cfg(test)]
pub(super) use header::set_dirty;
pub(super) use header::{Why, read_up_to, refcounts_are_apart};
pub(super) use storage::Watch;
