//! Character devices.

use std::path::PathBuf;

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    pub id: String,
    pub backend: ChardevBackend,
    /// Several share it.
    pub mux: bool,
    /// Everything the guest or a monitor writes goes here too.
    pub log: Option<LogFile>,
}

impl Chardev {
    /// How many can share one, as in QEMU.
    pub(crate) const USERS_MAX: usize = 4;

    /// What the device behind a shared one is called.
    pub(crate) fn base(&self) -> Chardev {
        Chardev { id: format!("{}-base", self.id), ..self.clone() }
    }

    /// Only one machine at a time can have what is behind it, and opening it finds that out.
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(&self.backend, ChardevBackend::Socket(_) | ChardevBackend::Pty { path: Some(_) })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    pub append: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChardevBackend {
    Null,
    /// `signal`: Ctrl-C ends the VMM instead of reaching the guest.
    Stdio {
        signal: bool,
    },
    File {
        path: PathBuf,
        append: bool,
        /// Where input is read from; none without it.
        input: Option<PathBuf>,
    },
    /// A fresh pseudo-terminal; `path` is a link to make to it.
    Pty {
        path: Option<PathBuf>,
    },
    Socket(Socket),
}

impl ChardevBackend {
    /// QEMU's names of the kinds there are.
    pub(crate) const TYPES: [&str; 5] =
        ["chardev-null", "chardev-stdio", "chardev-file", "chardev-pty", "chardev-socket"];

    /// The one that this is.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            ChardevBackend::Null => Self::TYPES[0],
            ChardevBackend::Stdio { .. } => Self::TYPES[1],
            ChardevBackend::File { .. } => Self::TYPES[2],
            ChardevBackend::Pty { .. } => Self::TYPES[3],
            ChardevBackend::Socket(_) => Self::TYPES[4],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub address: SocketAddress,
    pub role: SocketRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// Listens and serves one client at a time. `wait`: the machine is not built before the first
    /// client is there.
    Server { wait: bool },
    /// Connects. After a loss it tries again after `reconnect_ms`, never if that is zero.
    Client { reconnect_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    Unix {
        path: PathBuf,
    },
    /// A name in Linux' abstract namespace, without the leading zero byte.
    Abstract {
        name: String,
    },
    Tcp {
        /// Empty listens on every address.
        host: String,
        port: u16,
        /// Of a server: the last port to try, if `port` is taken.
        port_to: Option<u16>,
        family: IpFamily,
        nodelay: bool,
    },
    /// An inherited descriptor.
    Fd(i32),
}

/// Which addresses of a host name may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamily {
    #[default]
    Any,
    V4,
    V6,
}
