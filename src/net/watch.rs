//! The thread that makes a network's connections, one after the other, and sees them end.
//!
//! It holds nothing of the network while it waits, so that one that was taken away is gone, whatever
//! its peer does; a name that does not resolve keeps the thread, and nothing else.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::Builder;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, sockopt};
use rustix::time::Timespec;

use super::bell::Bell;
use super::netdev::Netdev;
use super::{Event, Peer, Tell, descriptor};
use crate::chardev::{connect, describe, listen};
use crate::config::SocketAddress;
use crate::devices::Network;
use crate::io::socket_file::SocketFile;

/// Where connections come from.
pub(super) enum Watch {
    Listener {
        socket: OwnedFd,
        address: SocketAddress,
    },
    Address {
        address: SocketAddress,
        reconnect: Option<Duration>,
    },
    /// One that is there, and no other.
    Socket(OwnedFd),
    /// One to a program of ours.
    Program(OwnedFd),
}

impl Watch {
    /// With the name, which goes when it is dropped.
    pub(super) fn listen(address: &SocketAddress) -> io::Result<(Watch, Option<SocketFile>)> {
        let (file, socket) = listen(address)?;
        if let SocketAddress::Fd(number) = address {
            descriptor::check_listens(*number, &socket)?;
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok((Watch::Listener { socket, address: address.clone() }, file))
    }

    pub(super) fn connect(address: &SocketAddress, reconnect_ms: u64) -> Watch {
        let reconnect = (reconnect_ms > 0).then(|| Duration::from_millis(reconnect_ms));
        Watch::Address { address: address.clone(), reconnect }
    }

    /// Starts the thread, which ends when the network does.
    pub(super) fn start(self, of: Weak<Netdev>, bell: Arc<Bell>, tell: Tell) -> io::Result<()> {
        Builder::new().name("net-watch".into()).spawn(move || self.run(&of, &bell, &tell))?;
        Ok(())
    }

    fn run(self, of: &Weak<Netdev>, bell: &Bell, tell: &Tell) {
        match self {
            Watch::Socket(socket) => serve(of, bell, tell, socket, None),
            // QEMU's own network for users has no connection that could be told of.
            Watch::Program(socket) => {
                serve(of, bell, &(Arc::new(|_| {}) as Tell), socket, None);
                if let Some(netdev) = here(of) {
                    // Nobody else would hear that it has ended.
                    netdev.end_program();
                    say!(
                        "godwit: warning: network {}: passt has ended; its card is cut off",
                        netdev.id()
                    );
                }
            }
            Watch::Listener { socket, address } => {
                while let Some(netdev) = here(of) {
                    netdev.set_info("listening".into());
                    drop(netdev);
                    wait(bell, Some((&socket, PollFlags::IN)), None);
                    if here(of).is_none() {
                        break;
                    }
                    match accept(&socket, &address) {
                        Ok(client) => serve(of, bell, tell, client, Some(&address)),
                        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => {}
                        // Too many open files, as a rule.
                        Err(errno) => {
                            tracing::warn!("{}: accept: {errno}", describe(&address));
                            wait(bell, None, Some(PAUSE));
                        }
                    }
                }
            }
            Watch::Address { address, reconnect } => loop {
                if here(of).is_none() {
                    return;
                }
                match connect(&address) {
                    Ok(socket) => serve(of, bell, tell, socket, Some(&address)),
                    Err(error) => {
                        if let Some(netdev) = here(of) {
                            let (id, to) = (netdev.id(), describe(&address));
                            match reconnect {
                                Some(_) => tracing::debug!("network {id}: {to}: {error}"),
                                None => say!(
                                    "godwit: warning: network {id}: {to}: {error}; its card is cut off"
                                ),
                            }
                            netdev.set_info(format!("error: {error}"));
                        }
                    }
                }
                let Some(pause) = reconnect else { return };
                wait(bell, None, Some(pause));
            },
        }
    }
}

const PAUSE: Duration = Duration::from_millis(100);

/// The network, unless it was taken away.
fn here(of: &Weak<Netdev>) -> Option<Arc<Netdev>> {
    of.upgrade().filter(|netdev| !netdev.is_gone())
}

/// One connection, from its first byte to its last.
fn serve(
    of: &Weak<Netdev>,
    bell: &Bell,
    tell: &Tell,
    socket: OwnedFd,
    address: Option<&SocketAddress>,
) {
    let socket = Arc::new(socket);
    let Some(netdev) = here(of) else { return };
    let id = netdev.id().to_owned();
    netdev.connected(socket.clone());
    netdev.set_info(address.map_or("fd".into(), describe));
    drop(netdev);
    tell(Event::Connected { id: id.clone(), peer: peer(&socket) });
    loop {
        let Some(netdev) = here(of) else { return };
        let reads = !netdev.has_card();
        drop(netdev);
        let wanted = PollFlags::RDHUP | if reads { PollFlags::IN } else { PollFlags::empty() };
        let seen = wait(bell, Some((&*socket, wanted)), None);
        let Some(netdev) = here(of) else { return };
        if seen.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            netdev.disconnected();
            netdev.set_info(String::new());
            drop(netdev);
            tell(Event::Disconnected { id });
            return;
        }
        if seen.contains(PollFlags::IN) {
            netdev.discard();
        }
    }
}

/// The next client, its socket as ours would be had we called.
fn accept(socket: &OwnedFd, address: &SocketAddress) -> rustix::io::Result<OwnedFd> {
    let client = accept_with(socket, SocketFlags::CLOEXEC)?;
    if let SocketAddress::Tcp { nodelay: true, .. } = address {
        sockopt::set_tcp_nodelay(&client, true)?;
    }
    Ok(client)
}

/// Who is there, as far as the kernel knows a name.
fn peer(socket: &OwnedFd) -> Peer {
    let Ok(Some(peer)) = rustix::net::getpeername(socket) else {
        return Peer::Unix(String::new());
    };
    match SocketAddr::try_from(peer.clone()) {
        Ok(address) => Peer::Inet(address),
        Err(_) => {
            let unix = SocketAddrUnix::try_from(peer).ok();
            let path = unix.as_ref().and_then(SocketAddrUnix::path_bytes);
            let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
            Peer::Unix(path.unwrap_or_default())
        }
    }
}

/// Waits for the bell, or for what is wanted of a descriptor; says what it has.
fn wait(bell: &Bell, of: Option<(&OwnedFd, PollFlags)>, time: Option<Duration>) -> PollFlags {
    let time = time.map(|time| Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
    fds.extend(of.map(|(fd, wanted)| PollFd::from_borrowed_fd(fd.as_fd(), wanted)));
    // A signal is a turn with nothing to do.
    let _ = poll(&mut fds, time.as_ref());
    bell.heard();
    fds.get(1).map_or(PollFlags::empty(), PollFd::revents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IpFamily;

    #[test]
    fn frames_to_a_client_of_tcp_are_not_held_back() {
        let address = SocketAddress::Tcp {
            host: "127.0.0.1".into(),
            port: 0,
            port_to: None,
            family: IpFamily::Any,
            nodelay: true,
        };
        let (watch, _) = Watch::listen(&address).unwrap();
        let Watch::Listener { socket, .. } = watch else { panic!() };
        let at = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        let _client = std::net::TcpStream::connect(at).unwrap();
        let client = accept(&socket, &address).unwrap();
        assert!(sockopt::tcp_nodelay(&client).unwrap());
    }
}
