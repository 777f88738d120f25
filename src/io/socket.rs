//! Streams: sockets, pipes, and files written from their position on. One order per stream:
//! io_uring does not keep the order of several sends on one stream and reports no error, so exactly
//! one vectored send is in flight, its length is checked, and what a short write left is sent again
//! before anything else.
//!
//! Unsafe because operations name memory; each one is finished or cancelled before its memory is
//! let go.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::gather::{Gather, PIECES_MAX};
use super::ring::{Ring, Token};
use super::{Error, Limit, Result};
use crate::memory::RamBlock;

/// Bytes one receive into the reader's own buffer asks for: large enough that calls cost nothing,
/// small enough that what was received is still in the cache when it is copied on.
pub const READ_BYTES: usize = 512 << 10;

/// Bytes moved to the front before a receive rather than that it has less room: a page and its
/// header.
const LEFT_OVER_BYTES: usize = 8 << 10;

/// Bytes one receive straight into guest memory asks for.
const RECEIVE_BYTES: usize = 1 << 20;

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

/// Reads one stream with large receives.
pub struct SocketReader {
    fd: Arc<OwnedFd>,
    socket: bool,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    received: u64,
}

impl SocketReader {
    pub fn new(fd: Arc<OwnedFd>) -> Self {
        Self::with_buffer(fd, READ_BYTES)
    }

    /// With a buffer of `bytes` bytes.
    pub fn with_buffer(fd: Arc<OwnedFd>, bytes: usize) -> Self {
        let socket = is_socket(fd.as_raw_fd());
        Self {
            fd,
            socket,
            buffer: vec![0; bytes].into_boxed_slice(),
            start: 0,
            end: 0,
            received: 0,
        }
    }

    /// What was received and not consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start);
        self.start += bytes;
    }

    /// Bytes received in all.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Receives more: at least one byte, or [`Error::Closed`].
    pub fn fill(&mut self, ring: &mut Ring) -> Result<usize> {
        self.fill_by(ring, None)
    }

    /// Like [`Self::fill`], for at most `time`.
    pub fn fill_within(&mut self, ring: &mut Ring, time: Duration) -> Result<usize> {
        self.fill_by(ring, Some((Instant::now() + time, time)))
    }

    fn fill_by(&mut self, ring: &mut Ring, deadline: Option<(Instant, Duration)>) -> Result<usize> {
        // What is left of a record or a page moves to the front, so that receives stay large.
        if self.start > 0
            && (self.end - self.start < LEFT_OVER_BYTES || self.end == self.buffer.len())
        {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        assert!(self.end < self.buffer.len(), "nothing was consumed of a full buffer");
        let room = &mut self.buffer[self.end..];
        let (address, bytes) = (room.as_mut_ptr(), room.len());
        // SAFETY: the buffer is this reader's, and `receive` returns only when the kernel is done
        // with it.
        let got = unsafe { self.receive(ring, address, bytes, 0, deadline) }?;
        self.end += got;
        Ok(got)
    }

    /// Receives until `bytes` bytes are there to look at. The buffer grows to hold them: the caller
    /// bounds `bytes`.
    pub fn need(&mut self, ring: &mut Ring, bytes: usize) -> Result<&[u8]> {
        if bytes > self.buffer.len() {
            let mut larger = vec![0; bytes.next_power_of_two()].into_boxed_slice();
            larger[..self.end - self.start].copy_from_slice(&self.buffer[self.start..self.end]);
            (self.start, self.end) = (0, self.end - self.start);
            self.buffer = larger;
        }
        if self.buffer.len() - self.start < bytes {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < bytes {
            self.fill(ring)?;
        }
        Ok(&self.buffer[self.start..self.start + bytes])
    }

    /// Receives a range (bytes) of a block of guest memory: what is buffered is copied, the rest
    /// comes straight from the kernel. Others may read and write the memory meanwhile.
    ///
    /// # Panics
    /// When it does not lie in the block.
    pub fn read_to(&mut self, ring: &mut Ring, block: &RamBlock, range: Range<u64>) -> Result<()> {
        assert!(range.start <= range.end && range.end <= block.bytes());
        let (address, bytes) =
            (block.host().wrapping_add(range.start as usize), (range.end - range.start) as usize);
        let buffered = bytes.min(self.end - self.start);
        // SAFETY: both ranges are valid for `buffered` bytes; the buffer is private, so they do not
        // overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(self.buffer[self.start..].as_ptr(), address, buffered)
        };
        self.start += buffered;
        let mut done = buffered;
        while done < bytes {
            let ask = (bytes - done).min(RECEIVE_BYTES);
            // SAFETY: the range lies in the block's mapping, which `block` keeps.
            done += unsafe { self.receive(ring, address.add(done), ask, libc::MSG_WAITALL, None) }?;
        }
        Ok(())
    }

    /// # Safety
    /// `address` is valid for writes of `bytes` bytes until this returns.
    unsafe fn receive(
        &mut self,
        ring: &mut Ring,
        address: *mut u8,
        bytes: usize,
        flags: i32,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<usize> {
        let fd = types::Fd(self.fd.as_raw_fd());
        loop {
            let entry = if self.socket {
                opcode::Recv::new(fd, address, bytes as u32).flags(flags).build()
            } else {
                opcode::Read::new(fd, address, bytes as u32).offset(u64::MAX).build()
            };
            // SAFETY: the caller keeps the memory until this returns, and both ways out below wait
            // for the kernel.
            let token = unsafe { ring.submit(entry) }?;
            let result = match deadline {
                None => ring.wait(token)?,
                Some((deadline, time)) => wait_until(ring, token, deadline, time)?,
            };
            match result {
                r if r == -libc::EINTR || r == -libc::EAGAIN => continue,
                r if r < 0 => return Err(Error::from_result(r)),
                0 => return Err(end_of(self.fd.as_raw_fd())),
                r => {
                    self.received += r as u64;
                    return Ok(r as usize);
                }
            }
        }
    }
}

/// The result of `token`, or a time-out after which the operation was taken back.
fn wait_until(ring: &mut Ring, token: Token, deadline: Instant, time: Duration) -> Result<i32> {
    loop {
        if let Some(result) = ring.ready(token) {
            return Ok(result);
        }
        if Instant::now() >= deadline {
            // The answer may have come in the meantime; then it counts.
            return match ring.cancel(token) {
                result if result == -libc::ECANCELED || result == -libc::EINTR => {
                    Err(Error::TimedOut(time))
                }
                result => Ok(result),
            };
        }
        if let Err(error) = ring.sleep(Some(deadline)) {
            ring.cancel(token);
            return Err(error);
        }
    }
}

/// Why nothing more can be received. A receive that waits for all it asked for (MSG_WAITALL) and
/// got a part of it says so, and the error that ended it is gone: the next one finds the end alone.
/// But a TCP connection that its peer closed waits for our end to close, and one that died is
/// closed.
fn end_of(fd: RawFd) -> Error {
    /// From net/tcp_states.h.
    const TCP_CLOSE: u8 = 7;
    // SAFETY: all zeros is a valid tcp_info; the call writes no more than `bytes` into it. On what
    // is no TCP it fails.
    let (rc, state) = unsafe {
        let mut info = std::mem::zeroed::<libc::tcp_info>();
        let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
        let to = (&raw mut info).cast();
        (
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut bytes),
            info.tcpi_state,
        )
    };
    match rc {
        0 if state == TCP_CLOSE => Error::System(std::io::Error::other(
            "the connection was lost: it timed out, or was reset",
        )),
        _ => Error::Closed,
    }
}

