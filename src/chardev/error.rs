//! Why a character device could not be opened.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("character device '{id}': cannot open {}", path.display())]
    Open { id: String, path: PathBuf, source: io::Error },
    #[error("character device '{id}': cannot listen on {address}")]
    Listen { id: String, address: String, source: io::Error },
    #[error("character device '{id}': cannot connect to {address}")]
    Connect { id: String, address: String, source: io::Error },
    #[error("character device '{id}': cannot make a pseudo-terminal")]
    Pty { id: String, source: io::Error },
    #[error("character device '{id}': cannot use the standard input and output")]
    Stdio { id: String, source: io::Error },
    #[error("character device '{id}': no thread to open it on")]
    Thread { id: String, source: io::Error },
}
