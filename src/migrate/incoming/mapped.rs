//! Pages at fixed places of a file (capability `mapped-ram` of the source): read from there as the
//! stream lists their blocks. A page that the bitmap does not name is zero, whatever the file holds
//! in its place.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, SeekFrom, fstat, seek};

use super::Error;
use super::apply::Blocks;
use crate::io::connection::Medium;
use crate::io::{self, Connection, Ring, SocketReader};
use crate::memory::{PAGE_BYTES, PageSet};
use crate::stream::mapped::MappedHeader;
use crate::stream::{self, ListedBlock, Problem};

/// Bytes of a bitmap that are looked at together: those of 2 GiB.
const BITMAP_BYTES: usize = 64 << 10;
/// Bytes of pages that are read together.
const PART_BYTES: u64 = 1 << 20;

/// How the pages of a block come.
pub(super) enum Restore {
    /// All are read now.
    Eager,
    /// The file is mapped, and they are read when they are touched. Called, once, when somebody has
    /// written to it.
    Mapped(Box<dyn FnOnce() + Send>),
}

/// The file that the stream is read from.
pub(super) struct MappedFile(Arc<OwnedFd>);

impl MappedFile {
    /// `None`: a stream that cannot be read at places.
    pub(super) fn of(connection: &Connection) -> Option<Self> {
        (connection.medium == Medium::File).then(|| Self(connection.fd.clone()))
    }

    /// Restores the pages of a block, which is number `number` of `blocks`.
    pub(super) fn restore(
        &self,
        ring: &mut Ring,
        blocks: &Blocks,
        number: u8,
        listed: &ListedBlock,
        header: &MappedHeader,
        how: Restore,
    ) -> Result<(), Error> {
        self.check_length(listed, header)?;
        let mut reader = SocketReader::new(self.0.clone());
        let cut = |error: Error| match error {
            Error::Io(io::Error::Closed) => Error::FileCut(listed.name.clone()),
            other => other,
        };
        let pages = bitmap(ring, &mut reader, listed, header).map_err(cut)?;
        let is_read = matches!(how, Restore::Eager);
        if let Restore::Mapped(changed) = how {
            let file = self.0.try_clone().map_err(io::Error::from)?;
            blocks.lay_over(number, file.into(), header.pages_offset, changed)?;
        }
        let mut done = 0;
        for run in pages.ranges() {
            let (start, end) = (run.start * PAGE_BYTES, run.end * PAGE_BYTES);
            blocks.zero(number, done, start - done)?;
            // What is mapped is there.
            let read = if is_read { start..end } else { end..end };
            for at in read.step_by(PART_BYTES as usize) {
                reader.go_on_at(header.pages_offset + at);
                let bytes = PART_BYTES.min(end - at);
                blocks.receive(ring, &mut reader, number, at, bytes).map_err(cut)?;
            }
            done = end;
        }
        blocks.zero(number, done, listed.bytes - done)
    }

    /// The places of all pages lie in the file, whether they have anything in them or not.
    fn check_length(&self, listed: &ListedBlock, header: &MappedHeader) -> Result<(), Error> {
        let (has, end) = (self.bytes()?, header.end(listed.bytes));
        if end <= has {
            return Ok(());
        }
        let name = &listed.name;
        let says = format!("the file ends at {has:#x}, and the pages of {name} at {end:#x}");
        let problem = Problem::Says(says);
        let place = header.pages_offset;
        Err(stream::Error::new("section ram", "mapped-ram pages", place, problem).into())
    }

    fn bytes(&self) -> Result<u64, Error> {
        let stat = fstat(&self.0).map_err(std::io::Error::from).map_err(io::Error::from)?;
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(stat.st_size as u64);
        }
        // A disk tells its size in this way; nobody reads on at the descriptor's own position.
        let end = seek(&self.0, SeekFrom::End(0)).map_err(std::io::Error::from);
        Ok(end.map_err(io::Error::from)?)
    }
}

/// The pages that the bitmap names.
fn bitmap(
    ring: &mut Ring,
    reader: &mut SocketReader,
    listed: &ListedBlock,
    header: &MappedHeader,
) -> Result<PageSet, Error> {
    let pages = listed.bytes / PAGE_BYTES;
    let mut left = MappedHeader::bitmap_bytes(listed.bytes) as usize;
    let mut words = Vec::with_capacity(left / 8);
    reader.go_on_at(header.bitmap_offset);
    while left > 0 {
        let bytes = left.min(BITMAP_BYTES);
        for word in reader.need(ring, bytes)?.as_chunks().0 {
            words.push(header.word(words.len() as u64, *word, &listed.name, pages)?);
        }
        reader.consume(bytes);
        left -= bytes;
    }
    Ok(PageSet::from_words(words, pages))
}
