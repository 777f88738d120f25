//! Sockets behind character devices.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::{AddressFamily, sockopt};

use super::error::Error;
use crate::aside::aside;
use crate::config::{IpFamily, SocketAddress};
use crate::io::socket_file::{self, SocketFile};

/// Clients that wait for the one before them to leave.
const BACKLOG: i32 = 128;

/// A listening socket, ready for the control plane's runtime, and the client that `wait=on` waited
/// for.
pub struct Listener {
    #[expect(dead_code, reason = "removes the name of a unix socket, before the socket goes")]
    file: Option<SocketFile>,
    incoming: Incoming,
    first: Option<OwnedFd>,
    name: String,
    nodelay: bool,
}

enum Incoming {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

impl Listener {
    /// With `wait` this returns when a client is there.
    pub(super) async fn open(
        id: &str,
        address: &SocketAddress,
        wait: bool,
    ) -> Result<Listener, Error> {
        let (of, to) = (id.to_owned(), address.clone());
        let failed = move |source| Error::Listen { id: of.clone(), address: describe(&to), source };
        let (to, told) = (address.clone(), failed.clone());
        let (file, socket) = waited_for(id, move || listen(&to).map_err(told)).await?;
        let name = bound_name(address, &socket);
        let nodelay = matches!(address, SocketAddress::Tcp { nodelay: true, .. });
        let incoming = Incoming::new(socket).map_err(failed)?;
        let mut listener = Listener { file, incoming, first: None, name, nodelay };
        if wait {
            say!("godwit: waiting for a connection on {},server=on", listener.name);
            listener.first = Some(listener.accept().await);
        }
        Ok(listener)
    }

    /// As `query-chardev` writes it, without the role.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the next client. What the kernel refuses for the moment (too many files) is waited
    /// out, and told once.
    pub async fn accept(&mut self) -> OwnedFd {
        if let Some(first) = self.first.take() {
            return first;
        }
        let mut told = false;
        loop {
            match self.incoming.accept(self.nodelay).await {
                Ok(client) => return client,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("{}: accept: {error}", self.name);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Incoming {
    fn new(socket: OwnedFd) -> io::Result<Incoming> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
            Incoming::Unix(tokio::net::UnixListener::from_std(socket.into())?)
        } else {
            Incoming::Tcp(tokio::net::TcpListener::from_std(socket.into())?)
        })
    }

    async fn accept(&self, nodelay: bool) -> io::Result<OwnedFd> {
        match self {
            Incoming::Unix(listener) => Ok(listener.accept().await?.0.into_std()?.into()),
            Incoming::Tcp(listener) => {
                let client = listener.accept().await?.0;
                client.set_nodelay(nodelay)?;
                Ok(client.into_std()?.into())
            }
        }
    }
}

/// A connection that we make.
pub struct Client {
    pub address: SocketAddress,
    pub first: Option<OwnedFd>,
    /// Pause before another try, never if `None`.
    pub reconnect: Option<Duration>,
}

impl Client {
    pub(super) fn open(
        id: &str,
        address: &SocketAddress,
        reconnect_ms: u64,
    ) -> Result<Client, Error> {
        let reconnect = (reconnect_ms > 0).then(|| Duration::from_millis(reconnect_ms));
        let first = match connect(address) {
            Ok(socket) => Some(socket),
            Err(_) if reconnect.is_some() => None,
            Err(source) => {
                return Err(Error::Connect {
                    id: id.to_owned(),
                    address: describe(address),
                    source,
                });
            }
        };
        Ok(Client { address: address.clone(), first, reconnect })
    }

