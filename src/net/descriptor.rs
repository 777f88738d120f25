//! Sockets that came open, by number: each is looked at before it is used as what it may not be.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::chardev::inherited;

/// A connection, which carries bytes.
pub(super) fn stream(number: i32) -> io::Result<OwnedFd> {
    match open(number)? {
        (socket, SocketType::STREAM) if !listens(&socket) => Ok(socket),
        (_, SocketType::STREAM) => Err(unfit(number, "listens, and is no connection")),
        _ => Err(unfit(number, "is a socket of datagrams, not of a connection")),
    }
}

/// One whose frames are whole.
pub(super) fn datagrams(number: i32) -> io::Result<OwnedFd> {
    match open(number)? {
        (socket, SocketType::DGRAM | SocketType::SEQPACKET) if !listens(&socket) => Ok(socket),
        (_, SocketType::SEQPACKET) => Err(unfit(number, "listens, and has no peer")),
        _ => Err(unfit(number, "is a socket of a connection, not of datagrams")),
    }
}

/// One of datagrams that can be a member of groups.
pub(super) fn udp4(number: i32) -> io::Result<OwnedFd> {
    let socket = datagrams(number)?;
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::INET) => Ok(socket),
        _ => Err(unfit(number, "is no socket of UDP over IPv4")),
    }
}

/// Whether it is one of [`datagrams`].
pub(super) fn has_datagrams(number: i32) -> io::Result<bool> {
    Ok(open(number)?.1 != SocketType::STREAM)
}

/// Refuses a socket that does not listen.
pub(super) fn check_listens(number: i32, socket: &OwnedFd) -> io::Result<()> {
    if listens(socket) { Ok(()) } else { Err(unfit(number, "is no socket that listens")) }
}

fn listens(socket: &OwnedFd) -> bool {
    sockopt::socket_acceptconn(socket).unwrap_or(false)
}

fn open(number: i32) -> io::Result<(OwnedFd, SocketType)> {
    let fd = inherited(number)?;
    let kind = sockopt::socket_type(&fd).map_err(|_| unfit(number, "is no socket"))?;
    Ok((fd, kind))
}

fn unfit(number: i32, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn each_kind_is_taken_for_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        let datagrams_only = UnixDatagram::unbound().unwrap();
        let listener: OwnedFd = UnixListener::bind(folder.path().join("s")).unwrap().into();
        let file = tempfile::tempfile().unwrap();
        let (c, d, f) = (connected.as_raw_fd(), datagrams_only.as_raw_fd(), file.as_raw_fd());
        assert!(stream(c).is_ok() && datagrams(d).is_ok());
        assert!(!has_datagrams(c).unwrap() && has_datagrams(d).unwrap());
        assert!(check_listens(0, &listener).is_ok());
        for (refusal, words) in [
            (stream(d).unwrap_err(), "not of a connection"),
            (datagrams(c).unwrap_err(), "not of datagrams"),
            (stream(f).unwrap_err(), "is no socket"),
            (stream(listener.as_raw_fd()).unwrap_err(), "listens, and is no connection"),
            (udp4(d).unwrap_err(), "is no socket of UDP over IPv4"),
            (check_listens(7, &connected.into()).unwrap_err(), "descriptor 7 is no socket that"),
        ] {
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
    }
}
