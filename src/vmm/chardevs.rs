//! Character devices, as far as commands have to do with them.

use std::os::fd::OwnedFd;

use crate::config;
use crate::output::Input;

/// A character device, as `query-chardev` shows it.
pub struct ChardevInfo {
    pub label: String,
    pub filename: String,
    pub frontend_open: bool,
}

/// Why one could not come or go. The texts are QEMU's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    #[error("Chardev with id '{0}' already exists")]
    Exists(String),
    #[error("Chardev '{0}' not found")]
    NotFound(String),
    #[error("Chardev '{0}' is busy")]
    Busy(String),
    /// As `NotFound`, where QEMU says it otherwise.
    #[error("Chardev '{0}' does not exist")]
    Unknown(String),
    #[error("For mux or hub device hotswap is not supported yet")]
    Shared,
    #[error("Chardev user does not support chardev hotswap")]
    Stays,
    #[error(
        "Chardev '{0}' cannot be changed: its input is read, or a log written, as long as it is used"
    )]
    Bound(String),
    #[error("'logfile': the log of a character device in use cannot be changed")]
    Log,
    #[error("{0}")]
    Open(String),
    #[error("the machine is about to end")]
    Ending,
}

/// All character devices.
pub(crate) trait Chardevs: Send + Sync {
    fn list(&self) -> Vec<ChardevInfo>;
    /// The labels of those behind which is a socket.
    fn sockets(&self) -> Vec<String>;
    /// Ends the connection of such a one, if there is any.
    fn cut(&self, label: &str);
    /// Opens another one, which may take as long as names and peers do. Not on the control plane.
    /// `fd` is held until it was taken by its number. Refused if it would write over what the machine
    /// reads, or over one of `images`.
    fn add(
        &self,
        chardev: config::Chardev,
        fd: Option<OwnedFd>,
        images: Vec<Input>,
    ) -> Result<(), ChardevError>;
    /// Opens another one in place of the one of its name, whose user goes on with it; as
    /// [`Chardevs::add`]. If it cannot be opened nothing changes.
    fn change(
        &self,
        chardev: config::Chardev,
        fd: Option<OwnedFd>,
        images: Vec<Input>,
    ) -> Result<(), ChardevError>;
    /// Closes one that nobody uses. Not on the control plane.
    fn remove(&self, label: &str) -> Result<(), ChardevError>;
}

/// Where there are none.
pub(super) struct Nothing;

impl Chardevs for Nothing {
    fn list(&self) -> Vec<ChardevInfo> {
        Vec::new()
    }

    fn sockets(&self) -> Vec<String> {
        Vec::new()
    }

    fn cut(&self, _label: &str) {}

    fn add(
        &self,
        _chardev: config::Chardev,
        _fd: Option<OwnedFd>,
        _images: Vec<Input>,
    ) -> Result<(), ChardevError> {
        Err(ChardevError::Ending)
    }

    fn change(
        &self,
        chardev: config::Chardev,
        _fd: Option<OwnedFd>,
        _images: Vec<Input>,
    ) -> Result<(), ChardevError> {
        Err(ChardevError::Unknown(chardev.id))
    }

    fn remove(&self, label: &str) -> Result<(), ChardevError> {
        Err(ChardevError::NotFound(label.to_owned()))
    }
}
