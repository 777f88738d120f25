//! Streams and files, written. `io_uring` does not keep the order of several writes on one stream
//! and reports no error, so exactly one vectored write is in flight there, whatever was queued
//! behind it; a file takes writes at positions in any order, several in flight. Every completion is
//! looked at: a short write goes on where it ended, an error ends the writer.
//!
//! Unsafe because operations name memory; each one is finished or cancelled before its memory is
//! let go.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::error::{Error, Result};
use super::gather::{Gather, PIECES_MAX};
use super::limit::Limit;
use super::ring::{Ring, Token};
use super::socket::is_socket;

/// Writes in the ring at a time: less than the ring holds, for files of many small pieces.
const FLIGHTS_MAX: usize = 32;
/// "Where it stands", for what cannot be written at positions.
const NO_OFFSET: u64 = u64::MAX;

/// Writes one stream or file. `T` names a write in its failure.
///
/// After a failure nothing is in flight, and the writer is of no more use.
pub(crate) struct Writer<T = ()> {
    /// `None` once closed.
    fd: Option<Arc<OwnedFd>>,
    kind: Kind,
    limit: Arc<Limit>,
    writes: VecDeque<Write<T>>,
    /// Empty.
    spare: Vec<Gather>,
    sent: u64,
}

/// How what is written is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Socket,
    /// Pipes, terminals.
    Pipe,
    /// A file, one write after the other from this position on.
    File {
        start: u64,
    },
    /// A file, at positions in any order.
    Positioned,
}

/// A write that failed, with the caller's name for it.
#[derive(Debug)]
pub(crate) struct Failed<T> {
    pub what: T,
    pub error: Error,
}

impl From<Failed<()>> for Error {
    fn from(failed: Failed<()>) -> Self {
        failed.error
    }
}

/// What the kernel works on, or will. Boxed parts stay where they are while it moves.
struct Write<T> {
    what: T,
    gather: Gather,
    message: Box<Message>,
    /// Where in a file that is written at positions.
    offset: u64,
    /// Bytes that have not gone out, and how many of them the limit has let pass.
    bytes: usize,
    portion: usize,
    since: Instant,
    /// `None`: it waits for the one before it.
    token: Option<Token>,
}

struct Message {
    header: libc::msghdr,
    iovecs: Vec<libc::iovec>,
    /// Pieces before this one have gone out.
    first: usize,
    /// The pieces of a portion that the limit allows, where that is less than all.
    portion: Vec<libc::iovec>,
}

// SAFETY: the addresses are only handed to the kernel and live as long as the write that owns them.
unsafe impl Send for Message {}

impl<T: Copy> Writer<T> {
    /// Writes in order; what is a file from its position on.
    pub(crate) fn new(fd: Arc<OwnedFd>, limit: Arc<Limit>) -> Self {
        let kind = match position(fd.as_raw_fd()) {
            _ if is_socket(&fd) => Kind::Socket,
            Some(start) => Kind::File { start },
            None => Kind::Pipe,
        };
        Self::of_kind(fd, kind, limit)
    }

    /// Writes a file at positions.
    pub(crate) fn positioned(fd: Arc<OwnedFd>, limit: Arc<Limit>) -> Self {
        Self::of_kind(fd, Kind::Positioned, limit)
    }

    fn of_kind(fd: Arc<OwnedFd>, kind: Kind, limit: Arc<Limit>) -> Self {
        let (writes, spare) = (VecDeque::new(), Vec::new());
        Self { fd: Some(fd), kind, limit, writes, spare, sent: 0 }
    }

    /// An empty gather.
    pub(crate) fn gather(&mut self) -> Gather {
        self.spare.pop().unwrap_or_default()
    }

    /// Starts writing `gather`, in a file of positions at `offset`, or queues it behind others.
    pub(crate) fn write(
        &mut self,
        ring: &mut Ring,
        what: T,
        gather: Gather,
        offset: u64,
    ) -> std::result::Result<(), Failed<T>> {
        self.queue(what, gather, offset, 0);
        self.submit(ring)
    }

