//! The extra channels: a hello, then packets of up to 128 pages of one block.
//!
//! ```text
//! hello (64)    be32 magic 0x11223344, be32 1, 16 bytes uuid, u8 channel, 39 zero
//! packet (1344) be32 magic, be32 1, be32 flags, be32 pages allocated (128; 0 in SYNC), be32 normal pages,
//!               be32 bytes of data behind the header, be64 packet number, be32 zero pages, 28 zero,
//!               256 bytes block name, 128 x be64 offset: normal pages, then zero pages, rest 0
//! ```
//!
//! Data: the normal pages in order of their offsets; plain, or one endless zlib or zstd stream per
//! channel, flushed at each packet and never restarted.

mod codec;
mod packet;

pub(crate) use codec::{CodecError, Compressor, Decompressor};
pub(crate) use packet::{
    HELLO_BYTES, Hello, MAGIC, Method, PACKET_BYTES, PACKET_PAGES_MAX, Packet,
};
