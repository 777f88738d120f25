//! Addresses opened. What may block runs where a cancel ends the wait for it: files and programs are
//! opened, names resolved on helper threads, connections made in the ring.
//!
//! Unsafe because connecting names an address for as long as it takes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{opcode, types};

use super::address::Address;
use super::aside::aside;
use super::connection::{Connection, Medium};
use super::error::{Error, OpenError};
use super::name;
use super::program::Program;
use super::resolve::{SocketAddress, no_address, resolve_aside};
use super::ring::Ring;

/// Where descriptors come from that are named by somebody else.
pub trait Descriptors {
    /// One by its name (`fd:`), for good.
    fn take(&mut self, name: &str) -> Option<OwnedFd>;

    /// A duplicate from the set that `path`, `/dev/fdset/N`, names, opened with `flags`.
    fn member(&mut self, path: &str, flags: i32) -> std::result::Result<SetFd, OpenError>;
}

/// Nobody named any.
pub struct NoDescriptors;

impl Descriptors for NoDescriptors {
    fn take(&mut self, _name: &str) -> Option<OwnedFd> {
        None
    }

    fn member(&mut self, path: &str, _flags: i32) -> std::result::Result<SetFd, OpenError> {
        Err(OpenError::NoFdSet(path.to_owned()))
    }
}

/// A duplicate from a set of descriptors; the set stays listed while it is open.
#[derive(Debug)]
pub struct SetFd {
    pub fd: OwnedFd,
    pub in_use: Arc<()>,
}

/// Names that mean a member of a set of descriptors.
pub(crate) const FD_SET: &str = "/dev/fdset/";

/// What became of an address.
pub(crate) enum Opened {
    /// It names a socket, to be connected to or listened on.
    Socket,
    Connection(Connection),
    /// It is a FIFO that nobody reads yet, for [`await_reader`].
    Fifo(String),
}

/// Opens everything but sockets. Names and programs are opened on a thread of their own, so that
/// the ring's owner can be cancelled whatever the file system does.
pub(crate) fn open(
    ring: &mut Ring,
    address: &Address,
    direction: Direction,
    fds: &mut dyn Descriptors,
) -> std::result::Result<Opened, OpenError> {
    match address {
        Address::Tcp(_) | Address::Unix(_) => Ok(Opened::Socket),
        Address::Fd(name) => {
            let fd = fds.take(name).ok_or_else(|| OpenError::NoFd(name.clone()))?;
            check_given(&fd, name, direction)?;
            Ok(Opened::Connection(Connection::from_fd(fd).tune()))
        }
        Address::Exec(words) => {
            let words = words.clone();
            aside(ring, "exec", move || spawn(&words, direction))?.map(Opened::Connection)
        }
        Address::File { path, offset } if path.starts_with(FD_SET) => {
            let SetFd { fd, in_use } = fds.member(path, direction.flags())?;
            check_given(&fd, path, direction)?;
            let mut connection = file_connection(path, fd.into(), *offset, direction)?;
            connection.in_use = Some(in_use);
            Ok(Opened::Connection(connection))
        }
        Address::File { path, offset } => {
            let (path, offset) = (path.clone(), *offset);
            aside(ring, "open", move || open_file(path, offset, direction))?
        }
    }
}