    /// Waits until the oldest write has got further; false if there is none.
    pub(crate) fn wait(&mut self, ring: &mut Ring) -> std::result::Result<bool, Failed<T>> {
        let Some(token) = self.writes.front_mut().and_then(|write| write.token.take()) else {
            return Ok(false);
        };
        let done = ring.wait(token).and_then(|result| self.look_at(ring, result));
        match done {
            Ok(done) => self.went_out(done),
            Err(error) => return Err(self.fail(ring, 0, error)),
        }
        self.submit(ring)?;
        Ok(true)
    }

    /// Waits until everything has been taken by the kernel.
    pub(crate) fn finish(&mut self, ring: &mut Ring) -> std::result::Result<(), Failed<T>> {
        while self.wait(ring)? {}
        Ok(())
    }

    /// Bytes the kernel has taken.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Takes back what is in flight. Must be called before the writer is dropped when it was not
    /// finished.
    pub(crate) fn abandon(&mut self, ring: &mut Ring) {
        // Each is kept until the kernel has let go of it.
        while let Some(write) = self.writes.front() {
            if let Some(token) = write.token {
                ring.cancel(token);
            }
            self.writes.pop_front();
        }
    }

    fn queue(&mut self, what: T, mut gather: Gather, offset: u64, portion: usize) {
        let bytes = gather.bytes();
        if bytes == 0 {
            gather.clear();
            return self.spare.push(gather);
        }
        // SAFETY: all zeros is a valid msghdr: no name, no control data, no pieces.
        let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
        let (iovecs, pieces) = (Vec::new(), Vec::new());
        let mut message = Box::new(Message { header, iovecs, first: 0, portion: pieces });
        gather.iovecs(&mut message.iovecs);
        assert!(message.iovecs.len() <= PIECES_MAX, "a write of {} pieces", message.iovecs.len());
        let (since, token) = (Instant::now(), None);
        self.writes.push_back(Write {
            what,
            gather,
            message,
            offset,
            bytes,
            portion,
            since,
            token,
        });
    }

    /// Puts into the ring what may be there.
    fn submit(&mut self, ring: &mut Ring) -> std::result::Result<(), Failed<T>> {
        let most = if self.kind == Kind::Positioned { FLIGHTS_MAX } else { 1 };
        for at in 0..self.writes.len().min(most) {
            if self.writes[at].token.is_none() {
                match self.start(ring, at) {
                    Ok(token) => self.writes[at].token = Some(token),
                    Err(error) => return Err(self.fail(ring, at, error)),
                }
            }
        }
        Ok(())
    }

    /// Hands a write to the kernel, as much of it as the limit allows.
    fn start(&mut self, ring: &mut Ring, at: usize) -> Result<Token> {
        let fd = types::Fd(self.raw());
        let write = &mut self.writes[at];
        while write.portion == 0 {
            match self.limit.take(Instant::now(), write.bytes) {
                Ok(portion) => (write.portion, write.since) = (portion, Instant::now()),
                Err(when) => ring.sleep_until(when)?,
            }
        }
        let message = &mut write.message;
        let left = if write.portion < write.bytes {
            message.cut(write.portion);
            &mut message.portion[..]
        } else {
            &mut message.iovecs[message.first..]
        };
        // Files are written by position: with the file's own (-1) the kernel leaves it where it was
        // when a write ends short, and what follows would go over what is there.
        let offset = match self.kind {
            Kind::Socket => {
                message.header.msg_iov = left.as_mut_ptr();
                message.header.msg_iovlen = left.len() as _;
                let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
                let entry = opcode::SendMsg::new(fd, &message.header).flags(flags).build();
                // SAFETY: message and gather stay in `self.writes`, boxed, until the token was
                // waited for or cancelled.
                return unsafe { ring.submit(entry) };
            }
            Kind::Pipe => NO_OFFSET,
            Kind::File { start } => start + self.sent,
            Kind::Positioned => write.offset,
        };
        let entry = opcode::Writev::new(fd, left.as_ptr(), left.len() as u32).offset(offset);
        // SAFETY: as above.
        unsafe { ring.submit(entry.build()) }
    }

