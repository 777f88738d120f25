//! Files, pipes and sockets written from registered buffers of our own, and files read at
//! positions.
//!
//! Writes to a file go in any order, several in flight. A stream takes one at a time, in the order
//! in which they were handed over, whatever was queued behind. Every completion is looked at: a
//! short write goes on where it ended, an error ends the writer. A full pool holds the caller back
//! until a buffer is free.
//!
//! Unsafe because the kernel reads a buffer until its completion; a buffer is out of the pool for
//! exactly that time.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use memmap2::MmapMut;

use super::error::{Error, Result};
use super::ring::{Ring, Token, Waker};

/// Bytes of one buffer: a write large enough for any disk.
pub const BUFFER_BYTES: usize = 1 << 20;
/// Buffers of a pool.
pub const BUFFERS: usize = 8;
/// Writes in the ring at a time: less than the ring holds, for files of many small pieces.
const FLIGHTS_MAX: usize = 32;
/// "Where the file stands", for what cannot be written at positions.
const NO_OFFSET: u64 = u64::MAX;

/// A buffer out of the pool, with room for [`BUFFER_BYTES`].
pub struct Buffer {
    index: u16,
    map: MmapMut,
}

impl Buffer {
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub fn room(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

/// A piece of a buffer, and where it goes. A stream does not look at the offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub bytes: Range<usize>,
    pub offset: u64,
}

/// How what is written is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// At positions, in any order.
    Positioned,
    /// Pipes, sockets, terminals, files that append: one after the other.
    Stream,
}

/// A write that failed, with the caller's name for it.
#[derive(Debug)]
pub struct Failed<T> {
    pub what: T,
    pub error: Error,
}

/// Writes one file. `T` names a write in its failure.
///
/// After a failure nothing is in flight, and the writer is of no more use.
pub struct FileWriter<T> {
    ring: Ring,
    fd: Arc<OwnedFd>,
    order: Order,
    /// The kernel has the buffers' pages; it may refuse to (`RLIMIT_MEMLOCK`), and then looks them
    /// up each time.
    registered: bool,
    free: Vec<Buffer>,
    /// By index, buffers being written and how many of their pieces are left.
    busy: Vec<Option<(Buffer, usize)>>,
    writes: VecDeque<Write<T>>,
}

struct Write<T> {
    what: T,
    buffer: u16,
    bytes: Range<usize>,
    offset: u64,
    /// `None`: it waits for the one before it.
    token: Option<Token>,
}

