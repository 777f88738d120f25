//! Where a dump goes: a file that can have holes, one that cannot, or a stream; and how it is
//! written there.

use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range as Span;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use rustix::fs::{SeekFrom, ftruncate, seek};

use super::error::{Error, What};
use crate::io::gather::{BUFFER_BYTES, Buffer, Pool};
use crate::io::writer::{self, Failed};
use crate::io::{self as transfer, Limit, Ring, Waker};

/// The target of one dump. Offsets count from where the file stood when it was handed over.
#[derive(Debug)]
pub struct Output {
    file: File,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A regular file without anything behind `base`: positioned writes, holes.
    Sparse { base: u64 },
    /// A block device: positioned writes, but what was there before shows in gaps.
    Positioned { base: u64 },
    /// Pipes, sockets, terminals, and files that append whatever the offset.
    Stream,
}

impl Output {
    /// Looks at what `file` is. A regular file is cut off at its current offset, where the dump
    /// will begin.
    pub fn new(mut file: File) -> Result<Output, Error> {
        let kind = Kind::of(&mut file).map_err(Error::Destination)?;
        Ok(Output { file, kind })
    }

    /// Can it be written in any order?
    pub(crate) fn seekable(&self) -> bool {
        !matches!(self.kind, Kind::Stream)
    }

    /// Makes it ready to be written by this thread. `waker` ends a write that is blocked.
    pub(super) fn open(self, waker: &Waker) -> Result<Writer, Error> {
        let ring = Ring::new(waker.clone()).map_err(Error::Ring)?;
        let seekable = self.seekable();
        let file = Arc::new(OwnedFd::from(self.file));
        let io = match seekable {
            true => writer::Writer::positioned(file.clone(), Arc::new(Limit::new(0))),
            false => writer::Writer::new(file.clone(), Arc::new(Limit::new(0))),
        };
        let start = match self.kind {
            Kind::Sparse { base } => Some(base),
            _ => None,
        };
        let half = Half { file: file.clone(), start };
        let pool = Pool::new(BUFFERS);
        Ok(Writer { file, kind: self.kind, ring, io, pool, half, part: None, end: 0 })
    }
}

/// An output that is being written, by the thread that opened it.
///
/// What lies between two writes reads as zeros: a hole in an empty regular file, written zeros
/// elsewhere. A stream takes offsets in rising order only. Writes that are small and follow each
/// other leave together. A failure may be told by a later call.
pub(super) struct Writer {
    file: Arc<OwnedFd>,
    kind: Kind,
    ring: Ring,
    io: writer::Writer<What>,
    pool: Pool,
    /// Dropped when nothing is in flight any more.
    half: Half,
    /// What was put and not handed on yet.
    part: Option<Part>,
    /// The end of what has been put.
    end: u64,
}

/// A dump that is not whole: a regular file is left empty, as it was when the dump began.
struct Half {
    file: Arc<OwnedFd>,
    start: Option<u64>,
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // Nothing else can be done about it.
            let _ = ftruncate(&self.file, start);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.io.abandon(&mut self.ring);
    }
}

struct Part {
    /// Of the first bytes.
    what: What,
    offset: u64,
    buffer: Buffer,
    len: usize,
}

impl Writer {
    pub(super) fn seekable(&self) -> bool {
        !matches!(self.kind, Kind::Stream)
    }

    /// Does it matter in which order memory comes? Where gaps must be filled it does.
    pub(super) fn any_order(&self) -> bool {
        matches!(self.kind, Kind::Sparse { .. })
    }

    /// Puts `bytes` at `offset`, all of them.
    pub(super) fn put(&mut self, what: What, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.fill_to(what, offset)?;
        self.append(what, offset, bytes)
    }

    /// A buffer of [`BUFFER_BYTES`] for [`Writer::put_runs`] and [`Writer::put_parts`].
    pub(super) fn buffer(&mut self) -> Result<Buffer, Error> {
        loop {
            if let Some(buffer) = self.pool.take().map_err(|error| Error::Ring(error.into()))? {
                return Ok(buffer);
            }
            assert!(self.io.wait(&mut self.ring)?, "every buffer is with the caller");
        }
    }

