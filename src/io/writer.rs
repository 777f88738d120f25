//! Sockets, pipes, and files from their position on, written in order. io_uring does not keep the
//! order of several sends on one stream and reports no error, so exactly one vectored send is in
//! flight, its length is checked, and what a short write left is sent again before anything else.
//!
//! Unsafe because operations name memory; each one is finished or cancelled before its memory is
//! let go.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::connection::is_socket;
use super::error::{Error, Result};
use super::gather::{Gather, PIECES_MAX};
use super::limit::Limit;
use super::ring::{Ring, Token};

/// Writes one stream in order.
pub struct SocketWriter {
    /// `None` once closed.
    fd: Option<Arc<OwnedFd>>,
    socket: bool,
    limit: Arc<Limit>,
    flight: Option<Flight>,
    spare: Vec<Gather>,
    sent: u64,
    /// Where in a file the first byte goes; `None` for what has no positions.
    start: Option<u64>,
}

/// The send the kernel works on. Boxed parts stay where they are while `Flight` moves.
struct Flight {
    token: Token,
    gather: Gather,
    message: Box<Message>,
    /// Bytes that have not gone out, and how many of them the kernel works on.
    bytes: usize,
    portion: usize,
    since: Instant,
}

struct Message {
    header: libc::msghdr,
    iovecs: Vec<libc::iovec>,
    /// Pieces before this one have gone out.
    first: usize,
    /// The pieces of a portion that the limit allows, where that is less than all.
    portion: Vec<libc::iovec>,
}

// SAFETY: the addresses are only handed to the kernel and live as long as the flight that owns
// them.
unsafe impl Send for Message {}

impl SocketWriter {
    pub fn new(fd: Arc<OwnedFd>, limit: Arc<Limit>) -> Self {
        let socket = is_socket(fd.as_raw_fd());
        let start = if socket { None } else { position(fd.as_raw_fd()) };
        let spare = vec![Gather::default(), Gather::default()];
        Self { fd: Some(fd), socket, limit, flight: None, spare, sent: 0, start }
    }

    /// An empty gather: the pool has two, one being filled while the other is in flight. Waits for
    /// the one in flight when there is no other.
    pub fn gather(&mut self, ring: &mut Ring) -> Result<Gather> {
        if self.spare.is_empty() {
            self.finish(ring)?;
        }
        Ok(self.spare.pop().unwrap_or_default())
    }

    /// Lets go of the stream: what is sent afterwards fails.
    pub fn close(&mut self, ring: &mut Ring) {
        self.abandon(ring);
        self.fd = None;
    }

