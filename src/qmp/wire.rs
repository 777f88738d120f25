//! The connection of one client: bytes, and descriptors beside them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown, recvmsg, send,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Descriptors that one message may bring; the kernel closes more than these.
const FDS_MAX: usize = 16;
const RECEIVE_BYTES: usize = 16 << 10;
/// Between two looks at whether a client is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A connected stream socket. Descriptors come by unix sockets only; a tcp one never has any.
///
/// Readiness and `recvmsg`, not a ring: a ring cannot receive descriptors on stream sockets, and
/// waiting for readiness can be given up at any time without losing what came.
pub(crate) struct Wire {
    /// Of either family: only its readiness is used.
    socket: UnixStream,
}

/// Some bytes in the order sent, and the descriptors that came with one of them.
pub(crate) struct Received {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Wire {
    /// Must be called on the control plane's runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Wire> {
        let socket = net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Wire { socket: UnixStream::from_std(socket)? })
    }

    /// Waits for bytes. None in it: the client has nothing more to say.
    pub(crate) async fn receive(&self) -> io::Result<Received> {
        self.socket.async_io(Interest::READABLE, || receive_now(&self.socket)).await
    }

    /// Waits until the client can neither send nor receive any more; one that only said that it
    /// sends nothing more is still there. Leaves what came where it is.
    pub(crate) async fn gone(&self) {
        // Looked at now and then: tokio tells of a client that hung up and of one that only sends
        // nothing more in the same words.
        while !self.is_hung_up() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
    }

    /// Writes some of `bytes` and says how many.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let send_now = || Ok(send(&self.socket, bytes, flags)?);
        self.socket.async_io(Interest::WRITABLE, send_now).await
    }

    /// Ends both directions; whoever waits is woken.
    pub(crate) fn hang_up(&self) {
        // The client may have been faster.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

fn receive_now(socket: &UnixStream) -> io::Result<Received> {
    let mut bytes = vec![0; RECEIVE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?.bytes;
    bytes.truncate(length);
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Received { bytes, fds })
}
