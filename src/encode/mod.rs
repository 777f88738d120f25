//! Pages on their way out: what is read of guest memory, and the records it becomes. No I/O but the question where
//! memory has holes.

mod hash;
mod layout;
mod source;

pub use hash::hash_ram;
pub use layout::RecordLayout;
pub use source::{CHUNK_PAGES, ChunkMask, PageSource, chunk_of, mask_ranges, sources};