    fn raw(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd())
    }

    /// Bytes the kernel has taken.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Starts sending `gather` once the one before is out and the limit allows. An empty one comes
    /// back at once.
    pub fn send(&mut self, ring: &mut Ring, gather: Gather) -> Result<()> {
        self.finish(ring)?;
        if gather.is_empty() {
            self.spare.push(gather);
            return Ok(());
        }
        assert!(gather.pieces() <= PIECES_MAX, "a send of {} pieces", gather.pieces());
        let bytes = gather.bytes();
        let portion = self.allowed(ring, bytes)?;
        self.start(ring, gather, portion)
    }

    /// Hands `gather` to the kernel, the first `portion` bytes of it at once.
    fn start(&mut self, ring: &mut Ring, mut gather: Gather, portion: usize) -> Result<()> {
        let bytes = gather.bytes();
        // SAFETY: all zeros is a valid msghdr: no name, no control data, no pieces.
        let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
        let (iovecs, pieces) = (Vec::new(), Vec::new());
        let mut message = Box::new(Message { header, iovecs, first: 0, portion: pieces });
        gather.iovecs(&mut message.iovecs);
        let token = self.submit(ring, &mut message, portion, bytes)?;
        self.flight =
            Some(Flight { token, gather, message, bytes, portion, since: Instant::now() });
        Ok(())
    }

    /// Waits until the limit lets some of `bytes` bytes leave; how many.
    fn allowed(&self, ring: &mut Ring, bytes: usize) -> Result<usize> {
        loop {
            match self.limit.take(Instant::now(), bytes) {
                Ok(portion) => return Ok(portion),
                Err(when) => ring.sleep_until(when)?,
            }
        }
    }

    /// Waits until everything handed to [`Self::send`] has been taken by the kernel.
    pub fn finish(&mut self, ring: &mut Ring) -> Result<()> {
        while let Some(mut flight) = self.flight.take() {
            let result = ring.wait(flight.token)?;
            let done = match result {
                r if r == -libc::EINTR || r == -libc::EAGAIN => 0,
                r if r == -libc::EPIPE && self.timed_out(flight.since) => {
                    return Err(Error::from_result(-libc::ETIMEDOUT));
                }
                r if r < 0 => return Err(Error::from_result(r)),
                0 => return Err(Error::Closed),
                r => r as usize,
            };
            self.sent += done as u64;
            self.move_position();
            flight.bytes -= done;
            flight.portion -= done;
            if flight.bytes == 0 {
                flight.gather.clear();
                self.spare.push(flight.gather);
            } else {
                flight.message.skip(done);
                if flight.portion == 0 {
                    flight.portion = self.allowed(ring, flight.bytes)?;
                }
                let (message, portion) = (&mut flight.message, flight.portion);
                flight.token = self.submit(ring, message, portion, flight.bytes)?;
                self.flight = Some(flight);
            }
        }
        Ok(())
    }

    /// Sends `bytes` and waits until the kernel has them. They are few, and what stands between
    /// pages: the limit counts them, but does not hold them back.
    pub fn write_all(&mut self, ring: &mut Ring, bytes: &[u8]) -> Result<()> {
        let mut gather = self.gather(ring)?;
        gather.own().extend_from_slice(bytes);
        self.finish(ring)?;
        if gather.is_empty() {
            self.spare.push(gather);
            return Ok(());
        }
        self.limit.spend(Instant::now(), bytes.len());
        self.start(ring, gather, bytes.len())?;
        self.finish(ring)
    }

    /// Bytes the peer's kernel has not acknowledged yet; 0 where nobody can tell.
    pub fn unacknowledged(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int.
        let result = unsafe { libc::ioctl(self.raw(), libc::TIOCOUTQ, &mut bytes) };
        if result == 0 { bytes.max(0) as usize } else { 0 }
    }

    /// Submits `portion` of the `bytes` bytes left.
    fn submit(
        &self,
        ring: &mut Ring,
        message: &mut Message,
        portion: usize,
        bytes: usize,
    ) -> Result<Token> {
        let fd = types::Fd(self.raw());
        let left = if portion < bytes {
            message.cut(portion);
            &mut message.portion[..]
        } else {
            &mut message.iovecs[message.first..]
        };
        let entry = if self.socket {
            message.header.msg_iov = left.as_mut_ptr();
            message.header.msg_iovlen = left.len() as _;
            let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
            opcode::SendMsg::new(fd, &message.header).flags(flags).build()
        } else {
            // Files are written by position: with the file's own (-1) the kernel leaves it where it
            // was when a write ends short, and what follows would go over what is there. Pipes have
            // none.
            let at = self.start.map_or(u64::MAX, |start| start + self.sent);
            opcode::Writev::new(fd, left.as_ptr(), left.len() as u32).offset(at).build()
        };
        // SAFETY: message and gather stay in `self.flight`, boxed, until the token was waited for
        // or cancelled.
        unsafe { ring.submit(entry) }
    }

    /// Whether a pipe that broke is a TCP connection that timed out. The kernel gives that reason
    /// once, and a send that had moved a part before ends as a short one and takes it along.
    fn timed_out(&self, since: Instant) -> bool {
        let mut ms: libc::c_uint = 0;
        let mut length = size_of_val(&ms) as libc::socklen_t;
        // SAFETY: both addresses are those of live variables of the sizes given.
        let result = unsafe {
            libc::getsockopt(
                self.raw(),
                libc::IPPROTO_TCP,
                libc::TCP_USER_TIMEOUT,
                (&raw mut ms).cast(),
                &raw mut length,
            )
        };
        result == 0 && ms > 0 && since.elapsed() >= Duration::from_millis(u64::from(ms) / 2)
    }

    /// A file's own position follows what was written, as with write(2): whoever shares the
    /// descriptor goes on there.
    fn move_position(&self) {
        if let Some(at) = self.start.and_then(|start| libc::off_t::try_from(start + self.sent).ok())
        {
            // SAFETY: lseek has no memory arguments.
            unsafe { libc::lseek(self.raw(), at, libc::SEEK_SET) };
        }
    }

    /// Takes back what is in flight. Must be called before the writer is dropped when `send` was
    /// not finished.
    pub fn abandon(&mut self, ring: &mut Ring) {
        if let Some(flight) = self.flight.take() {
            ring.cancel(flight.token);
        }
    }
}

