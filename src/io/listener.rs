//! Sockets that wait for a source.
//!
//! Unsafe for accept4.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use super::address::{Address, Tcp, UnixName};
use super::connection::Connection;
use super::error::{OpenError, Result};
use super::resolve::{BACKLOG, SocketAddress, no_address, resolve};
use super::ring::{Ring, Token};
use super::socket::set_option;
use super::socket_file::{self, SocketFile};

/// A socket that waits for a source.
pub struct Listener {
    /// The name of a unix socket; goes before the socket does.
    file: Option<Arc<SocketFile>>,
    sockets: Vec<OwnedFd>,
    addresses: Vec<BoundAddress>,
}

/// Where a listener can be reached, as `query-migrate` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BoundAddress {
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
            let opened = candidate.socket(tcp.protocol()).and_then(|fd| {
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
    pub(crate) fn file(&self) -> Weak<SocketFile> {
        self.file.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    pub(crate) fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// One poll for each socket, which is done when somebody connects.
    pub(crate) fn poll(&self, ring: &mut Ring) -> Result<Vec<Token>> {
        self.sockets.iter().map(|socket| ring.poll(socket.as_raw_fd(), libc::POLLIN)).collect()
    }

    /// A connection that is there already.
    pub(crate) fn accept_now(&self) -> Result<Option<Connection>> {
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
    pub(crate) fn accept(&self, ring: &mut Ring) -> Result<Connection> {
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
