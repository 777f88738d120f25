//! A frame in each datagram, between sockets of the file system or of UDP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind,
    recv, send, sendto, shutdown, socket_with, sockopt,
};
use rustix::time::Timespec;

use super::descriptor;
use crate::config::DgramAddress;
use crate::devices::HEADER_BYTES;
use crate::io::socket_file::{SocketFile, address, bind_at};

pub(super) struct Dgram {
    #[expect(dead_code, reason = "removes the name of ours, before the socket goes")]
    name: Option<SocketFile>,
    socket: Arc<OwnedFd>,
    remote: Remote,
    /// Its network's.
    id: String,
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

impl Dgram {
    /// May take as long as names do.
    pub(super) fn open(
        id: &str,
        local: Option<&DgramAddress>,
        remote: Option<&DgramAddress>,
    ) -> io::Result<Dgram> {
        let mut name = None;
        let (socket, remote): (OwnedFd, Remote) = match (local, remote) {
            (Some(DgramAddress::Fd(number)), None) => {
                (descriptor::datagrams(*number)?, Remote::Peer)
            }
            (Some(DgramAddress::Unix(path)), remote) => {
                let (file, socket) = bind_at(path, SocketType::DGRAM)?;
                name = Some(file);
                let remote = match remote {
                    Some(DgramAddress::Unix(path)) => Remote::Unix(address(path)?),
                    _ => Remote::Nobody,
                };
                (socket, remote)
            }
            (local, Some(DgramAddress::Udp { host, port })) => {
                let first = (host.as_str(), *port).to_socket_addrs()?.next();
                match (local, first) {
                    (local, Some(SocketAddr::V4(to))) if to.ip().is_multicast() => {
                        (join(local, *to.ip(), to.into())?, Remote::Udp(to.into()))
                    }
                    (_, Some(SocketAddr::V6(to))) if to.ip().is_multicast() => {
                        let what = "groups of IPv6 are not built; write one of IPv4";
                        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                    }
                    (Some(DgramAddress::Udp { host: own, port: at }), _) => {
                        let (own, to) = ends((own, *at), (host, *port))?;
                        (UdpSocket::bind(own)?.into(), Remote::Udp(to))
                    }
                    _ => return Err(io::ErrorKind::InvalidInput.into()),
                }
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Dgram { name, socket: Arc::new(socket), remote, id: id.to_owned(), dead: false })
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
        match recv(&self.socket, frame, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            // Longer than any frame, and lost: a part of it is none.
            Ok((count, bytes)) if bytes > count => None,
            Ok((0, _)) if self.has_ended() => {
                self.dead = true;
                say!(
                    "godwit: warning: network {}: its peer has gone; its card is cut off",
                    self.id
                );
                None
            }
            Ok((count, _)) => Some(HEADER_BYTES + count),
            Err(Errno::BADF | Errno::NOTSOCK | Errno::NOTCONN) => {
                self.dead = true;
                None
            }
            // Nothing now; or a port unreachable, of something sent before.
            Err(_) => None,
        }
    }

    /// Whether an empty datagram is none: nothing more can come.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
            && fds[0].revents().contains(PollFlags::RDHUP)
    }

