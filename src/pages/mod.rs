//! Pages on their way out: what is read of guest memory, and the records it becomes. No I/O but the
//! question where memory has holes.

mod hash;
mod layout;
mod mask;
mod read;
mod source;

pub use hash::hash_ram;
pub use layout::RecordLayout;
pub use mask::{CHUNK_PAGES, ChunkMask, and, and_not, chunk_of, count, mask_ranges, or};
pub use read::read;
pub use source::{PageSource, sources};