impl<T: Copy> FileWriter<T> {
    /// Makes its own ring and pool. `waker` ends a write that is blocked.
    pub fn new(fd: Arc<OwnedFd>, order: Order, waker: Waker) -> Result<Self> {
        let ring = Ring::new(waker)?;
        let mut free = Vec::with_capacity(BUFFERS);
        for index in 0..BUFFERS as u16 {
            free.push(Buffer { index, map: MmapMut::map_anon(BUFFER_BYTES)? });
        }
        let iovecs: Vec<_> = free
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.map.as_mut_ptr().cast(), iov_len: BUFFER_BYTES })
            .collect();
        // SAFETY: the pool is our own memory; registered pages stay pinned even if it is unmapped
        // before the ring ends.
        let registered = unsafe { ring.register(&iovecs) }.is_ok();
        let busy = (0..BUFFERS).map(|_| None).collect();
        Ok(Self { ring, fd, order, registered, free, busy, writes: VecDeque::new() })
    }

    /// A free buffer, with anything in it; waits for a write to end when all are in flight.
    pub fn buffer(&mut self) -> std::result::Result<Buffer, Failed<T>> {
        loop {
            if let Some(buffer) = self.free.pop() {
                return Ok(buffer);
            }
            assert!(!self.writes.is_empty(), "every buffer is with the caller");
            self.reap()?;
        }
    }

    /// Starts writing `pieces` of `buffer`, which do not overlap. The buffer comes back to the pool
    /// when all are done.
    pub fn write(
        &mut self,
        what: T,
        buffer: Buffer,
        pieces: impl IntoIterator<Item = Piece>,
    ) -> std::result::Result<(), Failed<T>> {
        let index = buffer.index;
        let pieces = pieces.into_iter().filter(|piece| !piece.bytes.is_empty());
        let writes = pieces.map(|Piece { bytes, offset }| Write {
            what,
            buffer: index,
            bytes,
            offset,
            token: None,
        });
        let before = self.writes.len();
        self.writes.extend(writes);
        match self.writes.len() - before {
            0 => self.free.push(buffer),
            left => self.busy[usize::from(index)] = Some((buffer, left)),
        }
        self.submit()
    }

    /// Waits until all writes are done.
    pub fn finish(&mut self) -> std::result::Result<(), Failed<T>> {
        while !self.writes.is_empty() {
            self.reap()?;
        }
        Ok(())
    }

    /// Puts into the ring what may be there.
    fn submit(&mut self) -> std::result::Result<(), Failed<T>> {
        let flights = if self.order == Order::Stream { 1 } else { FLIGHTS_MAX };
        for at in 0..self.writes.len().min(flights) {
            if self.writes[at].token.is_none() {
                match self.start(at) {
                    Ok(token) => self.writes[at].token = Some(token),
                    Err(error) => return Err(self.fail(at, error)),
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, at: usize) -> Result<Token> {
        let write = &self.writes[at];
        let (buffer, _) =
            self.busy[usize::from(write.buffer)].as_ref().expect("it is being written");
        let bytes = &buffer.map[write.bytes.clone()];
        let (address, len) = (bytes.as_ptr(), bytes.len() as u32);
        let fd = types::Fd(self.fd.as_raw_fd());
        let offset = if self.order == Order::Stream { NO_OFFSET } else { write.offset };
        let entry: squeue::Entry = if self.registered {
            opcode::WriteFixed::new(fd, address, len, write.buffer).offset(offset).build()
        } else {
            opcode::Write::new(fd, address, len).offset(offset).build()
        };
        // SAFETY: the buffer stays in `busy` until the token's result is there: `reap` waits for
        // it, and so do `fail` and `drop`.
        unsafe { self.ring.submit(entry) }
    }

    /// Waits for the oldest write and deals with its result.
    fn reap(&mut self) -> std::result::Result<(), Failed<T>> {
        self.submit()?;
        let Some(token) = self.writes.front_mut().and_then(|write| write.token.take()) else {
            return Ok(());
        };
        let done = match self.ring.wait(token) {
            Ok(result) => result,
            Err(error) => return Err(self.fail(0, error)),
        };
        let done = match -done {
            libc::EINTR => 0,
            libc::EAGAIN => match self.wait_for_room() {
                Ok(()) => 0,
                Err(error) => return Err(self.fail(0, error)),
            },
            error if error > 0 => return Err(self.fail(0, Error::from_result(done))),
            0 => {
                return Err(
                    self.fail(0, std::io::Error::from(std::io::ErrorKind::WriteZero).into())
                );
            }
            _ => done as usize,
        };
        let write = self.writes.front_mut().expect("it was waited for");
        write.bytes.start += done;
        write.offset += done as u64;
        if write.bytes.is_empty() {
            let index = usize::from(write.buffer);
            self.writes.pop_front();
            self.busy[index] = match self.busy[index].take() {
                Some((buffer, 1)) => {
                    self.free.push(buffer);
                    None
                }
                Some((buffer, left)) => Some((buffer, left - 1)),
                None => None,
            };
        }
        self.submit()
    }

    /// A non-blocking descriptor is full.
    fn wait_for_room(&mut self) -> Result<()> {
        let poll = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), libc::POLLOUT as u32);
        // SAFETY: a poll names no memory.
        let token = unsafe { self.ring.submit(poll.build()) }?;
        self.ring.wait(token).map(drop)
    }

    /// Takes back what is in flight.
    fn fail(&mut self, at: usize, error: Error) -> Failed<T> {
        let what = self.writes[at].what;
        self.abandon();
        Failed { what, error }
    }
}

