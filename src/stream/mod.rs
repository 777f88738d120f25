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
mod error;
pub mod godwit;
pub mod mapped;
pub mod multifd;
pub mod ram;
mod reader;
pub mod return_path;
mod writer;

pub use command::Command;
pub use error::{Error, Problem};
pub use ram::{ListedBlock, PageAt, RamParser, RamWriter, Record};
pub use reader::{Extent, Item, Layouts, NoDevices, RAM_VERSION, Reader};
pub use writer::{Configuration, SectionHeader, SectionKind, description, end_of_states, package};

/// `QEVM`.
pub const MAGIC: u32 = 0x5145_564d;
/// The only version spoken; 2 is an old format without sections.
pub const VERSION: u32 = 3;
/// The target page of x86, the unit of every RAM record.
pub const PAGE_BYTES: usize = 4096;
/// More RAM blocks than any machine has. Each costs the sender at least ten bytes, so a limit must
/// be ours.
pub const BLOCKS_MAX: usize = 256;
/// The longest device payload a reader will hold: forty times the largest recorded (a virtio
/// device, 49 KiB).
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;
/// The longest package (postcopy's nested list of device sections); QEMU's own limit.
pub const PACKAGE_BYTES_MAX: u32 = 1 << 24;
/// The longest description; that of a microvm is about 25 KiB.
pub const DESCRIPTION_BYTES_MAX: u32 = 16 << 20;

/// What a step of a parser came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<T> {
    /// One item, made of this many bytes from the front of the input.
    Item(T, usize),
    /// Nothing was consumed; the next item needs at least this many bytes of input.
    Need(usize),
}

/// Reads big-endian numbers and strings off the front of `bytes`; `None` when they have not all
/// arrived.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Set by a read that found too little: the input length that would do.
    needed: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, needed: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Input length that the read which returned `None` wanted.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..count)) {
            Some(found) => {
                self.at += count;
                Some(found)
            }
            None => {
                self.needed = self.at.saturating_add(count);
                None
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N).map(|found| found.try_into().expect("take returned N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn pstr(&mut self) -> Option<&'a [u8]> {
        let count = self.u8()?;
        self.take(count.into())
    }
}

/// Appends a string with its one-byte length.
///
/// # Panics
/// When `text` is longer than 255 bytes, which no name of ours is.
pub(crate) fn put_pstr(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names in the stream have at most 255 bytes"));
    out.extend_from_slice(text.as_bytes());
}