    /// Puts the first `len` bytes of `buffer` at `offset`. Outside of `runs` they are zeros, which
    /// may stay a hole.
    pub(super) fn put_runs(
        &mut self,
        what: What,
        offset: u64,
        buffer: Buffer,
        len: usize,
        runs: &[Span<usize>],
    ) -> Result<(), Error> {
        self.fill_to(what, offset)?;
        self.hand_on()?;
        let whole = 0..len;
        let buffer = self.pool.give_back(buffer);
        for run in if self.any_order() { runs } else { std::slice::from_ref(&whole) } {
            let mut gather = self.io.gather();
            gather.part(&buffer, run.clone());
            let at = self.base() + offset + run.start as u64;
            self.io.write(&mut self.ring, what, gather, at)?;
        }
        self.end = self.end.max(offset + len as u64);
        Ok(())
    }

    /// Puts parts of `buffer` one after another, from `offset` on. They are written from where they
    /// are; little is copied together with what comes before and after it, so that writes stay
    /// large.
    pub(super) fn put_parts(
        &mut self,
        what: What,
        offset: u64,
        buffer: Buffer,
        parts: &[Span<usize>],
    ) -> Result<(), Error> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes < COPIED_BYTES {
            let mut at = offset;
            for part in parts.iter().filter(|part| !part.is_empty()) {
                self.put(what, at, &buffer.bytes()[part.clone()])?;
                at += part.len() as u64;
            }
            self.pool.give_back(buffer);
            return Ok(());
        }
        self.fill_to(what, offset)?;
        self.hand_on()?;
        let buffer = self.pool.give_back(buffer);
        let mut gather = self.io.gather();
        parts.iter().for_each(|part| gather.part(&buffer, part.clone()));
        let at = self.base() + offset;
        self.io.write(&mut self.ring, what, gather, at)?;
        self.end = self.end.max(offset + bytes as u64);
        Ok(())
    }

    /// Ends the dump at `size`: a hole at the end becomes part of the file. The file's own offset
    /// is left there, so that whoever shares it goes on behind the dump.
    pub(super) fn finish(mut self, size: u64) -> Result<(), Error> {
        self.fill_to(What::FileEnd, size)?;
        self.hand_on()?;
        self.io.finish(&mut self.ring)?;
        let end = self.base() + size;
        let result = match self.kind {
            Kind::Sparse { .. } => {
                ftruncate(&self.file, end).and_then(|()| seek(&self.file, SeekFrom::Start(end)))
            }
            Kind::Positioned { .. } => seek(&self.file, SeekFrom::Start(end)),
            Kind::Stream => Ok(end),
        };
        result.map_err(|error| Error::Write { what: What::FileEnd, source: error.into() })?;
        self.half.start = None;
        Ok(())
    }

    fn base(&self) -> u64 {
        match self.kind {
            Kind::Sparse { base } | Kind::Positioned { base } => base,
            Kind::Stream => 0,
        }
    }

    fn append(&mut self, what: What, mut offset: u64, mut bytes: &[u8]) -> Result<(), Error> {
        if self.part.as_ref().is_some_and(|part| part.offset + part.len as u64 != offset) {
            self.hand_on()?;
        }
        while !bytes.is_empty() {
            let mut part = match self.part.take() {
                Some(part) => part,
                None => Part { what, offset, buffer: self.buffer()?, len: 0 },
            };
            let count = bytes.len().min(BUFFER_BYTES - part.len);
            part.buffer.room()[part.len..part.len + count].copy_from_slice(&bytes[..count]);
            part.len += count;
            offset += count as u64;
            bytes = &bytes[count..];
            let full = part.len == BUFFER_BYTES;
            self.part = Some(part);
            if full {
                self.hand_on()?;
            }
        }
        self.end = self.end.max(offset);
        Ok(())
    }

    /// Starts writing what was put.
    fn hand_on(&mut self) -> Result<(), Error> {
        let Some(Part { what, offset, buffer, len }) = self.part.take() else { return Ok(()) };
        let mut gather = self.io.gather();
        gather.part(&self.pool.give_back(buffer), 0..len);
        let at = self.base() + offset;
        Ok(self.io.write(&mut self.ring, what, gather, at)?)
    }

    /// Makes the gap up to `offset` read as zeros.
    fn fill_to(&mut self, what: What, offset: u64) -> Result<(), Error> {
        if self.any_order() || self.end >= offset {
            debug_assert!(self.seekable() || self.end == offset, "a stream was written backwards");
            return Ok(());
        }
        while self.end < offset {
            let count = (offset - self.end).min(ZEROS.len() as u64) as usize;
            self.append(what, self.end, &ZEROS[..count])?;
        }
        if self.seekable() {
            // What comes may lie in the gap, and writes in flight have no order.
            self.hand_on()?;
            self.io.finish(&mut self.ring)?;
        }
        Ok(())
    }
}