/// A descriptor that came from elsewhere may be of any file.
fn check_given(
    fd: &OwnedFd,
    name: &str,
    direction: Direction,
) -> std::result::Result<(), OpenError> {
    match direction {
        Direction::Out if name::check_output(fd.as_fd()).is_err() => {
            Err(OpenError::OwnFile(name.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Waits in the ring until somebody reads the FIFO.
pub(crate) fn await_reader(
    ring: &mut Ring,
    path: &str,
) -> std::result::Result<Connection, OpenError> {
    loop {
        let name = path.to_owned();
        let opened = aside(ring, "open", move || open_file(name, 0, Direction::Out))??;
        match opened {
            Opened::Connection(connection) => return Ok(connection),
            Opened::Socket | Opened::Fifo(_) => {
                ring.sleep_until(Instant::now() + name::FIFO_AGAIN)?;
            }
        }
    }
}

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
}

impl Direction {
    /// How QEMU opens a file for it.
    fn flags(self) -> i32 {
        match self {
            Direction::Out => libc::O_WRONLY | libc::O_CREAT,
            Direction::In => libc::O_RDONLY,
        }
    }
}

fn open_file(
    path: String,
    offset: u64,
    direction: Direction,
) -> std::result::Result<Opened, OpenError> {
    let file = match direction {
        Direction::Out => {
            let how = name::Create { mode: 0o600, truncate: false };
            match name::try_create(path.as_ref(), how) {
                Ok(Some(file)) => file,
                Ok(None) => return Ok(Opened::Fifo(path)),
                Err(source) => return Err(OpenError::Create { path, source }),
            }
        }
        Direction::In => match name::open(path.as_ref()) {
            Ok(file) => file,
            Err(source) => return Err(OpenError::Open { path, source }),
        },
    };
    file_connection(&path, file, offset, direction).map(Opened::Connection)
}

/// A stream that begins at `offset`; what a file holds from there on is cut off before it is
/// written. Pipes and devices have no offset.
fn file_connection(
    path: &str,
    mut file: File,
    offset: u64,
    direction: Direction,
) -> std::result::Result<Connection, OpenError> {
    let connection = |file: File| Connection::from_fd(file.into());
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file && offset == 0 {
        return Ok(connection(file));
    }
    if direction == Direction::Out && is_file {
        let length = i64::try_from(offset).map_err(|_| libc::EINVAL);
        let cut = length.map_err(std::io::Error::from_raw_os_error);
        let cut = cut.and_then(|length| file.set_len(length as u64));
        cut.map_err(|source| OpenError::Truncate { offset, source })?;
    }
    let placed = file.seek(SeekFrom::Start(offset));
    placed.map_err(|source| OpenError::Seek { path: path.to_owned(), offset, source })?;
    Ok(connection(file))
}

fn spawn(words: &[String], direction: Direction) -> std::result::Result<Connection, OpenError> {
    let name = words.first().cloned().unwrap_or_default();
    // As in QEMU, no search: a name is a file of the working directory.
    let is_word = !name.is_empty() && !name.contains('/');
    let mut command = Command::new(if is_word { format!("./{name}") } else { name.clone() });
    command.args(words.get(1..).unwrap_or_default());
    match direction {
        Direction::Out => command.stdin(Stdio::piped()),
        Direction::In => command.stdin(Stdio::null()).stdout(Stdio::piped()),
    };
    let started = Program::start(&mut command)
        .map_err(|source| OpenError::Spawn { program: name, source })?;
    let (stdin, stdout) = started.streams();
    let fd = stdin.or(stdout).expect("the stream was asked to be a pipe");
    Ok(Connection { fd: Arc::new(fd), medium: Medium::Pipe, program: Some(started), in_use: None })
}

/// Connects to a socket address, in the ring and within its operation time-out.
pub(crate) fn connect(
    ring: &mut Ring,
    address: &Address,
) -> std::result::Result<Connection, OpenError> {
    match address {
        Address::Unix(name) => connect_to(ring, address, &SocketAddress::unix(name)?, 0),
        Address::Tcp(tcp) => {
            let mut failure = None;
            for candidate in resolve_aside(ring, tcp, false)? {
                match connect_to(ring, address, &candidate, tcp.protocol()) {
                    Ok(connection) => return Ok(connection),
                    Err(OpenError::Io(Error::Cancelled)) => return Err(Error::Cancelled.into()),
                    Err(error) => failure = Some(error),
                }
            }
            Err(failure.unwrap_or_else(|| no_address(tcp)))
        }
        other => unreachable!("{other} is opened without waiting"),
    }
}

fn connect_to(
    ring: &mut Ring,
    address: &Address,
    to: &SocketAddress,
    protocol: i32,
) -> std::result::Result<Connection, OpenError> {
    let fail = |source| OpenError::Connect { address: address.to_string(), source };
    let fd = to.socket(protocol).map_err(fail)?;
    let (name, length) = to.parts();
    let entry = opcode::Connect::new(types::Fd(fd.as_raw_fd()), name, length).build();
    // SAFETY: `to` is borrowed until `wait` returns, and `wait` returns only when the kernel is
    // done.
    let token = unsafe { ring.submit(entry) }?;
    match ring.wait(token) {
        Ok(0..) => Ok(Connection::from_fd(fd).tune()),
        Ok(error) => Err(fail(std::io::Error::from_raw_os_error(-error))),
        Err(Error::TimedOut(_)) => Err(fail(std::io::Error::from_raw_os_error(libc::ETIMEDOUT))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::address::UnixName;
    use crate::io::listener::{BoundAddress, Listener};
    use crate::io::{Limit, SocketReader, Waker, Writer};
    use std::time::Duration;

    fn ring() -> Ring {
        Ring::new(Waker::new()).unwrap()
    }

    fn opened(address: &Address) -> std::result::Result<Connection, OpenError> {
        match open(&mut ring(), address, Direction::Out, &mut NoDescriptors)? {
            Opened::Connection(connection) => Ok(connection),
            Opened::Socket | Opened::Fifo(_) => panic!("{address} is not open"),
        }
    }

    fn over(address: &Address) -> Medium {
        let listener = Listener::bind(address).unwrap();
        let mut to = address.clone();
        if let (Address::Tcp(tcp), BoundAddress::Inet { port, .. }) =
            (&mut to, &listener.addresses()[0])
        {
            tcp.port = port.to_string();
        }
        let source = std::thread::spawn(move || {
            let mut ring = ring();
            let connection = connect(&mut ring, &to).unwrap();
            connection.set_user_timeout(Duration::from_secs(60)).unwrap();
            let mut writer = Writer::new(connection.fd.clone(), Arc::new(Limit::new(0)));
            writer.write_all(&mut ring, b"hello").unwrap();
            connection.medium
        });
        let mut ring = ring();
        let connection = listener.accept(&mut ring).unwrap();
        let mut reader = SocketReader::new(connection.fd.clone());
        assert_eq!(reader.need(&mut ring, 5).unwrap(), b"hello");
        source.join().unwrap()
    }

    #[test]
    fn sockets_connect_over_unix_ipv4_ipv6_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_owned();
        assert_eq!(over(&Address::unix(&path)), Medium::Socket);
        assert!(!std::path::Path::new(&path).exists(), "the socket file is gone with the listener");
        for uri in ["tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp:localhost:0", "tcp:127.0.0.1:0,mptcp"] {
            assert_eq!(over(&Address::from_uri(uri).unwrap()), Medium::Tcp, "{uri}");
        }
    }

    #[test]
    fn a_path_takes_all_the_room_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = format!("{}/é,% #", dir.path().to_str().unwrap());
        for bytes in [107, 108] {
            let path = format!("{prefix}{}", "a".repeat(bytes - prefix.len()));
            assert_eq!(over(&Address::from_uri(&format!("unix:{path}")).unwrap()), Medium::Socket);
        }
        let long = Address::unix("a".repeat(109));
        let text = format!("UNIX socket path '{long}' is too long");
        assert_eq!(connect(&mut ring(), &long).err().unwrap().to_string(), text);
        assert_eq!(Listener::bind(&long).err().unwrap().to_string(), text);
        assert!(matches!(Listener::bind(&Address::unix("")), Err(OpenError::NoName)));
    }

    #[test]
    fn abstract_names_are_no_files() {
        let name = format!("godwit-test-{}", std::process::id());
        let of = |tight| Address::Unix(UnixName::Abstract { name: name.clone(), tight });
        for tight in [true, false] {
            assert_eq!(over(&of(tight)), Medium::Socket);
            let _listener = Listener::bind(&of(tight)).unwrap();
            assert!(!std::path::Path::new(&name).exists());
            let other = connect(&mut ring(), &of(!tight)).err().unwrap().to_string();
            assert_eq!(other, format!("Failed to connect to '{name}': Connection refused"));
        }
        let long = Address::Unix(UnixName::Abstract { name: "a".repeat(108), tight: true });
        assert!(matches!(Listener::bind(&long), Err(OpenError::PathTooLong(_))));
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let bind = |to: u32| {
            let uri = format!("tcp:127.0.0.1:{port},to={to}");
            Listener::bind(&Address::from_uri(&uri).unwrap())
        };
        let error = bind(port.into()).err().unwrap().to_string();
        assert_eq!(error, "Failed to find an available port: Address already in use");
        assert!(matches!(bind(1), Err(OpenError::NoPort { .. })));
        let listener = bind(65535).unwrap();
        let BoundAddress::Inet { port: bound, .. } = listener.addresses()[0] else { panic!() };
        assert!(bound > port);
    }

    #[test]
    fn failures_have_qemus_texts() {
        let refused = |uri: &str| {
            connect(&mut ring(), &Address::from_uri(uri).unwrap()).err().unwrap().to_string()
        };
        assert_eq!(
            refused("unix:/no/such"),
            "Failed to connect to '/no/such': No such file or directory"
        );
        assert_eq!(
            refused("tcp:127.0.0.1:1"),
            "Failed to connect to '127.0.0.1:1': Connection refused"
        );
        let long = "a".repeat(200);
        assert_eq!(
            refused(&format!("unix:{long}")),
            format!("UNIX socket path '{long}' is too long")
        );
        assert!(
            refused("tcp:localhost:x")
                .starts_with("address resolution failed for localhost:x: Servname")
        );
        let open = |uri: &str| opened(&Address::from_uri(uri).unwrap()).err().unwrap().to_string();
        assert_eq!(
            refused("tcp::1"),
            "address resolution failed for :1: Name or service not known"
        );
        assert_eq!(
            refused("tcp:h:1,ipv4=off,ipv6=off"),
            "Cannot disable IPv4 and IPv6 at same time"
        );
        assert_eq!(open("fd:missing"), "File descriptor named 'missing' has not been found");
        assert_eq!(
            open("file:/no/dir/f"),
            "Could not create '/no/dir/f': No such file or directory"
        );
        assert_eq!(
            opened(&Address::Exec(vec!["cat".into()])).err().unwrap().to_string(),
            "Failed to execute child process \u{201c}cat\u{201d} (No such file or directory)"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f").to_str().unwrap().to_owned();
        assert_eq!(
            opened(&Address::File { path, offset: u64::MAX }).err().unwrap().to_string(),
            "failed to truncate migration file to offset ffffffffffffffff: Invalid argument"
        );
        assert!(refused("tcp:127.0.0.1:1,ipv4=off").ends_with("Connection refused"));
        let program = Address::Exec(vec!["/nonexistent/program".into()]);
        assert_eq!(
            opened(&program).err().unwrap().to_string(),
            "Failed to execute child process \u{201c}/nonexistent/program\u{201d} (No such file or directory)"
        );
    }

    #[test]
    fn files_keep_what_lies_before_the_offset_and_programs_take_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f").to_str().unwrap().to_owned();
        let mut ring = ring();
        std::fs::write(&path, b"0123456789").unwrap();
        for address in [
            Address::File { path: path.clone(), offset: 4 },
            Address::Exec(vec!["/bin/sh".into(), "-c".into(), format!("cat > {path}.out")]),
        ] {
            let connection = opened(&address).unwrap();
            assert!(!connection.is_two_way());
            let mut writer = Writer::new(connection.fd.clone(), Arc::new(Limit::new(0)));
            writer.write_all(&mut ring, b"abc").unwrap();
            writer.close(&mut ring);
            let program = connection.program.clone();
            drop(connection);
            if let Some(program) = program {
                program.wait(&mut ring, Duration::from_secs(20)).unwrap();
            }
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"0123abc");
        assert_eq!(std::fs::read(format!("{path}.out")).unwrap(), b"abc");
    }
}
