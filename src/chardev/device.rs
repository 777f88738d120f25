//! A character device, opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::socket::{self, Client, Listener, waited_for};
use super::terminal::{self, Terminal};
use crate::config::{self, ChardevBackend, SocketRole};
use crate::io::socket_file::FileId;
use crate::vmm::ChardevInfo;

/// An open character device.
pub struct Chardev {
    pub id: String,
    pub backend: Backend,
    /// A copy of everything that goes out.
    pub(super) log: Option<File>,
    name: String,
    /// What [`Chardev::info`] tells of a socket.
    status: Arc<Status>,
    /// What stood in these files goes when the machine starts: until then it may be the output of
    /// another one, which this one cannot join.
    stale: Vec<File>,
}

pub enum Backend {
    Null,
    /// Input and output for as long as the process runs.
    Files(Files),
    /// Serves one client at a time.
    Server(Listener),
    /// Is the client of someone else.
    Client(Client),
}

pub struct Files {
    pub input: Option<File>,
    pub output: File,
    /// Puts the terminal back as it was when dropped.
    pub terminal: Option<Terminal>,
    /// Of a pseudo-terminal.
    pub(super) pty: Option<Pty>,
}

pub(crate) struct Pty {
    /// While it is open, input does not fail for want of a user.
    _user_end: OwnedFd,
    /// The link of `path=`, removed when this is dropped if it still is ours.
    link: Option<(PathBuf, FileId)>,
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.link {
            id.remove(path);
        }
    }
}

#[derive(Default)]
pub(crate) struct Status {
    pub connected: AtomicBool,
    pub used: AtomicBool,
    /// The connection there is, for those who cut it.
    connection: Mutex<Option<OwnedFd>>,
}

impl Status {
    /// Somebody is there. Without a descriptor to be had nobody can cut the connection.
    pub(crate) fn connect(&self, socket: &OwnedFd) {
        *self.connection() = socket.try_clone().ok();
        self.connected.store(true, Ordering::Relaxed);
    }

    pub(crate) fn disconnect(&self) {
        *self.connection() = None;
        self.connected.store(false, Ordering::Relaxed);
    }

