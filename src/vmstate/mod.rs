//! QEMU's section layouts: what each device of the machine `microvm` puts into the migration
//! stream.
//!
//! Each section is one plain struct and **one field table**: the method [`Layout::fields`] (and
//! [`Layout::subsections`]) names every field once, in the order of the stream. Three visitors walk
//! the same table, so that they cannot drift apart: [`read()`] fills a struct from bytes,
//! [`write`](fn@write) makes the bytes, [`Description`] makes the JSON text that QEMU puts at the
//! end of a stream.
//!
//! Everything is big-endian. A struct inside a struct is laid out in place, its own subsections
//! included. A subsection is `05`, pstr name, be32 version, fields, nested subsections; it is there
//! only if it is needed, and a reader that does not know its name must give up, since nothing tells
//! where it ends.
//!
//! The structs live with the devices whose state they are; this module knows none of them. A struct
//! that is a whole section is a [`Section`], whatever its type.

mod describe;
mod layout;
mod read;
mod section;
mod show;
mod write;

pub use describe::Description;
pub(crate) use layout::{Layout, Visitor};
pub(crate) use read::{Stop, read};
pub(crate) use section::Section;
pub(crate) use show::{Row, rows};
pub(crate) use write::write;
