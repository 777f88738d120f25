//! Why a transfer ended early, and why an address could not be opened.

use std::time::Duration;

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody called [`Waker::cancel`](super::Waker::cancel).
    #[error("cancelled")]
    Cancelled,
    /// The other side closed the stream where more was expected.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing arrived in the time allowed.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The command behind an `exec:` stream has failed.
    #[error(transparent)]
    Program(#[from] ProgramFailed),
    /// The kernel refused or the connection broke.
    #[error("{}", reason(.0))]
    System(#[from] std::io::Error),
}

impl Error {
    pub(super) fn from_result(result: i32) -> Self {
        Error::System(std::io::Error::from_raw_os_error(-result))
    }

    /// True if the other side is gone.
    pub(crate) fn is_disconnect(&self) -> bool {
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

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// How the command behind an `exec:` stream failed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramFailed {
    #[error("the command ended with exit status {0}")]
    Status(i32),
    #[error("the command was ended by signal {0}")]
    Signal(i32),
    #[error("the command ended before it had read all of the stream")]
    Unread,
    #[error("the command has not ended {} ms after its stream", .0.as_millis())]
    NotEnded(Duration),
    #[error("the command has read nothing for {} ms", .0.as_millis())]
    NotReading(Duration),
}

/// Why an address could not be opened. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("Failed to connect to '{address}': {}", reason(.source))]
    Connect { address: String, source: std::io::Error },
    #[error("Failed to bind socket to {address}: {}", reason(.source))]
    BindUnix { address: String, source: std::io::Error },
    #[error("Failed to find an available port: {}", reason(.source))]
    BindTcp { address: String, source: std::io::Error },
    #[error("address resolution failed for {address}: {text}")]
    Resolve { address: String, text: String },
    #[error("Cannot disable IPv4 and IPv6 at same time")]
    NoFamily,
    #[error("no port lies between {from} and {to}")]
    NoPort { from: u16, to: u16 },
    #[error("a unix socket to listen on needs a name")]
    NoName,
    #[error("UNIX socket path '{0}' is too long")]
    PathTooLong(String),
    #[error("Could not create '{path}': {}", reason(.source))]
    Create { path: String, source: std::io::Error },
    #[error("Could not open '{path}': {}", reason(.source))]
    Open { path: String, source: std::io::Error },
    #[error("failed to truncate migration file to offset {offset:x}: {}", reason(.source))]
    Truncate { offset: u64, source: std::io::Error },
    #[error("failed to seek to offset {offset:x} of '{path}': {}", reason(.source))]
    Seek { path: String, offset: u64, source: std::io::Error },
    #[error("Could not parse fdset {0}")]
    FdSetName(String),
    #[error("Failed to find fdset {0}")]
    NoFdSet(String),
    #[error("Failed to find file descriptor with matching flags=0x{0:x}")]
    NoMatchingFd(i32),
    #[error("File descriptor named '{0}' has not been found")]
    NoFd(String),
    #[error("'{0}' is a file that this machine uses")]
    OwnFile(String),
    #[error("Failed to execute child process \u{201c}{program}\u{201d} ({})", reason(.source))]
    Spawn { program: String, source: std::io::Error },
    #[error(transparent)]
    Io(#[from] Error),
}

/// strerror's text alone: std appends "(os error N)".
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
