//! Addresses opened. What may block runs where a cancel ends the wait for it: files and programs are
//! opened, names resolved on helper threads, connections made in the ring.
//!
//! Unsafe for getaddrinfo and for socket calls that std does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::address::{Address, Tcp, UnixName};
use super::aside::aside;
use super::resolve::{BACKLOG, SocketAddress, no_address, resolve, resolve_aside};
use super::ring::{Ring, Token};
use super::socket_file::{self, SocketFile};
use super::{Error, OpenError, Program, Result, name};

/// What a stream runs over; decides what may be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Tcp,
    /// A unix socket, or a socket somebody handed us.
    Socket,
    Pipe,
    File,
}

/// One open stream.
pub struct Connection {
    pub fd: Arc<OwnedFd>,
    pub medium: Medium,
    /// The command behind an `exec:` stream.
    pub program: Option<Program>,
    /// The set that the descriptor came from is in use.
    in_use: Option<Arc<()>>,
}

impl Connection {
    /// Around a descriptor that is open already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        let medium = medium(&fd);
        Self { fd: Arc::new(fd), medium, program: None, in_use: None }
    }

    /// The same stream once more.
    pub fn share(&self) -> Self {
        let (fd, program) = (self.fd.clone(), self.program.clone());
        Self { fd, medium: self.medium, program, in_use: None }
    }

    /// What has come, as far as `bytes` has room, left where it is. `None`: nothing yet; 0: nothing
    /// will.
    pub fn peek_now(&self, bytes: &mut [u8]) -> Result<Option<usize>> {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is borrowed for the call, and its length is given.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags)
        };
        match usize::try_from(got) {
            Ok(got) => Ok(Some(got)),
            Err(_) => match std::io::Error::last_os_error() {
                error if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error.into()),
            },
        }
    }

    /// Waits until a pipe has something to read, or had a writer that is gone: one that never had a
    /// writer reads as if it had ended.
    pub fn await_writer(&self, ring: &mut Ring) -> Result<()> {
        if self.medium != Medium::Pipe {
            return Ok(());
        }
        let fd = types::Fd(self.fd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: a poll names no memory.
        let token = unsafe { ring.submit(entry) }?;
        match ring.wait(token)? {
            0.. => Ok(()),
            error => Err(Error::from_result(error)),
        }
    }

    /// Nothing more will come than what is there already.
    pub fn is_hung_up(&self) -> Result<bool> {
        let mut polled = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut polled, Some(&now)).map_err(std::io::Error::from)?;
        Ok(ready > 0)
    }

    /// Answers can come back on it.
    pub fn is_two_way(&self) -> bool {
        matches!(self.medium, Medium::Tcp | Medium::Socket)
    }

    /// Sets how long sent bytes may stay unacknowledged before the connection counts as broken. TCP
    /// only.
    pub fn set_user_timeout(&self, time: Duration) -> std::io::Result<()> {
        if self.medium != Medium::Tcp {
            return Ok(());
        }
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        match set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &ms) {
            // Multipath TCP has none.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
            set => set?,
        }
        // A silent peer is only noticed when there is something to acknowledge.
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32)?;
        let seconds = (ms / 4000).clamp(1, 30) as i32;
        set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &seconds)?;
        set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &seconds)
    }

    /// Ends both directions, so that a blocked peer learns of it.
    pub fn shut_down(&self) {
        // SAFETY: shutdown has no memory arguments; on what is no socket it fails harmlessly.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    fn tune(self) -> Self {
        // Neither is needed for the stream to work.
        match self.medium {
            Medium::Tcp => {
                let _ = set_option(&self.fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32);
            }
            Medium::Socket => {
                // Without the privilege the host's limit (net.core.wmem_max) holds.
                let option =
                    |option| set_option(&self.fd, libc::SOL_SOCKET, option, &SEND_BUFFER_BYTES);
                let _ = option(libc::SO_SNDBUFFORCE).or_else(|_| option(libc::SO_SNDBUF));
            }
            _ => {}
        }
        self
    }
}

/// What the kernel holds between two processes on one host. Its own default, 208 KiB, makes the two
/// take turns ten thousand times per gigabyte. TCP finds its own size.
const SEND_BUFFER_BYTES: i32 = 4 << 20;

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
pub const FD_SET: &str = "/dev/fdset/";

/// What became of an address.
pub enum Opened {
    /// It names a socket, to be connected to or listened on.
    Socket,
    Connection(Connection),
    /// It is a FIFO that nobody reads yet, for [`await_reader`].
    Fifo(String),
}