impl From<Failed<What>> for Error {
    fn from(failed: Failed<What>) -> Error {
        let Failed { what, error } = failed;
        match error {
            transfer::Error::Cancelled => Error::Cancelled,
            transfer::Error::System(source) => Error::Write { what, source },
            other => Error::Write { what, source: io::Error::other(other) },
        }
    }
}

/// Buffers of a dump.
const BUFFERS: usize = 8;

/// With less in a buffer, a copy costs less than writes of its own.
const COPIED_BYTES: usize = BUFFER_BYTES / 8;

/// Zeros for the gaps of targets that have no holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Kind {
    fn of(file: &mut File) -> io::Result<Kind> {
        let kind = file.metadata()?.file_type();
        if kind.is_block_device() {
            return Ok(Kind::Positioned { base: file.stream_position()? });
        }
        if !kind.is_file() || appends(file)? {
            return Ok(Kind::Stream);
        }
        let base = file.stream_position()?;
        file.set_len(base)?;
        Ok(Kind::Sparse { base })
    }
}

/// Was the file opened with `O_APPEND`? Positioned writes would then go to its end (pwrite(2),
/// "BUGS").
fn appends(file: &File) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(flags.contains(rustix::fs::OFlags::APPEND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn open(file: impl Into<OwnedFd>) -> Writer {
        Output::new(File::from(file.into())).unwrap().open(&Waker::new()).unwrap()
    }

    #[test]
    fn a_gap_in_a_regular_file_is_a_hole() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        let mut output = open(file.try_clone().unwrap());
        output.put(What::Memory, 1 << 20, b"end").unwrap();
        output.finish(2 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 6 + (2 << 20));
        assert!(file.metadata().unwrap().blocks() * 512 < 64 << 10);
        assert_eq!(file.stream_position().unwrap(), 6 + (2 << 20));
        let mut bytes = [1; 9];
        file.read_exact_at(&mut bytes, (1 << 20) + 6 - 6).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0\0\0end");
    }

    #[test]
    fn a_gap_in_a_pipe_or_an_appending_file_is_written() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut output = open(writer);
        assert!(!output.seekable());
        output.put(What::Memory, 0, b"a").unwrap();
        output.put(What::Memory, 4, b"b").unwrap();
        output.finish(6).unwrap();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"a\0\0\0b\0");

        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"kept").unwrap();
        let append = File::options().append(true).open(path.path()).unwrap();
        let mut output = open(append);
        assert!(!output.seekable());
        output.put(What::Memory, 2, b"x").unwrap();
        output.finish(3).unwrap();
        assert_eq!(std::fs::read(path.path()).unwrap(), b"kept\0\0x");
    }

    #[test]
    fn a_full_non_blocking_socket_is_waited_for() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut output = open(ours);
        let reader = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all.len()
        });
        output.put(What::Memory, 0, &vec![7; 4 << 20]).unwrap();
        output.finish(4 << 20).unwrap();
        assert_eq!(reader.join().unwrap(), 4 << 20);
    }

    #[test]
    fn half_a_dump_is_none() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        let mut output = open(file.try_clone().unwrap());
        for offset in 0..64 {
            output.put(What::Memory, offset << 18, &[1; 1 << 16]).unwrap();
        }
        drop(output);
        assert_eq!(file.metadata().unwrap().len(), 6);
    }

    #[test]
    fn a_full_disk_and_a_reader_gone_keep_their_reason() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = open(full);
        output.put(What::ElfHeader, 0, b"x").unwrap();
        let error = output.finish(1).unwrap_err();
        assert_eq!(error.to_string(), "dump: failed to write elf header: No space left on device");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output = open(writer);
        output.put(What::FlatHeader, 0, b"x").unwrap();
        let error = output.finish(1).unwrap_err();
        assert_eq!(error.to_string(), "dump: failed to write start flat header: Broken pipe");
    }
}