    /// The bytes that went out with the oldest write.
    fn look_at(&mut self, ring: &mut Ring, result: i32) -> Result<usize> {
        match -result {
            libc::EINTR => Ok(0),
            libc::EAGAIN => {
                // A non-blocking descriptor is full.
                let token = ring.poll(self.raw(), libc::POLLOUT)?;
                ring.wait(token).map(|_| 0)
            }
            libc::EPIPE if self.timed_out(self.writes[0].since) => {
                Err(Error::from_result(-libc::ETIMEDOUT))
            }
            error if error > 0 => Err(Error::from_result(result)),
            0 if self.kind == Kind::Positioned => {
                Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into())
            }
            0 => Err(Error::Closed),
            _ => Ok(result as usize),
        }
    }

    fn went_out(&mut self, done: usize) {
        self.sent += done as u64;
        if let Kind::File { start } = self.kind
            && let Ok(at) = libc::off_t::try_from(start + self.sent)
        {
            // A file's own position follows what was written, as with write(2): whoever shares the
            // descriptor goes on there.
            // SAFETY: lseek has no memory arguments.
            unsafe { libc::lseek(self.raw(), at, libc::SEEK_SET) };
        }
        let write = &mut self.writes[0];
        write.bytes -= done;
        write.portion -= done;
        write.offset += done as u64;
        if write.bytes > 0 {
            write.message.skip(done);
        } else if let Some(Write { mut gather, .. }) = self.writes.pop_front() {
            gather.clear();
            self.spare.push(gather);
        }
    }

    /// Takes back what is in flight.
    fn fail(&mut self, ring: &mut Ring, at: usize, error: Error) -> Failed<T> {
        let what = self.writes[at].what;
        self.abandon(ring);
        Failed { what, error }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd())
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
}

impl Writer {
    /// Starts sending what is in `gather` once what was sent before is out and the limit allows, and
    /// leaves an empty one in its place.
    pub(crate) fn send(&mut self, ring: &mut Ring, gather: &mut Gather) -> Result<()> {
        self.finish(ring)?;
        let empty = self.gather();
        Ok(self.write(ring, (), std::mem::replace(gather, empty), 0)?)
    }

    /// Starts writing what is in `gather` at `offset` of a file of positions, and leaves an empty one
    /// in its place. Waits while there are as many writes as may be in flight.
    pub(crate) fn send_at(
        &mut self,
        ring: &mut Ring,
        gather: &mut Gather,
        offset: u64,
    ) -> Result<()> {
        while self.writes.len() >= FLIGHTS_MAX {
            self.wait(ring)?;
        }
        let empty = self.gather();
        Ok(self.write(ring, (), std::mem::replace(gather, empty), offset)?)
    }

    /// Where in a file the next byte goes; `None` where there are no positions.
    pub(crate) fn place(&self) -> Option<u64> {
        match self.kind {
            Kind::File { start } => Some(start + self.sent),
            _ => None,
        }
    }

    /// Goes on at `place` of a file, once everything has been taken. What is passed over is no part
    /// of what was sent.
    pub(crate) fn go_on_at(&mut self, ring: &mut Ring, place: u64) -> Result<()> {
        self.finish(ring)?;
        if let Kind::File { start } = &mut self.kind {
            *start = place - self.sent;
        }
        Ok(())
    }

    /// Sends `bytes` and waits until the kernel has them. They are few, and what stands between
    /// pages: the limit counts them, but does not hold them back.
    pub(crate) fn write_all(&mut self, ring: &mut Ring, bytes: &[u8]) -> Result<()> {
        self.finish(ring)?;
        let mut gather = self.gather();
        gather.own().extend_from_slice(bytes);
        self.limit.spend(Instant::now(), bytes.len());
        self.queue((), gather, 0, bytes.len());
        self.submit(ring)?;
        Ok(self.finish(ring)?)
    }

    /// Lets go of the stream: what is sent afterwards fails.
    pub(crate) fn close(&mut self, ring: &mut Ring) {
        self.abandon(ring);
        self.fd = None;
    }

    /// Bytes the peer's kernel has not acknowledged yet; 0 where nobody can tell.
    pub(crate) fn unacknowledged(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int.
        let result = unsafe { libc::ioctl(self.raw(), libc::TIOCOUTQ, &mut bytes) };
        if result == 0 { bytes.max(0) as usize } else { 0 }
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        // The ring is gone or going, and only it could wait. The memory must outlive the kernel's
        // use of it.
        self.writes.drain(..).filter(|write| write.token.is_some()).for_each(std::mem::forget);
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
pub(super) fn position(fd: RawFd) -> Option<u64> {
    // SAFETY: lseek has no memory arguments.
    u64::try_from(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }).ok()
}

#[cfg(test)]
mod tests;
