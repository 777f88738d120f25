//! A frame in each datagram, between sockets of the file system or of UDP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recv, send,
    sendto, socket_with, sockopt,
};

use crate::chardev::inherited;
use crate::config::DgramAddress;
use crate::devices::HEADER_BYTES;
use crate::io::socket_file::FileId;

pub(super) struct Dgram {
    socket: Arc<OwnedFd>,
    remote: Remote,
    /// The name of ours, removed at the end.
    name: Option<(PathBuf, FileId)>,
    dead: bool,
}

enum Remote {
    /// The socket is connected.
    Peer,
    Unix(SocketAddrUnix),
    Udp(SocketAddr),
    /// Nobody to send to.
    Nobody,
}

impl Drop for Dgram {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.name {
            id.remove(path);
        }
    }
}

impl Dgram {
    /// May take as long as names do.
    pub(super) fn open(
        local: Option<&DgramAddress>,
        remote: Option<&DgramAddress>,
    ) -> io::Result<Dgram> {
        let mut name = None;
        let (socket, remote): (OwnedFd, Remote) = match (local, remote) {
            (Some(DgramAddress::Fd(number)), _) => (inherited(*number)?, Remote::Peer),
            (Some(DgramAddress::Unix(path)), remote) => {
                let socket = bind_unix(path)?;
                name = Some((path.clone(), FileId::at(path)?));
                let remote = match remote {
                    Some(DgramAddress::Unix(path)) => Remote::Unix(SocketAddrUnix::new(path)?),
                    _ => Remote::Nobody,
                };
                (socket, remote)
            }
            (local, Some(DgramAddress::Udp { host, port })) => {
                let to = resolve(host, *port)?;
                let group = match to {
                    SocketAddr::V4(to) if to.ip().is_multicast() => Some(*to.ip()),
                    _ => None,
                };
                let (socket, to) = match (local, group) {
                    (local, Some(group)) => (join(local, group, to)?, to),
                    (Some(DgramAddress::Udp { host, port }), None) => {
                        (UdpSocket::bind(resolve(or_any(host, &to), *port)?)?, to)
                    }
                    _ => return Err(io::ErrorKind::InvalidInput.into()),
                };
                (socket.into(), Remote::Udp(to))
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Dgram { socket: Arc::new(socket), remote, name, dead: false })
    }

    pub(super) fn wait(&self) -> Option<Arc<OwnedFd>> {
        (!self.dead).then(|| self.socket.clone())
    }

    pub(super) fn send(&self, frame: &[u8]) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match &self.remote {
            Remote::Peer => send(&self.socket, frame, flags),
            Remote::Unix(to) => sendto(&self.socket, frame, flags, to),
            Remote::Udp(to) => sendto(&self.socket, frame, flags, to),
            Remote::Nobody => return true,
        };
        match (sent, &self.remote) {
            // Room at a peer that is not connected cannot be waited for.
            (Err(Errno::AGAIN), Remote::Unix(_)) => true,
            (Err(Errno::AGAIN | Errno::INTR), _) => false,
            // Nobody is there, or it is longer than a datagram: lost.
            _ => true,
        }
    }

    pub(super) fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        let (header, frame) = into.split_at_mut(HEADER_BYTES);
        header.fill(0);
        loop {
            match recv(&self.socket, &mut *frame, RecvFlags::DONTWAIT) {
                // An empty one says nothing; a peer of a pair that has gone says it for ever.
                Ok((0, _)) if matches!(self.remote, Remote::Peer) => {
                    self.dead = true;
                    return None;
                }
                // A port unreachable, of something sent before.
                Ok((0, _)) | Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Ok((count, _)) => return Some(HEADER_BYTES + count),
                Err(Errno::AGAIN) => return None,
                Err(_) => {
                    self.dead = true;
                    return None;
                }
            }
        }
    }
}

/// A name that a dead socket has is taken.
fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    match UnixDatagram::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let dead = UnixDatagram::unbound()?.connect(path);
            if dead.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                std::fs::remove_file(path)?;
                return Ok(UnixDatagram::bind(path)?.into());
            }
            Err(error)
        }
        bound => Ok(bound?.into()),
    }
}

fn or_any<'a>(host: &'a str, like: &SocketAddr) -> &'a str {
    match host {
        "" if like.is_ipv6() => "::",
        "" => "0.0.0.0",
        host => host,
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    (host, port).to_socket_addrs()?.next().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Several on one host may be members of a group, at its port.
fn join(local: Option<&DgramAddress>, group: Ipv4Addr, to: SocketAddr) -> io::Result<UdpSocket> {
    let by = match local {
        Some(DgramAddress::Udp { host, .. }) => match resolve(or_any(host, &to), 0)? {
            SocketAddr::V4(address) => *address.ip(),
            SocketAddr::V6(_) => return Err(io::ErrorKind::InvalidInput.into()),
        },
        Some(DgramAddress::Fd(number)) => return Ok(inherited(*number)?.into()),
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &to)?;
    if !by.is_unspecified() {
        sockopt::set_ip_multicast_if(&socket, &by)?;
    }
    sockopt::set_ip_multicast_loop(&socket, true)?;
    let socket = UdpSocket::from(socket);
    socket.join_multicast_v4(&group, &by)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(dgram: &mut Dgram) -> Option<Vec<u8>> {
        let mut buffer = [0xff; 2000];
        let count = dgram.receive(&mut buffer)?;
        Some(buffer[HEADER_BYTES..count].to_vec())
    }

    #[test]
    fn frames_go_between_names_and_the_names_go_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| DgramAddress::Unix(folder.path().join(name));
        let (left, right) = (path("left"), path("right"));
        let mut a = Dgram::open(Some(&left), Some(&right)).unwrap();
        assert!(a.send(b"nobody is there"));
        // The name of one that died.
        drop(UnixDatagram::bind(folder.path().join("right")).unwrap());
        let mut b = Dgram::open(Some(&right), Some(&left)).unwrap();
        assert!(a.send(b"one") && a.send(b"two") && b.send(b"back"));
        assert_eq!(take(&mut b).unwrap(), b"one");
        assert_eq!(take(&mut b).unwrap(), b"two");
        assert_eq!(take(&mut b), None);
        assert_eq!(take(&mut a).unwrap(), b"back");
        assert!(Dgram::open(Some(&right), Some(&left)).is_err(), "one that lives");
        drop((a, b));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
