//! Unix sockets under a name in the file system.
//!
//! A name is taken from the dead only: whoever listens there is found out without being disturbed,
//! and a file that is no socket is left alone. Between programs that keep to this the whole is one
//! step, because each holds a lock on the directory meanwhile; another program's socket would have
//! to come in the moment between two system calls to be lost.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Why a name was not taken.
#[derive(Debug, thiserror::Error)]
enum Taken {
    #[error("a running program listens there; end it, or take another path")]
    InUse,
    #[error("there is a file of this name that is no socket; remove it, or take another path")]
    NotASocket,
    #[error("the path of a unix socket has at most {} bytes, this one {bytes}", PATH_BYTES_MAX)]
    TooLong { bytes: usize },
}

/// `sun_path` of `sockaddr_un`; the kernel asks for no zero byte at its end.
const PATH_BYTES_MAX: usize = 108;
/// Other programs lock directories for their own reasons, and may keep them for good.
const LOCK_TIME: Duration = Duration::from_millis(500);
/// Every try but the last was overtaken by another program.
const TRIES: usize = 16;

/// The name of a socket of ours, removed when this is dropped if it still is.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// What a name stands for. As long as something keeps a file, no other one has its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl FileId {
    /// Of what stands at `path` itself, links not followed.
    pub(crate) fn at(path: &Path) -> io::Result<FileId> {
        fs::symlink_metadata(path).map(|metadata| FileId::from(&metadata))
    }

    /// Removes `path` if it is this file.
    pub(crate) fn remove(self, path: &Path) {
        if FileId::at(path).is_ok_and(|there| there == self) {
            // Someone may have been faster.
            let _ = fs::remove_file(path);
        }
    }
}

impl SocketFile {
    pub(crate) fn remove(&self) {
        self.id.remove(&self.path);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A socket that listens at `path`. Drop the [`SocketFile`] first: an id is certain only while the
/// socket is there.
pub(crate) fn listen_at(path: &Path, backlog: i32) -> io::Result<(SocketFile, OwnedFd)> {
    let (file, socket) = bind_at(path, SocketType::STREAM)?;
    listen(&socket, backlog)?;
    Ok((file, socket))
}

/// A socket whose name is `path`; for the [`SocketFile`] see [`listen_at`].
pub(crate) fn bind_at(path: &Path, kind: SocketType) -> io::Result<(SocketFile, OwnedFd)> {
    let address = address(path)?;
    let _alone = Lock::of(path);
    for _ in 0..TRIES {
        let socket = unix(kind)?;
        match bind(&socket, &address) {
            Ok(()) => {
                let file = SocketFile { path: path.to_owned(), id: FileId::at(path)? };
                return Ok((file, socket));
            }
            Err(Errno::ADDRINUSE) => bury(path, &address)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(taken(Taken::InUse))
}

/// A connection to the socket at `path`.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix(SocketType::STREAM)?;
    connect(&socket, &address(path)?)?;
    Ok(socket)
}

pub(crate) fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => taken(Taken::TooLong { bytes: path.as_os_str().len() }),
        other => other.into(),
    })
}

fn unix(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Removes the socket of a program that is gone.
fn bury(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if is_alive(address)? {
        return Err(taken(Taken::InUse));
    }
    if !there.file_type().is_socket() {
        return Err(taken(Taken::NotASocket));
    }
    FileId::from(&there).remove(path);
    Ok(())
}

/// Whether a socket of any program belongs to the name. A datagram socket asks: it cannot be
/// connected to a stream, so that the listener, who may wait for its first client, sees nothing of
/// it, but the kernel looks whether there is one before it compares the kinds. A datagram socket that
/// is connected to another one hears nobody else (EPERM).
fn is_alive(address: &SocketAddrUnix) -> io::Result<bool> {
    let asks = unix(SocketType::DGRAM)?;
    match connect(&asks, address) {
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn taken(why: Taken) -> io::Error {
    let kind = match why {
        Taken::InUse => io::ErrorKind::AddrInUse,
        Taken::NotASocket => io::ErrorKind::AlreadyExists,
        Taken::TooLong { .. } => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, why)
}

/// The lock on a name's directory, let go when dropped.
struct Lock(#[expect(dead_code, reason = "held")] File);

impl Lock {
    /// `None` where there is none to be had: the directory cannot be read, or somebody keeps it.
    fn of(path: &Path) -> Option<Lock> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new("."))).ok()?;
        let end = Instant::now() + LOCK_TIME;
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Lock(directory)),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn refused(path: &Path) -> String {
        listen_at(path, 1).unwrap_err().to_string()
    }

    #[test]
    fn a_living_socket_keeps_its_name_and_notices_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        let living = UnixListener::bind(&path).unwrap();
        living.set_nonblocking(true).unwrap();
        assert!(refused(&path).contains("a running program listens there"));
        assert_eq!(living.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        UnixStream::connect(&path).unwrap();
        let other = folder.path().join("d");
        let datagrams = UnixDatagram::bind(&other).unwrap();
        assert!(refused(&other).contains("a running program listens there"));
        let third = folder.path().join("e");
        let _third = UnixDatagram::bind(&third).unwrap();
        datagrams.connect(&third).unwrap();
        assert!(refused(&other).contains("a running program listens there"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link).contains("a running program listens there"));
    }

    #[test]
    fn a_dead_socket_is_replaced_and_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (file, _socket) = listen_at(&path, 1).unwrap();
        connect_to(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_or_no_longer_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        fs::write(&path, "precious").unwrap();
        assert!(refused(&path).contains("that is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(refused(&link).contains("that is no socket"));
        assert!(fs::symlink_metadata(&link).is_ok());

        let ours = folder.path().join("ours");
        let (file, _socket) = listen_at(&ours, 1).unwrap();
        fs::remove_file(&ours).unwrap();
        let _theirs = UnixListener::bind(&ours).unwrap();
        drop(file);
        assert!(ours.exists());
    }

    #[test]
    fn paths_may_be_as_long_as_the_kernel_takes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |bytes: usize| {
            let name = "x".repeat(bytes - folder.path().as_os_str().len() - 1);
            folder.path().join(name)
        };
        for bytes in [107, 108] {
            let (_file, _socket) = listen_at(&path(bytes), 1).unwrap();
            connect_to(&path(bytes)).unwrap();
        }
        assert_eq!(
            refused(&path(109)),
            "the path of a unix socket has at most 108 bytes, this one 109"
        );
    }

    #[test]
    fn of_many_that_start_at_once_one_gets_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(8);
        let got = std::thread::scope(|threads| {
            let tries: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| {
                        start.wait();
                        listen_at(&path, 1).ok()
                    })
                })
                .collect();
            tries.into_iter().filter_map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(got.len(), 1);
        connect_to(&path).unwrap();
    }
}
