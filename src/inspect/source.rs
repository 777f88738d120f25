//! A file read from front to back, with as much of it in memory as the item in hand needs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

const CHUNK_BYTES: usize = 1 << 20;

/// Bytes read and not consumed yet stand at the front of [`Source::input`].
pub(crate) struct Source {
    file: File,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Source {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, buffer: vec![0; CHUNK_BYTES], start: 0, end: 0 })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn input(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Goes on at this offset of the file.
    pub(crate) fn seek(&mut self, to: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(to))?;
        (self.start, self.end) = (0, 0);
        Ok(())
    }

    /// Reads until the input has at least `needed` bytes; false if the file ends before.
    pub(crate) fn fill(&mut self, needed: usize) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if needed > self.buffer.len() {
            self.buffer.resize(needed.next_multiple_of(CHUNK_BYTES), 0);
        }
        while self.end < needed {
            match self.file.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
