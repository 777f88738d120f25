//! The migration stream's framing: QEMU's stream, version 3, reader and writer.
//!
//! Nothing here does I/O, reads a clock or keeps more than one record of the stream: the reader is
//! handed the bytes that have arrived and says what they are or how many more it needs; the writer
//! appends to a `Vec<u8>`.
//!
//! # The bytes
//!
//! Everything is big-endian. `pstr` is one length byte, then that many bytes.
//!
//! ```text
//! be32 0x5145564d  be32 3                                   magic "QEVM", version
//! u8 07  be32 n, n bytes machine name, subsections          configuration
//! ( section | command )*
//! u8 00                                                     end of states
//! [ u8 06  be32 n, n bytes JSON ]                           description (precopy only)
//!
//! section  01 START  be32 id, pstr idstr, be32 instance, be32 version, payload, footer
//!          02 PART   be32 id, payload, footer
//!          03 END    be32 id, payload, footer
//!          04 FULL   as START; a device's whole state
//! footer   7e        be32 id
//! command  08        be16 command, be16 length, data        see `Command`
//! ```
//!
//! The payload of section `ram` is a list of records ([`ram`]); every other payload is laid out by
//! [`vmstate`](crate::vmstate), and has no length of its own: a reader must know the layout to find
//! its end.
//!
//! Godwit's own extensions, negotiated and never shown to another peer, are in [`godwit`].
//!
//! Beside the main channel there are the return path ([`return_path`]), multifd channels
//! ([`multifd`]) and the headers of a mapped-ram file ([`mapped`]).
//!
//! # Bounds
//!
//! Any input ends in an error or an item. The reader's own memory is bounded by [`BLOCKS_MAX`] and
//! the lengths a one-byte or two-byte count can express; what it asks the caller to hold at once is
//! bounded by [`PAYLOAD_BYTES_MAX`].

mod command;
mod configuration;
mod cursor;
mod error;
pub mod godwit;
mod limits;
pub(crate) mod mapped;
pub(crate) mod multifd;
pub(crate) mod ram;
mod reader;
pub(crate) mod return_path;
mod writer;

pub(crate) use command::Command;
pub use cursor::Step;
pub(crate) use cursor::{Cursor, put_pstr};
pub use error::{Error, Problem};
pub use limits::{
    BLOCKS_MAX, DESCRIPTION_BYTES_MAX, MAGIC, PACKAGE_BYTES_MAX, PAGE_BYTES, PAYLOAD_BYTES_MAX,
};
pub(crate) use ram::{ListedBlock, PageAt};
pub use ram::{RamParser, RamWriter, Record};
pub(crate) use reader::{Extent, Layouts, NoDevices};
pub use reader::{Item, Reader};
pub use writer::{Configuration, SectionHeader, SectionKind, description, end_of_states};
