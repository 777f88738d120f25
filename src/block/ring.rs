//! Requests on their way between guest memory and files: a ring of its own for each disk.
//!
//! Unsafe because the kernel reads and writes the memory that a submission names until its
//! completion arrives. A [`Flight`] therefore owns everything that its submission names: the file,
//! the list of buffers, and the memory itself, guest RAM by a clone that keeps it mapped. It is
//! given back by [`Ring::take`] alone, once the kernel has let go; [`Ring`] waits for all of them
//! before it is dropped.
#![allow(unsafe_code)]

use crate::memory::GuestRam;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Requests that can be on their way.
pub(crate) const FLIGHTS_MAX: usize = 256;
/// Buffers of one submission (`IOV_MAX`).
const BUFFERS_MAX: usize = 1024;
/// Boundaries of memory for `O_DIRECT`.
const DIRECT_ALIGNMENT: usize = 4096;

/// Memory that a request moves bytes to or from.
pub(crate) enum Memory {
    /// Ranges of guest memory: (address, bytes).
    Guest {
        ram: GuestRam,
        ranges: Vec<(u64, u32)>,
    },
    /// The program's own.
    Own(Aligned),
    None,
}

/// A buffer whose beginning `O_DIRECT` takes.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeros. Fails where memory is short.
    pub(crate) fn new(len: usize) -> io::Result<Aligned> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len + DIRECT_ALIGNMENT).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len + DIRECT_ALIGNMENT, 0);
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGNMENT).min(DIRECT_ALIGNMENT);
        Ok(Aligned { bytes, start, len })
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

/// What is asked of the kernel. Offsets and lengths are in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Read {
        at: u64,
    },
    Write {
        at: u64,
    },
    /// Data, and what is needed to find it, to the disk.
    Flush,
    /// The range is used no more.
    Discard {
        at: u64,
        bytes: u64,
    },
    /// The range is zeros; `unmap`: it may be given back.
    Zeroes {
        at: u64,
        bytes: u64,
        unmap: bool,
    },
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// One that is under way, with all that the kernel uses meanwhile.
struct Flight {
    number: u64,
    memory: Memory,
    _buffers: Vec<libc::iovec>,
    _file: Arc<File>,
}

/// One that has arrived.
pub(crate) struct Arrival {
    pub number: u64,
    /// Bytes, or a negative errno.
    pub result: i32,
    pub memory: Memory,
}

pub(crate) struct Ring {
    uring: IoUring,
    event: Arc<File>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    arrived: VecDeque<Arrival>,
    unsubmitted: bool,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Ring> {
        let uring = IoUring::new(FLIGHTS_MAX as u32)?;
        let event = File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Ring {
            uring,
            event: Arc::new(event),
            flights: (0..FLIGHTS_MAX).map(|_| None).collect(),
            free: (0..FLIGHTS_MAX).rev().collect(),
            arrived: VecDeque::new(),
            unsubmitted: false,
        })
    }

    /// Readable when something has arrived.
    pub(crate) fn event(&self) -> &Arc<File> {
        &self.event
    }

    /// Prepares a request; [`Ring::submit`] sends it off. `number` comes back with it.
    ///
    /// # Errors
    /// Memory that is not the guest's, or there is no room.
    pub(crate) fn push(
        &mut self,
        number: u64,
        file: &Arc<File>,
        work: Work,
        mut memory: Memory,
    ) -> io::Result<()> {
        let buffers = buffers(&mut memory).ok_or(io::ErrorKind::InvalidInput)?;
        let slot = self.free.pop().ok_or(io::ErrorKind::ResourceBusy)?;
        let fd = types::Fd(file.as_raw_fd());
        let (list, count) = (buffers.as_ptr(), buffers.len() as u32);
        let entry = match work {
            Work::Read { at } => opcode::Readv::new(fd, list, count).offset(at).build(),
            Work::Write { at } => opcode::Writev::new(fd, list, count).offset(at).build(),
            Work::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Discard { at, bytes } | Work::Zeroes { at, bytes, unmap: true } => {
                opcode::Fallocate::new(fd, bytes).offset(at).mode(PUNCH).build()
            }
            Work::Zeroes { at, bytes, unmap: false } => {
                opcode::Fallocate::new(fd, bytes).offset(at).mode(ZERO).build()
            }
        };
        self.flights[slot] =
            Some(Flight { number, memory, _buffers: buffers, _file: file.clone() });
        self.queue(&entry.user_data(slot as u64));
        Ok(())
    }

    fn queue(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry names belongs to the flight in the slot of the same number, which
        // stays until the completion with that number has arrived.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            // As many entries as flights: a full queue is one that was not sent off yet.
            self.send();
        }
        self.unsubmitted = true;
    }

    /// Sends off what was prepared, and looks what has arrived.
    pub(crate) fn submit(&mut self) {
        if self.unsubmitted {
            self.send();
        }
        self.collect();
    }

    fn send(&mut self) {
        loop {
            match self.uring.submit() {
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The kernel is short of something for a moment, or completions stand in the way.
                Err(_) => {
                    self.collect();
                    std::thread::yield_now();
                }
            }
        }
        self.unsubmitted = false;
    }

    /// Waits until something has arrived, if anything is under way.
    pub(crate) fn wait(&mut self) {
        self.submit();
        while self.arrived.is_empty() && self.free.len() < FLIGHTS_MAX {
            // An interrupted wait is made again.
            let _ = self.uring.submit_and_wait(1);
            self.collect();
        }
    }

    /// The next that has arrived.
    pub(crate) fn take(&mut self) -> Option<Arrival> {
        self.arrived.pop_front()
    }

    /// Whether there is a next one already.
    pub(crate) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    fn collect(&mut self) {
        // Read first: what arrives later makes it readable again. Fails where nothing came.
        let _ = rustix::io::read(&*self.event, &mut [0u8; 8]);
        for entry in self.uring.completion() {
            let slot = entry.user_data() as usize;
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            self.arrived.push_back(Arrival {
                number: flight.number,
                result: entry.result(),
                memory: flight.memory,
            });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.free.len() < FLIGHTS_MAX {
            self.wait();
            self.arrived.clear();
        }
    }
}

