//! Sockets behind character devices.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, accept_with, sockopt};

use super::Error;
use crate::config::{IpFamily, SocketAddress};

/// A listening socket, and the client that `wait=on` waited for. The path of a unix socket is
/// removed when this is dropped.
pub struct Listener {
    socket: OwnedFd,
    first: Option<OwnedFd>,
    name: String,
    nodelay: bool,
    path: Option<PathBuf>,
}

impl Listener {
    pub(super) fn open(id: &str, address: &SocketAddress, wait: bool) -> Result<Listener, Error> {
        let failed =
            |source| Error::Listen { id: id.to_owned(), address: describe(address), source };
        let socket = listen(address).map_err(failed)?;
        let name = bound_name(address, &socket);
        let path = match address {
            SocketAddress::Unix { path } => Some(path.clone()),
            _ => None,
        };
        let nodelay = matches!(address, SocketAddress::Tcp { nodelay: true, .. });
        let mut listener = Listener { socket, first: None, name, nodelay, path };
        if wait {
            eprintln!("godwit: waiting for a connection on {},server=on", listener.name);
            listener.first = Some(listener.accept_now().map_err(failed)?);
        }
        Ok(listener)
    }

    /// As `query-chardev` writes it, without the role.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn accept_now(&self) -> io::Result<OwnedFd> {
        let client = accept_with(&self.socket, SocketFlags::CLOEXEC)?;
        if self.nodelay {
            sockopt::set_tcp_nodelay(&client, true)?;
        }
        Ok(client)
    }

    /// Makes the socket ready for the control plane's runtime, on which this must be called.
    pub fn into_async(mut self) -> io::Result<AsyncListener> {
        rustix::io::ioctl_fionbio(&self.socket, true)?;
        let first = self.first.take();
        let socket = self.socket.try_clone()?;
        let incoming = if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
            Incoming::Unix(tokio::net::UnixListener::from_std(socket.into())?)
        } else {
            Incoming::Tcp(tokio::net::TcpListener::from_std(socket.into())?)
        };
        Ok(AsyncListener { listener: self, incoming, first })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Someone may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

pub struct AsyncListener {
    listener: Listener,
    incoming: Incoming,
    first: Option<OwnedFd>,
}

enum Incoming {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

impl AsyncListener {
    /// Waits for the next client. What the kernel refuses for the moment (too many files) is waited
    /// out.
    pub async fn accept(&mut self) -> OwnedFd {
        if let Some(first) = self.first.take() {
            return first;
        }
        loop {
            match self.incoming.accept(self.listener.nodelay).await {
                Ok(client) => return client,
                Err(error) => {
                    tracing::warn!("{}: accept: {error}", self.listener.name);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Incoming {
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
    pub async fn next(&mut self) -> Option<OwnedFd> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let pause = self.reconnect?;
        loop {
            tokio::time::sleep(pause).await;
            let address = self.address.clone();
            if let Ok(Ok(socket)) = tokio::task::spawn_blocking(move || connect(&address)).await {
                return Some(socket);
            }
        }
    }
}

/// As `query-chardev` writes it.
pub fn describe(address: &SocketAddress) -> String {
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

fn listen(address: &SocketAddress) -> io::Result<OwnedFd> {
    match address {
        SocketAddress::Unix { path } => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Ok(UnixListener::bind(path)?.into())
        }
        SocketAddress::Abstract { name } => {
            Ok(UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?)?.into())
        }
        SocketAddress::Tcp { host, port, port_to, family, .. } => {
            listen_tcp(host, *port, port_to.unwrap_or(*port), *family)
        }
        SocketAddress::Fd(number) => inherited(*number),
    }
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

fn connect(address: &SocketAddress) -> io::Result<OwnedFd> {
    match address {
        SocketAddress::Unix { path } => Ok(UnixStream::connect(path)?.into()),
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
fn inherited(number: i32) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fd = pidfd_getfd(this.as_fd(), number, PidfdGetfdFlags::empty())?;
    Ok(fd)
}
