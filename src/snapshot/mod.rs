//! Increments: snapshots that hold only what changed since another one, their chains, and what is done
//! with them.
//!
//! # The file
//!
//! Everything is big-endian; `pstr` is a length byte and that many bytes. Sums are XXH3 of 64 bits,
//! seed 0. Every byte of the file is under one.
//!
//! ```text
//! header (64 bytes)
//!   "GODWITIN"  be32 version = 1  be32 page size = 4096
//!   16 bytes    id, drawn at random: what an increment on top of this one knows it by
//!   be64        offset of the catalogue, which ends with the file
//!   be64        its bytes
//!   be64        its sum
//!   be64        sum of the 56 bytes before
//! head          the migration stream up to the end of section `ram`'s START: configuration, blocks
//! pages         whole ones and deltas, in the order in which they were written; a page that was
//!               written again while the guest ran on has its older versions here, too
//! tail          the rest of the stream: END of `ram`, the devices, the end, the description
//! catalogue
//!   be64        seconds since 1970
//!   be64        bytes of the head
//!   be64 be64   offset and bytes of the tail
//!   u8          what the base is: 1 a mapped-ram file, 2 an increment
//!   be16, name  of the base, from this file's folder on
//!     1: be64   its size, then be64 for each MiB of it, the last one shorter: sums. It has none itself
//!     2: 16     its id
//!   be64 n      chunks: n × (be64 bytes, be64 sum), from the header's end to the catalogue
//!   be64 n      blocks: n × (pstr name, be64 bytes, be64 m, m runs)
//!     run       be64 first page, be32 pages, be32 bytes of each, be64 offset: 24 bytes
//! ```
//!
//! A run with 0 bytes each is of zeros (offset 0), with 4096 of whole pages that stand one after
//! another, with anything between of one page as an XBZRLE delta against the same page of the base.
//! Runs ascend. A page in no run is the base's.
//!
//! A mapped-ram file is QEMU's (`crate::stream::mapped`); [`Chain::merge`] makes one of a chain.
//!
//! | file | what |
//! | --- | --- |
//! | `format` | these bytes, read and written |
//! | `head` | the front of a stream |
//! | `link`, `chain` | one file, and all that build on each other, read as one memory |
//! | `save` | an increment that is being written |
//! | `merge` | a chain as one mapped-ram file |
//! | `describe` | what a file is, for people |
//! | `sum` | checksums |
//! | `error` | what is wrong, and with which file |
//!
//! Who finds out what changed is `migrate::outgoing::differences`; who loads it, `migrate::incoming`.

mod chain;
mod describe;
mod error;
mod format;
mod head;
mod link;
mod merge;
mod save;
mod sum;

pub use chain::Chain;
pub(crate) use chain::threads;
pub use describe::{Changes, Description};
pub use error::Error;
pub(crate) use format::{HEADER_BYTES, MAGIC};
pub use link::GoOn;
pub(crate) use save::{Record, Save, Written};
pub(crate) use sum::Sum;