impl Drop for SocketWriter {
    fn drop(&mut self) {
        // The ring is gone or going, and only it could wait. The memory must outlive the kernel's
        // use of it.
        if let Some(flight) = self.flight.take() {
            std::mem::forget(flight);
        }
    }
}

impl Message {
    /// Puts the first `bytes` bytes of what is left into `portion`.
    fn cut(&mut self, mut bytes: usize) {
        self.portion.clear();
        for piece in &self.iovecs[self.first..] {
            let iov_len = bytes.min(piece.iov_len);
            self.portion.push(libc::iovec { iov_len, ..*piece });
            bytes -= iov_len;
            if bytes == 0 {
                break;
            }
        }
    }

    /// Leaves out the first `bytes` bytes: a short write has sent them.
    fn skip(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let piece = &mut self.iovecs[self.first];
            let step = bytes.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(step);
            piece.iov_len -= step;
            bytes -= step;
            if piece.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

/// The position of a file; `None` of a pipe.
fn position(fd: RawFd) -> Option<u64> {
    // SAFETY: lseek has no memory arguments.
    u64::try_from(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Waker;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Arc<OwnedFd>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Arc::new(ours.into()), theirs)
    }

    fn ring() -> Ring {
        Ring::new(Waker::new()).unwrap()
    }

    #[test]
    fn batches_larger_than_the_socket_buffer_arrive_whole_and_in_order() {
        let (fd, mut peer) = pair();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let memory: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 9) as u8).collect();
        let ram = crate::memory::for_tests(3 << 20);
        ram.write(0, &memory).unwrap();
        let mut ring = ring();
        let mut writer = SocketWriter::new(fd, Arc::new(Limit::new(0)));
        let mut expected = Vec::new();
        for round in 0..4u8 {
            let mut gather = writer.gather(&mut ring).unwrap();
            gather.own().extend_from_slice(&[round; 5]);
            gather.memory(ram.main(), 0..3 << 20);
            expected.extend_from_slice(&[round; 5]);
            expected.extend_from_slice(&memory);
            writer.send(&mut ring, gather).unwrap();
        }
        writer.finish(&mut ring).unwrap();
        assert_eq!(writer.sent(), expected.len() as u64);
        drop(writer);
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn cancel_ends_a_send_that_nobody_reads() {
        let (fd, _peer) = pair();
        let waker = Waker::new();
        let mut ring = Ring::new(waker.clone()).unwrap();
        let mut writer = SocketWriter::new(fd, Arc::new(Limit::new(0)));
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            waker.cancel();
        });
        let result = writer.write_all(&mut ring, &vec![1; 16 << 20]);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        canceller.join().unwrap();
    }

    #[test]
    fn a_limit_lets_a_send_out_in_portions_that_are_whole_and_in_order() {
        let (fd, mut peer) = pair();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let memory: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
        let ram = crate::memory::for_tests(1 << 20);
        ram.write(0, &memory).unwrap();
        let mut ring = ring();
        // A portion is 50,000 bytes.
        let mut writer = SocketWriter::new(fd, Arc::new(Limit::new(1_000_000)));
        let mut expected = Vec::new();
        let started = Instant::now();
        for send in 0..3 {
            let mut gather = writer.gather(&mut ring).unwrap();
            for part in 0..2 {
                let start = send * 100_000 + part * 50_000;
                gather.own().extend_from_slice(b"head");
                gather.memory(ram.main(), start..start + 50_000);
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&memory[start as usize..start as usize + 50_000]);
            }
            writer.send(&mut ring, gather).unwrap();
        }
        writer.finish(&mut ring).unwrap();
        // All but what may be caught up and the last portion have been waited for.
        assert!(started.elapsed() >= Duration::from_millis(195), "{:?}", started.elapsed());
        drop(writer);
        assert!(reader.join().unwrap() == expected);
    }
}