/// The position of a file; `None` of a pipe.
fn position(fd: RawFd) -> Option<u64> {
    // SAFETY: lseek has no memory arguments.
    u64::try_from(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }).ok()
}

fn is_socket(fd: RawFd) -> bool {
    // SAFETY: all zeros is a valid stat buffer, and fstat writes only into it.
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    // SAFETY: as above.
    let result = unsafe { libc::fstat(fd, &mut stat) };
    result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Waker;
    use std::io::{Read, Write};
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
    fn received_bytes_are_copied_from_the_buffer_and_then_straight_from_the_kernel() {
        let (fd, mut peer) = pair();
        let bytes: Vec<u8> = (0..2 << 20).map(|i: u32| ((i * 7) >> 5) as u8).collect();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || peer.write_all(&sent).unwrap());
        let mut ring = ring();
        let mut reader = SocketReader::with_buffer(fd, 4096);
        assert_eq!(reader.need(&mut ring, 10).unwrap(), &bytes[..10]);
        reader.consume(10);
        let ram = crate::memory::for_tests(2 << 20);
        reader.read_to(&mut ring, ram.main(), 0..bytes.len() as u64 - 10).unwrap();
        let mut memory = vec![0u8; bytes.len() - 10];
        ram.read(0, &mut memory).unwrap();
        assert!(memory == bytes[10..]);
        writer.join().unwrap();
        assert!(matches!(reader.fill(&mut ring), Err(Error::Closed)));
    }

    #[test]
    fn a_connection_that_died_behind_a_part_was_not_closed() {
        for dies in [true, false] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut reader = SocketReader::new(Arc::new(listener.accept().unwrap().0.into()));
            let thread = std::thread::spawn(move || {
                peer.write_all(b"part").unwrap();
                std::thread::sleep(Duration::from_millis(50));
                let linger = dies.then_some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&peer, linger).unwrap();
            });
            let (mut ring, ram) = (ring(), crate::memory::for_tests(4096));
            let error = reader.read_to(&mut ring, ram.main(), 0..10).unwrap_err();
            assert_eq!(matches!(error, Error::Closed), !dies, "{error}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn silence_times_out_and_leaves_the_reader_usable() {
        let (fd, mut peer) = pair();
        let mut ring = ring();
        let mut reader = SocketReader::new(fd);
        let time = Duration::from_millis(20);
        assert!(matches!(reader.fill_within(&mut ring, time), Err(Error::TimedOut(_))));
        peer.write_all(b"late").unwrap();
        assert_eq!(reader.fill_within(&mut ring, time).unwrap(), 4);
        assert_eq!(reader.bytes(), b"late");
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

    #[test]
    fn pipes_work_like_sockets() {
        let (theirs, ours) = std::io::pipe().unwrap();
        let mut ring = ring();
        let writer = std::thread::spawn(move || {
            let mut ring = Ring::new(Waker::new()).unwrap();
            let mut writer = SocketWriter::new(Arc::new(ours.into()), Arc::new(Limit::new(0)));
            writer.write_all(&mut ring, &vec![3; 300_000]).unwrap();
        });
        let mut reader = SocketReader::new(Arc::new(theirs.into()));
        assert!(reader.need(&mut ring, 300_000).unwrap().iter().all(|byte| *byte == 3));
        writer.join().unwrap();
    }
}
