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
//! | `resolve` | addresses as the kernel takes them, and names |
//! | [`transport`] | addresses opened: connected, listened on, spawned |

pub mod address;
pub mod file;
pub mod gather;
pub mod limit;
mod resolve;
pub mod ring;
pub mod socket;
pub mod transport;

pub use address::{Address, AddressError};
pub use file::FileWriter;
pub use gather::Gather;
pub use limit::Limit;
pub use ring::{Ring, Waker};
pub use socket::{SocketReader, SocketWriter};
pub use transport::{Connection, Listener};

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody called [`Waker::cancel`].
    #[error("cancelled")]
    Cancelled,
    /// The other side closed the stream where more was expected.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing arrived in the time allowed.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(std::time::Duration),
    /// The kernel refused or the connection broke.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

impl Error {
    fn from_result(result: i32) -> Self {
        Error::System(std::io::Error::from_raw_os_error(-result))
    }

    /// True if the other side is gone.
    pub fn is_disconnect(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match self {
            Error::Closed => true,
            Error::System(error) => {
                matches!(
                    error.kind(),
                    BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected
                )
            }
            _ => false,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
