//! The image of one RAM block, by offset in the block, in a sparse file.

use crate::stream::PAGE_BYTES;
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) struct Image {
    file: File,
    bytes: u64,
    /// Nothing was written at or behind this offset.
    written_end: u64,
}

impl Image {
    /// An image in this file, which is empty, and can be read.
    pub(crate) fn new(file: File) -> Self {
        Self { file, bytes: 0, written_end: 0 }
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Gives the image the block's size; what is never written stays a hole.
    pub(crate) fn resize(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn write(&mut self, offset: u64, page: &[u8; PAGE_BYTES]) -> io::Result<()> {
        self.written_end = self.written_end.max(offset + PAGE_BYTES as u64);
        self.file.write_all_at(page, offset)
    }

    pub(crate) fn zero(&mut self, offset: u64) -> io::Result<()> {
        if offset >= self.written_end || xbzrle::is_zero(&self.read(offset)?) {
            return Ok(());
        }
        self.write(offset, &[0; PAGE_BYTES])
    }

    /// Part of a run of pages, from any byte on.
    pub(crate) fn write_piece(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.written_end = self.written_end.max(offset + bytes.len() as u64);
        self.file.write_all_at(bytes, offset)
    }

    /// Makes whole pages zero, however many they are.
    pub(crate) fn zero_range(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = (offset + bytes).min(self.written_end);
        if offset < end {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, offset, end - offset)?;
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, offset: u64, delta: &[u8]) -> io::Result<()> {
        let mut page = self.read(offset)?;
        xbzrle::decode(delta, &mut page)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        self.write(offset, &page)
    }

    fn read(&self, offset: u64) -> io::Result<[u8; PAGE_BYTES]> {
        let mut page = [0; PAGE_BYTES];
        self.file.read_exact_at(&mut page, offset)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_zeros_and_deltas_make_the_block() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut image = Image::new(file.reopen().unwrap());
        image.resize(4 * PAGE_BYTES as u64).unwrap();
        image.write(4096, &[1; PAGE_BYTES]).unwrap();
        image.write(8192, &[2; PAGE_BYTES]).unwrap();
        image.zero(8192).unwrap();
        image.zero(0).unwrap();
        image.write_piece(12288 + 5, &[7; 100]).unwrap();
        image.zero_range(12288, 4096).unwrap();
        image.apply(4096, &[0, 1, 9]).unwrap();
        assert!(image.apply(4096, &[0, 1]).is_err());
        let mut expected = vec![0; 4 * PAGE_BYTES];
        expected[4096..8192].fill(1);
        expected[4096] = 9;
        assert_eq!(std::fs::read(file.path()).unwrap(), expected);
    }
}
