//! What the process is like that runs a machine.

use std::os::fd::RawFd;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// What `ps` calls it; `None` leaves it the program's name.
    pub name: Option<String>,
    /// Where it sees the root of the file system, once the machine is built.
    pub root: Option<PathBuf>,
    /// Whose it is, once the machine is built.
    pub user: Option<User>,
    pub sandbox: Option<Sandbox>,
    /// What it was started with (`-add-fd`).
    pub descriptors: Vec<SetDescriptor>,
}

/// A user of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// With the groups that the host's tables give.
    Named(String),
    Numbers {
        uid: u32,
        gid: u32,
    },
}

/// System calls that the kernel refuses the process from when the machine is built (`-sandbox on`),
/// beside those that no VMM makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Those that nobody makes any more.
    pub obsolete: bool,
    /// To become somebody else.
    pub elevate: bool,
    /// To start programs.
    pub spawn: bool,
    /// To change where and how its threads run.
    pub resources: bool,
}

impl Default for Sandbox {
    /// As QEMU's.
    fn default() -> Sandbox {
        Sandbox { obsolete: true, elevate: false, spawn: false, resources: false }
    }
}

/// A descriptor that goes into a set (`/dev/fdset/N`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDescriptor {
    pub number: RawFd,
    pub set: i64,
    pub opaque: Option<String>,
}
