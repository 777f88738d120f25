//! Where a dump goes: a file that can have holes, one that cannot, or a stream.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Error, What};

/// Zeros for the gaps of targets that have no holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The target of one dump. Offsets count from where the file stood when it was handed over.
///
/// What lies between two writes reads as zeros: a hole in an empty regular file, written zeros elsewhere. A
/// stream takes offsets in rising order only.
#[derive(Debug)]
pub struct Output {
    file: File,
    kind: Kind,
    /// The end of what has been written, for streams the place of the next byte.
    end: u64,
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
    /// Looks at what `file` is. A regular file is cut off at its current offset, where the dump will begin.
    pub fn new(mut file: File) -> Result<Output, Error> {
        let kind = Kind::of(&mut file).map_err(Error::Target)?;
        Ok(Output { file, kind, end: 0 })
    }

    /// Can it be written in any order?
    pub fn seekable(&self) -> bool {
        !matches!(self.kind, Kind::Stream)
    }

    /// Writes `bytes` at `offset`, all of them.
    pub(super) fn put(&mut self, what: What, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.fill_to(what, offset)?;
        let result = match self.kind {
            Kind::Sparse { base } | Kind::Positioned { base } => self.file.write_all_at(bytes, base + offset),
            Kind::Stream => write_stream(&mut self.file, bytes),
        };
        result.map_err(|source| Error::Write { what, source })?;
        self.end = self.end.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// Ends the dump at `size`: a hole at the end becomes part of the file. The file's own offset is left there,
    /// so that whoever shares it goes on behind the dump.
    pub(super) fn finish(mut self, size: u64) -> Result<(), Error> {
        self.fill_to(What::FileEnd, size)?;
        let result = match self.kind {
            Kind::Sparse { base } => self
                .file
                .set_len(base + size)
                .and_then(|()| self.file.seek(SeekFrom::Start(base + size)).map(drop)),
            Kind::Positioned { base } => self.file.seek(SeekFrom::Start(base + size)).map(drop),
            Kind::Stream => Ok(()),
        };
        result.map_err(|source| Error::Write { what: What::FileEnd, source })
    }

    /// Makes the gap up to `offset` read as zeros.
    fn fill_to(&mut self, what: What, offset: u64) -> Result<(), Error> {
        if matches!(self.kind, Kind::Sparse { .. }) {
            return Ok(());
        }
        while self.end < offset {
            let count = (offset - self.end).min(ZEROS.len() as u64) as usize;
            let result = match self.kind {
                Kind::Positioned { base } => self.file.write_all_at(&ZEROS[..count], base + self.end),
                Kind::Stream | Kind::Sparse { .. } => write_stream(&mut self.file, &ZEROS[..count]),
            };
            result.map_err(|source| Error::Write { what, source })?;
            self.end += count as u64;
        }
        debug_assert!(self.seekable() || self.end == offset, "a stream was written backwards");
        Ok(())
    }
}

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

/// Was the file opened with `O_APPEND`? Positioned writes would then go to its end (pwrite(2), "BUGS").
fn appends(file: &File) -> io::Result<bool> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(true);
    };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    Ok(flags.is_none_or(|flags| flags & libc::O_APPEND != 0))
}

/// Writes everything, waiting for room where the descriptor is non-blocking.
fn write_stream(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_room(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for_room(file: &File) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, file.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0))?;
    let mut ready = [EpollEvent::default()];
    match epoll.wait(-1, &mut ready) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_gap_in_a_regular_file_is_a_hole() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        let mut output = Output::new(file.try_clone().unwrap()).unwrap();
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
        let mut output = Output::new(File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
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
        let mut output = Output::new(append).unwrap();
        assert!(!output.seekable());
        output.put(What::Memory, 2, b"x").unwrap();
        output.finish(3).unwrap();
        assert_eq!(std::fs::read(path.path()).unwrap(), b"kept\0\0x");
    }

    #[test]
    fn a_full_non_blocking_socket_is_waited_for() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut output = Output::new(File::from(std::os::fd::OwnedFd::from(ours))).unwrap();
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
    fn a_full_disk_and_a_reader_gone_keep_their_reason() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output::new(full).unwrap();
        let error = output.put(What::ElfHeader, 0, b"x").unwrap_err();
        assert_eq!(error.to_string(), "dump: failed to write elf header: No space left on device");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output = Output::new(File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
        let error = output.put(What::FlatHeader, 0, b"x").unwrap_err();
        assert_eq!(error.to_string(), "dump: failed to write start flat header: Broken pipe");
    }
}