    /// For good. A socket that came open is open elsewhere, too: its peer is told.
    pub(super) fn close(self) {
        if let Remote::Peer = self.remote {
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

/// Addresses of both ends, of one family: what the socket is bound to, and what it sends to.
fn ends(local: (&str, u16), remote: (&str, u16)) -> io::Result<(SocketAddr, SocketAddr)> {
    let own: Vec<SocketAddr> = match local {
        ("", port) => {
            vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
        }
        local => local.to_socket_addrs()?.collect(),
    };
    let like =
        |to: SocketAddr| own.iter().find(|own| own.is_ipv4() == to.is_ipv4()).map(|own| (*own, to));
    remote.to_socket_addrs()?.find_map(like).ok_or_else(|| {
        let what = format!("{} and {} have no addresses of one family", local.0, remote.0);
        io::Error::new(io::ErrorKind::AddrNotAvailable, what)
    })
}

/// Several on one host may be members of a group, at its port.
fn join(local: Option<&DgramAddress>, group: Ipv4Addr, to: SocketAddr) -> io::Result<OwnedFd> {
    let by = match local {
        Some(DgramAddress::Udp { host, .. }) => match ends((host, 0), (&group.to_string(), 0))?.0 {
            SocketAddr::V4(address) => *address.ip(),
            SocketAddr::V6(_) => return Err(io::ErrorKind::InvalidInput.into()),
        },
        Some(DgramAddress::Fd(number)) => {
            let socket = UdpSocket::from(descriptor::udp4(*number)?);
            // Where it sends to, it is a member, too; if not by whoever made it, by us.
            match socket.join_multicast_v4(&group, &sockopt::ip_multicast_if(&socket)?) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error),
                _ => return Ok(socket.into()),
            }
        }
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
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::FRAME_BYTES_MAX;
    use rustix::net::socketpair;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    fn take(dgram: &mut Dgram) -> Option<Vec<u8>> {
        let mut buffer = vec![0xff; FRAME_BYTES_MAX];
        let count = dgram.receive(&mut buffer)?;
        Some(buffer[HEADER_BYTES..count].to_vec())
    }

    #[test]
    fn frames_go_between_names_and_the_names_go_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| DgramAddress::Unix(folder.path().join(name));
        let (left, right) = (path("left"), path("right"));
        let mut a = Dgram::open("n", Some(&left), Some(&right)).unwrap();
        assert!(a.send(b"nobody is there"));
        // The name of one that died.
        drop(UnixDatagram::bind(folder.path().join("right")).unwrap());
        let mut b = Dgram::open("n", Some(&right), Some(&left)).unwrap();
        assert!(a.send(b"one") && a.send(b"two") && b.send(b"back"));
        assert_eq!(take(&mut b).unwrap(), b"one");
        assert_eq!(take(&mut b).unwrap(), b"two");
        assert_eq!(take(&mut b), None);
        assert_eq!(take(&mut a).unwrap(), b"back");
        assert!(Dgram::open("n", Some(&right), Some(&left)).is_err(), "one that lives");
        drop((a, b));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "precious").unwrap();
        let refused =
            Dgram::open("n", Some(&DgramAddress::Unix(path.clone())), None).err().unwrap();
        assert!(refused.to_string().contains("that is no socket"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    fn pair(kind: SocketType) -> (Dgram, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let dgram = Dgram::open("n", Some(&DgramAddress::Fd(ours.as_raw_fd())), None).unwrap();
        (dgram, theirs)
    }

    #[test]
    fn an_empty_datagram_is_a_frame_and_no_end() {
        let (mut dgram, peer) = pair(SocketType::DGRAM);
        for datagram in [&b""[..], b"one", b"", b"two"] {
            send(&peer, datagram, SendFlags::empty()).unwrap();
            assert_eq!(take(&mut dgram).unwrap(), datagram);
        }
        assert_eq!(take(&mut dgram), None);
        drop(peer);
        assert_eq!(take(&mut dgram), None);
        assert!(dgram.wait().is_some());
    }

    #[test]
    fn a_datagram_longer_than_any_frame_is_lost_as_a_whole() {
        let (mut dgram, peer) = pair(SocketType::DGRAM);
        let longest = vec![7; FRAME_BYTES_MAX - HEADER_BYTES];
        for frame in [&[&longest[..], &[7]].concat(), &longest] {
            send(&peer, frame, SendFlags::empty()).unwrap();
        }
        assert_eq!(take(&mut dgram), None);
        assert_eq!(take(&mut dgram).unwrap(), longest);
    }

    #[test]
    fn a_peer_that_reads_nothing_makes_the_card_wait() {
        let (dgram, peer) = pair(SocketType::DGRAM);
        let mut sent = 0;
        while dgram.send(&[9; 1000]) {
            sent += 1;
            assert!(sent < 10_000);
        }
        recv(&peer, &mut [0; 1000][..], RecvFlags::DONTWAIT).unwrap();
        assert!(dgram.send(b"again"));
    }

    #[test]
    fn a_peer_in_sequence_that_goes_is_waited_for_no_more() {
        let (mut dgram, peer) = pair(SocketType::SEQPACKET);
        for datagram in [&b""[..], b"one"] {
            send(&peer, datagram, SendFlags::empty()).unwrap();
            assert_eq!(take(&mut dgram).unwrap(), datagram);
        }
        assert!(dgram.wait().is_some());
        drop(peer);
        assert_eq!(take(&mut dgram), None);
        assert!(dgram.wait().is_none());
    }

    fn udp(host: &str, port: u16) -> DgramAddress {
        DgramAddress::Udp { host: host.into(), port }
    }

    #[test]
    fn both_ends_of_udp_are_of_one_family() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = peer.local_addr().unwrap().port();
        for local in ["127.0.0.1", ""] {
            let dgram =
                Dgram::open("n", Some(&udp(local, 0)), Some(&udp("localhost", port))).unwrap();
            let Remote::Udp(to) = dgram.remote else { panic!() };
            assert!(local.is_empty() || to.is_ipv4());
        }
        let refused = Dgram::open("n", Some(&udp("127.0.0.1", 0)), Some(&udp("::1", port)));
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn a_descriptor_is_made_a_member_of_its_group() {
        let lo = Ipv4Addr::LOCALHOST;
        let group = "230.17.3.1".parse().unwrap();
        for has_joined in [false, true] {
            let ours = UdpSocket::bind((group, 0)).unwrap();
            sockopt::set_ip_multicast_if(&ours, &lo).unwrap();
            if has_joined {
                ours.join_multicast_v4(&group, &lo).unwrap();
            }
            let to = udp("230.17.3.1", ours.local_addr().unwrap().port());
            let local = DgramAddress::Fd(ours.as_raw_fd());
            let mut dgram = Dgram::open("n", Some(&local), Some(&to)).unwrap();
            assert!(dgram.send(b"to all"));
            let mut fds = [PollFd::new(&ours, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).unwrap();
            assert_eq!(take(&mut dgram).unwrap(), b"to all");
        }
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let local = DgramAddress::Fd(ours.as_raw_fd());
        let refused = Dgram::open("n", Some(&local), Some(&udp("230.0.0.1", 9))).err().unwrap();
        assert!(refused.to_string().contains("no socket of UDP"), "{refused}");
        let refused = Dgram::open("n", Some(&udp("::", 9)), Some(&udp("ff02::1", 9)));
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_descriptor_that_is_closed_is_closed_for_its_peer() {
        for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            Dgram::open("n", Some(&DgramAddress::Fd(ours.as_raw_fd())), None).unwrap().close();
            let sent = send(&theirs, b"lost", SendFlags::NOSIGNAL);
            assert_eq!(sent, Err(Errno::PIPE));
        }
    }
}