/// Opens everything but sockets. Names and programs are opened on a thread of their own, so that
/// the ring's owner can be cancelled whatever the file system does.
pub fn open(
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
pub fn await_reader(ring: &mut Ring, path: &str) -> std::result::Result<Connection, OpenError> {
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
pub enum Direction {
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
pub fn connect(ring: &mut Ring, address: &Address) -> std::result::Result<Connection, OpenError> {
    match address {
        Address::Unix(name) => connect_to(ring, address, &SocketAddress::unix(name)?, 0),
        Address::Tcp(tcp) => {
            let mut failure = None;
            for candidate in resolve_aside(ring, tcp, false)? {
                match connect_to(ring, address, &candidate, protocol(tcp)) {
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

fn protocol(tcp: &Tcp) -> i32 {
    if tcp.mptcp { libc::IPPROTO_MPTCP } else { 0 }
}

/// A socket that waits for a source.
pub struct Listener {
    /// The name of a unix socket; goes before the socket does.
    file: Option<Arc<SocketFile>>,
    sockets: Vec<OwnedFd>,
    addresses: Vec<BoundAddress>,
}

/// Where a listener can be reached, as `query-migrate` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    Inet { host: String, port: u16, ipv6: bool },
    Unix(UnixName),
}

impl Listener {
    pub fn bind(address: &Address) -> std::result::Result<Self, OpenError> {
        match address {
            Address::Unix(name) => Self::bind_unix(name),
            Address::Tcp(tcp) => Self::bind_tcp(tcp),
            other => unreachable!("{other} is opened, not listened on"),
        }
    }

    fn bind_unix(name: &UnixName) -> std::result::Result<Self, OpenError> {
        let fail = |source| OpenError::BindUnix { address: name.to_string(), source };
        let address = SocketAddress::unix(name)?;
        let (file, socket) = match name {
            UnixName::Path(path) if path.is_empty() => return Err(OpenError::NoName),
            UnixName::Path(path) => {
                let (file, socket) =
                    socket_file::listen_at(path.as_ref(), BACKLOG).map_err(fail)?;
                (Some(Arc::new(file)), socket)
            }
            UnixName::Abstract { .. } => {
                let socket = address.socket(0).map_err(fail)?;
                address.listen(&socket).map_err(fail)?;
                (None, socket)
            }
        };
        Ok(Self { file, sockets: vec![socket], addresses: vec![BoundAddress::Unix(name.clone())] })
    }

    /// On the first port of the range that nobody has.
    fn bind_tcp(tcp: &Tcp) -> std::result::Result<Self, OpenError> {
        let candidates = resolve(tcp, true)?;
        let from = candidates.first().ok_or_else(|| no_address(tcp))?.port();
        let to = tcp.to.unwrap_or(from);
        let mut outcome = Err(OpenError::NoPort { from, to });
        for port in from..=to {
            let candidates = candidates.iter().map(|candidate| candidate.with_port(port));
            outcome = Self::bind_port(tcp, candidates, port == to);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// On all addresses, or with `some` on those that can be had.
    fn bind_port(
        tcp: &Tcp,
        candidates: impl Iterator<Item = SocketAddress>,
        some: bool,
    ) -> std::result::Result<Self, OpenError> {
        let mut listener = Self { sockets: Vec::new(), addresses: Vec::new(), file: None };
        let mut failure = None;
        for candidate in candidates {
            let opened = candidate.socket(protocol(tcp)).and_then(|fd| {
                set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
                if candidate.family() == libc::AF_INET6 {
                    set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1i32)?;
                }
                candidate.listen(&fd)?;
                Ok(fd)
            });
            match opened {
                Ok(fd) => {
                    listener.addresses.push(bound_address(&fd)?);
                    listener.sockets.push(fd);
                }
                Err(source) => {
                    failure = Some(OpenError::BindTcp { address: tcp.to_string(), source })
                }
            }
            // One port chosen by the kernel cannot be had twice for sure.
            if candidate.port() == 0 && !listener.sockets.is_empty() {
                break;
            }
        }
        match failure {
            Some(failure) if listener.sockets.is_empty() || !some => Err(failure),
            _ => Ok(listener),
        }
    }

    /// The name of a unix socket, for whoever ends the process while somebody listens.
    pub fn file(&self) -> Weak<SocketFile> {
        self.file.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// One poll for each socket, which is done when somebody connects.
    pub fn poll(&self, ring: &mut Ring) -> Result<Vec<Token>> {
        self.sockets.iter().map(|socket| ring.poll(socket.as_raw_fd(), libc::POLLIN)).collect()
    }

    /// A connection that is there already.
    pub fn accept_now(&self) -> Result<Option<Connection>> {
        for socket in &self.sockets {
            let mut polled = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if rustix::event::poll(&mut polled, Some(&now)).map_err(std::io::Error::from)? == 0 {
                continue;
            }
            // SAFETY: null pointers: the peer's address is not asked for.
            let fd = unsafe {
                libc::accept4(
                    socket.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                )
            };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: accept4 returned a descriptor that nobody else has.
            return Ok(Some(Connection::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }).tune()));
        }
        Ok(None)
    }

    #[cfg(test)]
    pub fn accept(&self, ring: &mut Ring) -> Result<Connection> {
        loop {
            if let Some(connection) = self.accept_now()? {
                return Ok(connection);
            }
            let polls = self.poll(ring)?;
            let slept = ring.sleep(None);
            for poll in polls {
                ring.cancel(poll);
            }
            slept?;
        }
    }
}

fn bound_address(fd: &OwnedFd) -> Result<BoundAddress> {
    // A clone, because std's listener would close the descriptor.
    let socket = std::net::TcpListener::from(fd.try_clone()?);
    let address = socket.local_addr()?;
    Ok(BoundAddress::Inet {
        host: address.ip().to_string(),
        port: address.port(),
        ipv6: address.is_ipv6(),
    })
}

fn medium(fd: &OwnedFd) -> Medium {
    let mut domain: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let raw = fd.as_raw_fd();
    // SAFETY: SO_DOMAIN writes one int, whose size is given.
    let result = unsafe {
        libc::getsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &mut length,
        )
    };
    if result == 0 {
        return if domain == libc::AF_INET || domain == libc::AF_INET6 {
            Medium::Tcp
        } else {
            Medium::Socket
        };
    }
    // SAFETY: lseek has no memory arguments; it fails on what has no position.
    if unsafe { libc::lseek(raw, 0, libc::SEEK_CUR) } >= 0 { Medium::File } else { Medium::Pipe }
}

fn set_option<T>(fd: &impl AsRawFd, level: i32, option: i32, value: &T) -> std::io::Result<()> {
    // SAFETY: the value is borrowed for the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Limit, SocketReader, SocketWriter, Waker};

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
            let mut writer = SocketWriter::new(connection.fd.clone(), Arc::new(Limit::new(0)));
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
            let mut writer = SocketWriter::new(connection.fd.clone(), Arc::new(Limit::new(0)));
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
