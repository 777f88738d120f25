//! Why a guest could not be run.

use super::{confine, daemon, descriptors, outputs, pidfile, ring};
use crate::machine::{self, ContRefused};
use crate::{chardev, migrate, net, qmp};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    #[error(transparent)]
    Ring(#[from] ring::Unavailable),
    #[error("signals cannot be handled")]
    Signal(#[source] std::io::Error),
    #[error("-run-with exit-with-parent=on: the process that started this one has ended")]
    Parent,
    #[error(transparent)]
    Chardev(#[from] chardev::Error),
    #[error("-object iothread: {0}")]
    Object(#[from] crate::vmm::ObjectError),
    #[error("-netdev: {0}")]
    Network(#[from] net::Error),
    #[error("cannot set up the connection of character device '{id}'")]
    Connection { id: String, source: std::io::Error },
    #[error("cannot empty the file of a character device")]
    Empty(#[source] std::io::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("the guest cannot be started")]
    Start(#[from] ContRefused),
    #[error("-incoming: {0}")]
    Address(qmp::Error),
    #[error("-incoming: {0}")]
    Incoming(#[from] migrate::Refused),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("a thread panicked, which is a defect of Godwit")]
    Panicked,
    #[error(transparent)]
    Pidfile(#[from] pidfile::Error),
    #[error(transparent)]
    Output(#[from] outputs::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    #[error("/proc cannot be read, which a process that gives up its rights must see")]
    Proc(#[source] std::io::Error),
    #[error(transparent)]
    Confinement(#[from] confine::Error),
    #[error(
        "-add-fd fd={0}: there is no such descriptor; have it open, to be inherited, when this \
         program starts"
    )]
    AddFd(i32),
}
