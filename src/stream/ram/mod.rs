//! The payload of section `ram`: records of pages.
//!
//! Every record begins with a be64: page-aligned bits are an offset in a block (or a size), the low
//! twelve are flags.
//!
//! ```text
//! 0x002 ZERO      [pstr block] u8 00
//! 0x004 MEM_SIZE  upper bits: bytes of all blocks; then per block: pstr name, be64 bytes, …
//! 0x008 PAGE      [pstr block] 4096 bytes
//! 0x010 EOS       ends the payload
//! 0x020 CONTINUE  modifier: no block name, the block of the record before (also across sections)
//! 0x040 XBZRLE    [pstr block] u8 01, be16 length, length bytes, applied to the page the target has
//! 0x200 FLUSH     wait for the multifd channels
//! ```
//!
//! [`RamParser`] reads them in place, without copying: a record borrows its bytes from the receive
//! buffer, so that a batch can be handed to several threads that apply it.

mod parser;
mod qemu_records;
mod record;
#[cfg(test)]
mod tests;
mod writer;

pub use parser::RamParser;
pub(crate) use qemu_records::QemuRecords;
pub use record::Record;
pub(crate) use record::{FLAG_EOS, FLAG_PAGE, RamRules};
pub(crate) use record::{ListedBlock, PageAt};
pub use writer::RamWriter;