    /// Waits for the next connection; `None` when there will be no other.
    pub(crate) async fn next(&mut self) -> Option<OwnedFd> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let pause = self.reconnect?;
        loop {
            tokio::time::sleep(pause).await;
            let address = self.address.clone();
            match aside("reconnect", move || connect(&address)) {
                Ok(connected) => {
                    if let Ok(Ok(socket)) = connected.await {
                        return Some(socket);
                    }
                }
                Err(error) => tracing::warn!("{}: no thread: {error}", describe(&self.address)),
            }
        }
    }
}

/// As `query-chardev` writes it.
pub(crate) fn describe(address: &SocketAddress) -> String {
    match address {
        SocketAddress::Unix { path } => format!("unix:{}", path.display()),
        SocketAddress::Abstract { name } => format!("unix:@{name},abstract=on"),
        SocketAddress::Tcp { host, port, .. } if host.contains(':') => {
            format!("tcp:[{host}]:{port}")
        }
        SocketAddress::Tcp { host, port, .. } => format!("tcp:{host}:{port}"),
        SocketAddress::Fd(number) => format!("fd:{number}"),
    }
}

/// The name of a listener: with the port that was really taken.
fn bound_name(address: &SocketAddress, socket: &OwnedFd) -> String {
    match (address, rustix::net::getsockname(socket).map(std::net::SocketAddr::try_from)) {
        (SocketAddress::Tcp { .. }, Ok(Ok(bound))) => format!("tcp:{bound}"),
        _ => describe(address),
    }
}

/// A socket that listens at `address`; its name goes with the file.
pub(crate) fn listen(address: &SocketAddress) -> io::Result<(Option<SocketFile>, OwnedFd)> {
    let socket = match address {
        SocketAddress::Unix { path } => {
            let (file, socket) = socket_file::listen_at(path, BACKLOG)?;
            return Ok((Some(file), socket));
        }
        SocketAddress::Abstract { name } => {
            UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?)?.into()
        }
        SocketAddress::Tcp { host, port, port_to, family, .. } => {
            listen_tcp(host, *port, port_to.unwrap_or(*port), *family)?
        }
        SocketAddress::Fd(number) => inherited(*number)?,
    };
    Ok((None, socket))
}

fn listen_tcp(host: &str, port: u16, port_to: u16, family: IpFamily) -> io::Result<OwnedFd> {
    let host =
        if host.is_empty() { if family == IpFamily::V6 { "::" } else { "0.0.0.0" } } else { host };
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    for port in port..=port_to.max(port) {
        for address in resolve(host, port, family)? {
            match TcpListener::bind(address) {
                Ok(listener) => return Ok(listener.into()),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

/// A connection to `address`; may take as long as names and hosts do.
pub(crate) fn connect(address: &SocketAddress) -> io::Result<OwnedFd> {
    match address {
        SocketAddress::Unix { path } => socket_file::connect_to(path),
        SocketAddress::Abstract { name } => {
            Ok(UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?)?.into())
        }
        SocketAddress::Tcp { host, port, family, nodelay, .. } => {
            let host = if host.is_empty() { "localhost" } else { host };
            let addresses: Vec<_> = resolve(host, *port, *family)?.collect();
            let stream = TcpStream::connect(&addresses[..])?;
            stream.set_nodelay(*nodelay)?;
            Ok(stream.into())
        }
        SocketAddress::Fd(number) => inherited(*number),
    }
}

fn resolve(
    host: &str,
    port: u16,
    family: IpFamily,
) -> io::Result<impl Iterator<Item = std::net::SocketAddr>> {
    let fits = move |address: &std::net::SocketAddr| match family {
        IpFamily::Any => true,
        IpFamily::V4 => address.is_ipv4(),
        IpFamily::V6 => address.is_ipv6(),
    };
    Ok((host, port).to_socket_addrs()?.filter(fits))
}

/// A copy of a descriptor that we were started with. The number comes from the command line, so the
/// kernel is asked for it by number: what is not open is refused.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fd = pidfd_getfd(this.as_fd(), number, PidfdGetfdFlags::empty())?;
    Ok(fd)
}

/// Does on a thread what may not return: the control plane goes on meanwhile.
pub(super) async fn waited_for<T: Send + 'static>(
    id: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let failed = |source| Error::Thread { id: id.to_owned(), source };
    let done = aside("chardev", work).map_err(failed)?.await;
    done.unwrap_or_else(|_| Err(failed(io::Error::other("it panicked"))))
}