impl<T> FileWriter<T> {
    fn abandon(&mut self) {
        for token in self.writes.drain(..).filter_map(|write| write.token) {
            self.ring.cancel(token);
        }
        self.free.extend(self.busy.iter_mut().filter_map(Option::take).map(|(buffer, _)| buffer));
    }
}

impl<T> Drop for FileWriter<T> {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    fn writer(file: impl Into<OwnedFd>, order: Order) -> FileWriter<&'static str> {
        FileWriter::new(Arc::new(file.into()), order, Waker::new()).unwrap()
    }

    #[test]
    fn pieces_in_any_order_read_back() {
        let file = tempfile::tempfile().unwrap();
        let fd: Arc<OwnedFd> = Arc::new(file.try_clone().unwrap().into());
        let mut writer = FileWriter::new(fd, Order::Positioned, Waker::new()).unwrap();
        for chunk in (0..24u64).rev() {
            let mut buffer = writer.buffer().unwrap();
            buffer.room()[..70_000].fill(chunk as u8);
            let piece =
                |at: usize| Piece { bytes: at..at + 700, offset: chunk * 70_000 + at as u64 };
            writer.write("chunk", buffer, (0..70_000).step_by(700).rev().map(piece)).unwrap();
        }
        writer.finish().unwrap();
        let mut bytes = vec![0; 24 * 70_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.chunks(70_000).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8)));
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
    }

    #[test]
    fn a_stream_keeps_its_order_over_many_short_writes() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (reader, blocking) = pipe().unwrap();
        let targets: [(OwnedFd, Box<dyn Read + Send>); 2] =
            [(ours.into(), Box::new(theirs)), (blocking.into(), Box::new(reader))];
        for (target, mut source) in targets {
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                let mut all = Vec::new();
                source.read_to_end(&mut all).unwrap();
                all
            });
            let mut writer = writer(target, Order::Stream);
            for number in 0..20u8 {
                let mut buffer = writer.buffer().unwrap();
                buffer.room().fill(number);
                writer
                    .write("chunk", buffer, [Piece { bytes: 0..BUFFER_BYTES, offset: 0 }])
                    .unwrap();
            }
            writer.finish().unwrap();
            drop(writer);
            let all = thread.join().unwrap();
            assert_eq!(all.len(), 20 * BUFFER_BYTES);
            assert!(
                all.chunks(BUFFER_BYTES).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8))
            );
        }
    }

    #[test]
    fn a_failure_names_the_write_and_leaves_nothing_in_flight() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut writer = writer(full, Order::Stream);
        let failed = (0..20).find_map(|_| {
            let buffer = writer.buffer();
            let piece = Piece { bytes: 0..10, offset: 0 };
            buffer.and_then(|buffer| writer.write("headers", buffer, [piece])).err()
        });
        let failed = failed.expect("the pool is smaller than that");
        assert_eq!(failed.what, "headers");
        assert!(
            matches!(failed.error, Error::System(error) if error.raw_os_error() == Some(libc::ENOSPC))
        );
        assert_eq!(writer.free.len(), BUFFERS);
    }

    #[test]
    fn a_cancel_ends_a_blocked_write() {
        let (_reader, target) = pipe().unwrap();
        let waker = Waker::new();
        let mut writer =
            FileWriter::new(Arc::new(target.into()), Order::Stream, waker.clone()).unwrap();
        let buffer = writer.buffer().unwrap();
        writer.write("all", buffer, [Piece { bytes: 0..BUFFER_BYTES, offset: 0 }]).unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.cancel();
        });
        assert!(matches!(writer.finish(), Err(Failed { error: Error::Cancelled, .. })));
        thread.join().unwrap();
    }
}