    /// Ends the connection, if there is one, whoever waits for it.
    pub(crate) fn cut(&self) {
        if let Some(socket) = &*self.connection() {
            // It fails where the other side was faster.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chardev {
    /// Opens what `config` describes, on the control plane's runtime. With `wait=on` this returns
    /// when a client is there.
    pub async fn open(config: &config::Chardev) -> Result<Chardev, Error> {
        let id = config.id.clone();
        let described = config.clone();
        let opened = waited_for(&id, move || Opened::new(&described)).await?;
        let Opened { files, name, log, stale } = opened;
        let (backend, name) = match (&config.backend, files) {
            (_, Some(files)) => (Backend::Files(files), name),
            (ChardevBackend::Socket(socket), None) => match socket.role {
                SocketRole::Server { wait } => {
                    let listener = Listener::open(&id, &socket.address, wait).await?;
                    let name = format!("{},server=on", listener.name());
                    (Backend::Server(listener), name)
                }
                SocketRole::Client { reconnect_ms } => {
                    let (of, address) = (id.clone(), socket.address.clone());
                    let connect = move || socket::Client::open(&of, &address, reconnect_ms);
                    let name = socket::describe(&socket.address);
                    (Backend::Client(waited_for(&id, connect).await?), name)
                }
            },
            (_, None) => (Backend::Null, name),
        };
        Ok(Chardev { id, backend, log, name, status: Arc::default(), stale })
    }

    /// Tells `query-chardev` about this device for as long as the process runs.
    pub(crate) fn info(&self) -> impl Fn() -> ChardevInfo + Send + Sync + use<> {
        let (label, name, status) = (self.id.clone(), self.name.clone(), self.status.clone());
        let socket = self.is_socket();
        move || {
            let gone = socket && !status.connected.load(Ordering::Relaxed);
            ChardevInfo {
                label: label.clone(),
                filename: if gone { format!("disconnected:{name}") } else { name.clone() },
                frontend_open: status.used.load(Ordering::Relaxed),
            }
        }
    }

    pub(crate) fn is_socket(&self) -> bool {
        matches!(self.backend, Backend::Server(_) | Backend::Client(_))
    }

    /// Its input is read as long as it is used, or it has a log: another one cannot take its place.
    pub(crate) fn is_bound(&self) -> bool {
        let reads = matches!(&self.backend, Backend::Files(files) if files.input.is_some());
        reads || self.log.is_some()
    }

    /// The files that [`empty`] is for.
    pub(crate) fn take_stale(&mut self) -> Vec<File> {
        std::mem::take(&mut self.stale)
    }

    /// Where this device keeps whether someone is connected.
    pub(crate) fn status(&self) -> Arc<Status> {
        self.status.clone()
    }
}

/// What of a device is opened by name, or is there already.
struct Opened {
    files: Option<Files>,
    name: String,
    log: Option<File>,
    stale: Vec<File>,
}

impl Opened {
    fn new(config: &config::Chardev) -> Result<Opened, Error> {
        let id = &config.id;
        let mut stale = Vec::new();
        let log = config.log.as_ref();
        let log = log.map(|log| open_output(id, &log.path, log.append, &mut stale)).transpose()?;
        let (files, name) = match &config.backend {
            ChardevBackend::Null => (None, "null".to_owned()),
            ChardevBackend::Stdio { signal } => (Some(stdio(id, *signal)?), "stdio".to_owned()),
            ChardevBackend::File { path, append, input } => {
                let output = open_output(id, path, *append, &mut stale)?;
                (Some(files(id, output, input.as_deref())?), "file".to_owned())
            }
            ChardevBackend::Pty { path } => {
                let (files, name) = pty(id, path.as_deref())?;
                (Some(files), format!("pty:{name}"))
            }
            ChardevBackend::Socket(_) => (None, String::new()),
        };
        Ok(Opened { files, name, log, stale })
    }
}

/// Empties files that were opened to be written from their beginning.
pub(crate) fn empty(stale: Vec<File>) -> io::Result<()> {
    stale.into_iter().try_for_each(|file| file.set_len(0))
}

/// What is to be emptied is put to `stale`.
fn open_output(id: &str, path: &Path, append: bool, stale: &mut Vec<File>) -> Result<File, Error> {
    let failed = |source| Error::Open { id: id.to_owned(), path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).append(append).mode(0o666);
    let file = options.open(path).map_err(failed)?;
    if !append && file.metadata().map_err(failed)?.is_file() {
        stale.push(file.try_clone().map_err(failed)?);
    }
    Ok(file)
}

fn files(id: &str, output: File, input: Option<&Path>) -> Result<Files, Error> {
    let open = |path: &Path| {
        File::open(path).map_err(|source| Error::Open {
            id: id.to_owned(),
            path: path.to_owned(),
            source,
        })
    };
    Ok(Files { input: input.map(open).transpose()?, output, terminal: None, pty: None })
}

fn stdio(id: &str, signal: bool) -> Result<Files, Error> {
    let failed = |source| Error::Stdio { id: id.to_owned(), source };
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    let terminal = Terminal::raw(signal);
    Ok(Files { input: Some(input.into()), output: output.into(), terminal, pty: None })
}

fn pty(id: &str, link: Option<&Path>) -> Result<(Files, String), Error> {
    let failed = |source| Error::Pty { id: id.to_owned(), source };
    let (ours, theirs, name) = terminal::open_pty().map_err(failed)?;
    let make = |path: &Path| {
        let failed = |source| Error::Open { id: id.to_owned(), path: path.to_owned(), source };
        std::os::unix::fs::symlink(&name, path).map_err(failed)?;
        Ok((path.to_owned(), FileId::at(path).map_err(failed)?))
    };
    let link = link.map(make).transpose()?;
    say!("char device redirected to {name} (label {id})");
    let input = ours.try_clone().map_err(failed)?;
    let files = Files {
        input: Some(input.into()),
        output: ours.into(),
        terminal: None,
        pty: Some(Pty { _user_end: theirs, link }),
    };
    Ok((files, name))
}