// SAFETY: the lists of buffers are pointers into memory that the flights own or keep mapped; they
// may be handed on to another thread with it.
unsafe impl Send for Ring {}

/// The list of buffers; `None`: a range is not the guest's memory, or there are too many.
fn buffers(memory: &mut Memory) -> Option<Vec<libc::iovec>> {
    match memory {
        Memory::None => Some(Vec::new()),
        Memory::Own(own) => {
            let iov_base = own.get_mut().as_mut_ptr().cast();
            Some(vec![libc::iovec { iov_base, iov_len: own.len }])
        }
        Memory::Guest { ram, ranges } => {
            let main = ram.main();
            let buffer = |&(gpa, bytes): &(u64, u32)| {
                let region = main.regions().iter().find(|r| {
                    gpa >= r.gpa
                        && gpa - r.gpa < r.bytes
                        && u64::from(bytes) <= r.bytes - (gpa - r.gpa)
                })?;
                let offset = region.offset + (gpa - region.gpa);
                let iov_base = main.host().wrapping_add(offset as usize).cast();
                Some(libc::iovec { iov_base, iov_len: bytes as usize })
            };
            let list: Option<Vec<_>> = ranges.iter().map(buffer).collect();
            list.filter(|list| list.len() <= BUFFERS_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_written_is_read_and_a_dropped_ring_waits() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut ring = Ring::new().unwrap();
        let mut own = Aligned::new(1 << 16).unwrap();
        own.get_mut().fill(7);
        assert_eq!(own.get().as_ptr() as usize % DIRECT_ALIGNMENT, 0);
        ring.push(3, &file, Work::Write { at: 512 }, Memory::Own(own)).unwrap();
        ring.wait();
        let arrival = ring.take().unwrap();
        assert_eq!((arrival.number, arrival.result), (3, 1 << 16));
        assert_eq!(ring.free.len(), FLIGHTS_MAX);
        let mut back = [0; 16];
        file.read_at(&mut back, 512 + 1000).unwrap();
        assert_eq!(back, [7; 16]);
        for number in 0..FLIGHTS_MAX as u64 {
            let memory = Memory::Own(Aligned::new(4096).unwrap());
            ring.push(number, &file, Work::Read { at: 0 }, memory).unwrap();
        }
        assert!(ring.free.is_empty());
        ring.submit();
        drop(ring);
    }

    #[test]
    fn memory_that_is_not_the_guests_is_refused() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut ring = Ring::new().unwrap();
        let ram = crate::memory::for_tests(1 << 20);
        for range in [(1 << 20, 512), ((1 << 20) - 1, 2), (u64::MAX, 512)] {
            let memory = Memory::Guest { ram: ram.clone(), ranges: vec![range] };
            assert!(ring.push(0, &file, Work::Read { at: 0 }, memory).is_err());
        }
        assert_eq!(ring.free.len(), FLIGHTS_MAX);
    }
}
