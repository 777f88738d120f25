//! Bytes in and out: one io_uring per migration or dump, owned by the plain thread that runs it.
//!
//! | file | what |
//! | --- | --- |
//! | [`ring`] | the ring, its waker (cancel and parameter changes reach a blocked transfer through it) |
//! | [`gather`] | what one vectored write consists of: own bytes, pieces of guest memory and of buffers, in order |
//! | [`connection`] | an open stream, and what may be asked of it |
//! | [`receive`] | a receive left pending |
//! | [`writer`] | streams, one write at a time, and files, at positions: [`Writer`], for migrations and dumps |
//! | `reader` | streams, read: [`SocketReader`] |
//! | [`limit`] | the bandwidth limit, a pure calculation |
//! | [`address`] | `tcp:`, `unix:`, `fd:`, `exec:`, `file:` and QMP's `channels`, parsed |
//! | [`name`] | files by name; a FIFO without its other end holds nobody up |
//! | `aside` | what may not return, waited for in a ring |
//! | `resolve` | addresses as the kernel takes them, and names |
//! | [`proc`] | what the kernel says of this process |
//! | [`program`] | the command behind an `exec:` stream, and its end |
//! | [`transport`] | addresses opened: connected, read and written as files, spawned |
//! | `socket` | options of sockets |
//! | [`socket_file`] | the name of a unix socket, which goes with it |
//! | [`listener`] | sockets that wait for a source |
//! | `error` | why a transfer ended early, why an address could not be opened |

pub(crate) mod address;
pub(crate) mod aside;
pub(crate) mod connection;
mod error;
pub(crate) mod gather;
pub(crate) mod limit;
pub(crate) mod listener;
pub(crate) mod name;
pub(crate) mod proc;
pub(crate) mod program;
mod reader;
pub(crate) mod receive;
mod resolve;
pub(crate) mod ring;
mod socket;
pub(crate) mod socket_file;
pub mod transport;
pub(crate) mod writer;

pub use address::Address;
pub(crate) use address::AddressError;
pub use connection::Connection;
pub(crate) use error::{Error, OpenError, ProgramFailed, reason};
pub(crate) use gather::Gather;
pub(crate) use limit::Limit;
pub use listener::Listener;
pub(crate) use program::Program;
pub(crate) use reader::SocketReader;
pub(crate) use ring::Ring;
pub use ring::Waker;
pub(crate) use transport::Descriptors;
pub(crate) use writer::Writer;
