//! Guest memory as whoever sends it, saves it, dumps it or compares it reads it: the one place that
//! knows holes from pages of zeros from data, and the only one that reads pages by their address.
//!
//! | memory | of a guest that | by |
//! | --- | --- | --- |
//! | live | runs: a page may change while it is read, and is dirty again if it does | [`PageSource`]: chunks of 256 pages as masks, bytes from where they are |
//! | stopped | stands still, or is not here: `inspect --core` has its memory in a file | [`Still::stopped`], and all that is there for live memory |
//! | frozen | runs, write-protected since one moment | [`Still::frozen`]: bytes of that moment |
//!
//! Holes are asked for before anything is read, from [`crate::memory::RamBlock`], and asking is
//! reading: dirty bits are cleared first. A hole is asked for again each time. Reading makes no
//! memory, and memory that went away is an error of who read it ([`PageSource::check`]).
//!
//! A page's way out of a guest, function by function, is in `ARCHITECTURE.md`.

mod extent;
mod hash;
mod mask;
mod read;
mod source;
mod still;

pub(crate) use extent::Extent;
pub(crate) use hash::{hash_page, hash_ram};
pub(crate) use mask::{CHUNK_PAGES, ChunkMask, and, and_not, chunk_of, count, mask_ranges, or};
pub(crate) use read::read;
pub(crate) use source::{PageSource, sources};
pub(crate) use still::Still;
