//! Bytes in and out: one io_uring per migration or dump, owned by the plain thread that runs it.
//!
//! | file | what |
//! | --- | --- |
//! | [`ring`] | the ring, its waker (cancel and parameter changes reach a blocked transfer through it) |
//! | [`gather`] | what one vectored send consists of: own bytes and pieces of guest memory, in order |
//! | [`socket`] | one order per stream: [`SocketWriter`], [`SocketReader`] |
//! | [`file`](mod@file) | files, pipes and sockets written from registered buffers; positioned reads |
//! | [`limit`] | the bandwidth limit, a pure calculation |
//! | [`address`] | `tcp:`, `unix:`, `fd:`, `exec:`, `file:` and QMP's `channels`, parsed |
//! | [`name`] | files by name; a FIFO without its other end holds nobody up |
//! | `aside` | what may not return, waited for in a ring |
//! | `resolve` | addresses as the kernel takes them, and names |
//! | [`program`] | the command behind an `exec:` stream, and its end |
//! | [`transport`] | addresses opened: connected, listened on, spawned |
//! | `error` | why a transfer ended early, why an address could not be opened |

pub mod address;
mod aside;
mod error;
pub mod file;
pub mod gather;
pub mod limit;
pub mod name;
pub mod program;
mod resolve;
pub mod ring;
pub mod socket;
pub mod socket_file;
pub mod transport;

pub use address::{Address, AddressError};
pub use error::{Error, OpenError, Result, reason};
pub use file::FileWriter;
pub use gather::Gather;
pub use limit::Limit;
pub use program::Program;
pub use ring::{Ring, Waker};
pub use socket::{SocketReader, SocketWriter};
pub use transport::{Connection, Descriptors, Listener};
