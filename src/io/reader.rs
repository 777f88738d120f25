//! Sockets, pipes and files read with large receives, one at a time, into a buffer or straight into
//! guest memory.
//!
//! Unsafe because operations name memory; each one is finished or cancelled before its memory is
//! let go.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::error::{Error, Result};
use super::ring::{Ring, Token};
use super::socket::is_socket;
use super::writer::position;
use crate::memory::RamBlock;

/// Bytes one receive into the reader's own buffer asks for: large enough that calls cost nothing,
/// small enough that what was received is still in the cache when it is copied on.
pub(super) const READ_BYTES: usize = 512 << 10;

/// Bytes moved to the front before a receive rather than that it has less room: a page and its
/// header.
const LEFT_OVER_BYTES: usize = 8 << 10;

/// Bytes one receive straight into guest memory asks for.
const RECEIVE_BYTES: usize = 1 << 20;

/// Reads one stream with large receives.
pub(crate) struct SocketReader {
    fd: Arc<OwnedFd>,
    socket: bool,
    /// Where in a file the next receive begins; `None` where there are no positions. The file's own
    /// is left alone: several may read it.
    place: Option<u64>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl SocketReader {
    pub(crate) fn new(fd: Arc<OwnedFd>) -> Self {
        Self::with_buffer(fd, READ_BYTES)
    }

    /// With a buffer of `bytes` bytes.
    pub(crate) fn with_buffer(fd: Arc<OwnedFd>, bytes: usize) -> Self {
        let socket = is_socket(&fd);
        let place = if socket { None } else { position(fd.as_raw_fd()) };
        Self { fd, socket, place, buffer: vec![0; bytes].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where in a file the next byte lies; `None` where there are no positions.
    pub(crate) fn place(&self) -> Option<u64> {
        self.place.map(|place| place - (self.end - self.start) as u64)
    }

    /// Goes on at `place` of a file. What was received and lies there is not received again.
    pub(crate) fn go_on_at(&mut self, place: u64) {
        let ahead = self.place().and_then(|now| place.checked_sub(now));
        match ahead.filter(|ahead| *ahead <= (self.end - self.start) as u64) {
            Some(ahead) => self.start += ahead as usize,
            None => (self.place, self.start, self.end) = (Some(place), 0, 0),
        }
    }

    /// What was received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start);
        self.start += bytes;
    }

    /// Receives more: at least one byte, or [`Error::Closed`].
    pub(crate) fn fill(&mut self, ring: &mut Ring) -> Result<usize> {
        self.fill_by(ring, None)
    }

    /// Like [`Self::fill`], for at most `time`.
    pub(crate) fn fill_within(&mut self, ring: &mut Ring, time: Duration) -> Result<usize> {
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
    pub(crate) fn need(&mut self, ring: &mut Ring, bytes: usize) -> Result<&[u8]> {
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
    pub(crate) fn read_to(
        &mut self,
        ring: &mut Ring,
        block: &RamBlock,
        range: Range<u64>,
    ) -> Result<()> {
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
                let place = self.place.unwrap_or(u64::MAX);
                opcode::Read::new(fd, address, bytes as u32).offset(place).build()
            };
            // SAFETY: the caller keeps the memory until this returns, and both ways out below wait
            // for the kernel.
            let token = unsafe { ring.submit(entry) }?;
            let result = match deadline {
                None => ring.wait(token)?,
                Some((deadline, time)) => wait_until(ring, token, deadline, time)?,
            };
            match result {
                r if r == -libc::EINTR => continue,
                r if r == -libc::EAGAIN => {
                    // A non-blocking descriptor that has nothing.
                    let token = ring.poll(self.fd.as_raw_fd(), libc::POLLIN)?;
                    match deadline {
                        None => ring.wait(token)?,
                        Some((deadline, time)) => wait_until(ring, token, deadline, time)?,
                    };
                }
                r if r < 0 => return Err(Error::from_result(r)),
                0 => return Err(end_of(self.fd.as_raw_fd())),
                r => {
                    self.place = self.place.map(|place| place + r as u64);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Limit, Waker, Writer};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Arc<OwnedFd>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Arc::new(ours.into()), theirs)
    }

    fn ring() -> Ring {
        Ring::new(Waker::new()).unwrap()
    }

    #[test]
    fn cancel_ends_the_wait_for_a_descriptor_that_does_not_block() {
        let (fd, _peer) = pair();
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        let mut ring = ring();
        let waker = ring.waker().clone();
        let canceller = std::thread::spawn(move || waker.cancel());
        let ended = SocketReader::new(fd).need(&mut ring, 1).map(<[u8]>::to_vec);
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
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
    fn a_file_is_read_at_places_and_its_own_position_stays() {
        use std::io::Seek;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| ((i * 7) >> 5) as u8).collect();
        file.write_all(&bytes).unwrap();
        file.seek(std::io::SeekFrom::Start(10)).unwrap();
        let fd: Arc<OwnedFd> = Arc::new(file.try_clone().unwrap().into());
        let (mut ring, mut reader) = (ring(), SocketReader::with_buffer(fd, 4096));
        assert_eq!(
            (reader.place(), reader.need(&mut ring, 5).unwrap()),
            (Some(10), &bytes[10..15])
        );
        for place in [4000, 10, 90_000, 90_010, 12, 4107] {
            reader.go_on_at(place as u64);
            assert_eq!(reader.need(&mut ring, 20).unwrap(), &bytes[place..place + 20], "{place}");
            reader.consume(20);
            assert_eq!(reader.place(), Some(place as u64 + 20));
        }
        reader.go_on_at(100_000);
        assert!(matches!(reader.fill(&mut ring), Err(Error::Closed)));
        assert_eq!(file.stream_position().unwrap(), 10);
    }

    #[test]
    fn pipes_work_like_sockets() {
        let (theirs, ours) = std::io::pipe().unwrap();
        let mut ring = ring();
        let writer = std::thread::spawn(move || {
            let mut ring = Ring::new(Waker::new()).unwrap();
            let mut writer = Writer::new(Arc::new(ours.into()), Arc::new(Limit::new(0)));
            writer.write_all(&mut ring, &vec![3; 300_000]).unwrap();
        });
        let mut reader = SocketReader::new(Arc::new(theirs.into()));
        assert!(reader.need(&mut ring, 300_000).unwrap().iter().all(|byte| *byte == 3));
        writer.join().unwrap();
    }
}
