//! Files written and read at positions, through registered buffers of our own.
//!
//! Writes go in any order, several in flight; a full pool holds the caller back until one is done. Unsafe because the
//! kernel uses a buffer until its completion; a buffer is out of the pool for exactly that time.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, types};
use memmap2::MmapMut;

use super::ring::{Ring, Token};
use super::{Error, Result};

/// Bytes of one buffer: a write large enough for any disk.
pub const BUFFER_BYTES: usize = 1 << 20;

/// Buffers of a pool.
pub const BUFFERS: usize = 8;

/// A buffer out of the pool. Its bytes count from 0 to `len`.
pub struct Buffer {
    index: u16,
    map: MmapMut,
    len: usize,
}

impl Buffer {
    /// Room for all of it.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// How much of the room is to be written.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.map.len());
        self.len = len;
    }
}

/// Writes a file at positions.
pub struct FileWriter {
    fd: Arc<OwnedFd>,
    free: Vec<Buffer>,
    flights: VecDeque<Flight>,
}

struct Flight {
    token: Token,
    buffer: Buffer,
    start: usize,
    offset: u64,
}

impl FileWriter {
    /// Registers its pool with `ring`, which must outlive it and serve no other pool.
    pub fn new(ring: &mut Ring, fd: Arc<OwnedFd>) -> Result<Self> {
        let mut free = Vec::with_capacity(BUFFERS);
        for index in 0..BUFFERS as u16 {
            free.push(Buffer { index, map: MmapMut::map_anon(BUFFER_BYTES)?, len: 0 });
        }
        let iovecs: Vec<_> = free
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.map.as_mut_ptr().cast(), iov_len: BUFFER_BYTES })
            .collect();
        // SAFETY: registered pages stay pinned for the kernel even if the pool is unmapped first.
        unsafe { ring.register(&iovecs) }?;
        Ok(Self { fd, free, flights: VecDeque::new() })
    }

    /// A free buffer; waits for a write to end when all are in flight.
    pub fn buffer(&mut self, ring: &mut Ring) -> Result<Buffer> {
        while self.free.is_empty() {
            self.reap(ring)?;
        }
        Ok(self.free.pop().expect("one was just reaped"))
    }

    /// Starts writing `buffer` at `offset`.
    pub fn write_at(&mut self, ring: &mut Ring, offset: u64, buffer: Buffer) -> Result<()> {
        if buffer.len == 0 {
            self.free.push(buffer);
            return Ok(());
        }
        let token = self.submit(ring, &buffer, 0, offset)?;
        self.flights.push_back(Flight { token, buffer, start: 0, offset });
        Ok(())
    }

    /// Waits until all writes are done.
    pub fn finish(&mut self, ring: &mut Ring) -> Result<()> {
        while !self.flights.is_empty() {
            self.reap(ring)?;
        }
        Ok(())
    }

    fn reap(&mut self, ring: &mut Ring) -> Result<()> {
        let Some(mut flight) = self.flights.pop_front() else { return Ok(()) };
        let done = match ring.wait(flight.token)? {
            r if r == -libc::EINTR || r == -libc::EAGAIN => 0,
            r if r < 0 => return Err(Error::from_result(r)),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
            r => r as usize,
        };
        flight.start += done;
        flight.offset += done as u64;
        if flight.start < flight.buffer.len {
            flight.token = self.submit(ring, &flight.buffer, flight.start, flight.offset)?;
            self.flights.push_front(flight);
        } else {
            flight.buffer.len = 0;
            self.free.push(flight.buffer);
        }
        Ok(())
    }

    fn submit(&self, ring: &mut Ring, buffer: &Buffer, start: usize, offset: u64) -> Result<Token> {
        let bytes = &buffer.map[start..buffer.len];
        let fd = types::Fd(self.fd.as_raw_fd());
        let entry =
            opcode::WriteFixed::new(fd, bytes.as_ptr(), bytes.len() as u32, buffer.index).offset(offset);
        // SAFETY: the buffer stays in `flights` until its token was waited for; its pages are pinned by registration.
        unsafe { ring.submit(entry.build()) }
    }

    /// Takes back what is in flight, for a caller that gives up.
    pub fn abandon(&mut self, ring: &mut Ring) {
        for flight in self.flights.drain(..) {
            ring.cancel(flight.token);
            self.free.push(flight.buffer);
        }
    }
}

/// Reads a file at positions.
pub struct FileReader {
    fd: Arc<OwnedFd>,
}

impl FileReader {
    pub fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd }
    }

    /// Fills `bytes` from `offset`; [`Error::Closed`] where the file ends early.
    pub fn read_exact_at(&mut self, ring: &mut Ring, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let left = &mut bytes[done..];
            let fd = types::Fd(self.fd.as_raw_fd());
            let entry =
                opcode::Read::new(fd, left.as_mut_ptr(), left.len() as u32).offset(offset + done as u64);
            // SAFETY: `bytes` is borrowed until `wait` returns, and `wait` returns only when the kernel is done.
            let token = unsafe { ring.submit(entry.build()) }?;
            match ring.wait(token)? {
                r if r == -libc::EINTR || r == -libc::EAGAIN => {}
                r if r < 0 => return Err(Error::from_result(r)),
                0 => return Err(Error::Closed),
                r => done += r as usize,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Waker;

    #[test]
    fn positioned_writes_in_any_order_read_back() {
        let file = tempfile::tempfile().unwrap();
        let fd: Arc<OwnedFd> = Arc::new(file.into());
        let mut ring = Ring::new(Waker::new()).unwrap();
        let mut writer = FileWriter::new(&mut ring, fd.clone()).unwrap();
        for chunk in (0..24u64).rev() {
            let mut buffer = writer.buffer(&mut ring).unwrap();
            buffer.room()[..70_000].fill(chunk as u8);
            buffer.set_len(70_000);
            writer.write_at(&mut ring, chunk * 70_000, buffer).unwrap();
        }
        writer.finish(&mut ring).unwrap();
        let mut reader = FileReader::new(fd);
        let mut bytes = vec![0; 24 * 70_000];
        reader.read_exact_at(&mut ring, 0, &mut bytes).unwrap();
        assert!(bytes.chunks(70_000).enumerate().all(|(i, c)| c.iter().all(|b| *b == i as u8)));
        assert!(matches!(reader.read_exact_at(&mut ring, 24 * 70_000, &mut [0]), Err(Error::Closed)));
    }
}
