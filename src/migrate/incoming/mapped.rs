//! Pages at fixed places of a file (capability `mapped-ram` of the source): read from there as the
//! stream lists their blocks. A page that the bitmap does not name is zero, whatever the file holds
//! in its place.
//!
//! Several threads read, each a stretch of about a MiB at a time, the next that nobody has.

use std::iter::once;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

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
/// Parts that a thread takes at most, where pages lie one by one.
const PARTS_MAX: usize = 256;
/// A thread more is worth it for so many bytes.
const THREAD_BYTES: u64 = 8 << 20;

/// How the pages of a block come.
pub(super) enum Restore {
    /// All are read now, by up to so many threads.
    Eager(u8),
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
        let threads = match how {
            Restore::Eager(threads) => threads,
            Restore::Mapped(changed) => {
                let file = self.0.try_clone().map_err(io::Error::from)?;
                blocks.lay_over(number, file.into(), header.pages_offset, changed)?;
                0
            }
        };
        let is_read = threads > 0;
        let parts = Mutex::new(parts(&pages, listed.bytes, is_read));
        let has_failed = AtomicBool::new(false);
        let work = |ring: &mut Ring, reader: &mut SocketReader| {
            while !has_failed.load(Ordering::Relaxed) {
                let taken = take(&mut *parts.lock().unwrap_or_else(PoisonError::into_inner));
                if taken.is_empty() {
                    break;
                }
                for part in taken {
                    let done = match part {
                        Part::Zeros(at) => blocks.zero(number, at.start, at.end - at.start),
                        Part::Pages(at) => {
                            reader.go_on_at(header.pages_offset + at.start);
                            blocks.receive(ring, reader, number, at.start, at.end - at.start)
                        }
                    };
                    done.inspect_err(|_| has_failed.store(true, Ordering::Relaxed)).map_err(cut)?;
                }
            }
            Ok(())
        };
        let read = if is_read { pages.count() * PAGE_BYTES } else { 0 };
        let others = u64::from(threads).min(read.div_ceil(THREAD_BYTES)).saturating_sub(1);
        let waker = ring.waker().clone();
        thread::scope(|scope| {
            let start = |number| {
                let (work, waker) = (&work, waker.clone());
                let run = move || {
                    let mut ring = Ring::new(waker)?;
                    work(&mut ring, &mut SocketReader::new(self.0.clone()))
                };
                // Without it the others do its part.
                thread::Builder::new()
                    .name(format!("restore {number}"))
                    .spawn_scoped(scope, run)
                    .ok()
            };
            let others: Vec<_> = (1..=others).map_while(start).collect();
            let own = work(ring, &mut reader);
            let results =
                others.into_iter().map(|other| other.join().unwrap_or(Err(Error::Panicked)));
            results.fold(own, Result::and)
        })
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

/// A range (bytes) of a block.
enum Part {
    Zeros(Range<u64>),
    /// To be read.
    Pages(Range<u64>),
}

/// All of a block of `bytes` bytes, in order. What is mapped is there and not read.
fn parts(pages: &PageSet, bytes: u64, is_read: bool) -> impl Iterator<Item = Part> + '_ {
    let runs = pages.ranges().map(|run| run.start * PAGE_BYTES..run.end * PAGE_BYTES);
    let mut done = 0;
    runs.chain(once(bytes..bytes)).flat_map(move |run| {
        let zeros = Part::Zeros(done..run.start);
        done = run.end;
        let read = if is_read { run } else { run.end..run.end };
        let end = read.end;
        let pages = move |at| Part::Pages(at..end.min(at + PART_BYTES));
        once(zeros).chain(read.step_by(PART_BYTES as usize).map(pages))
    })
}

/// What one thread does next.
fn take(parts: &mut impl Iterator<Item = Part>) -> Vec<Part> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    while bytes < PART_BYTES
        && taken.len() < PARTS_MAX
        && let Some(part) = parts.next()
    {
        if let Part::Pages(at) = &part {
            bytes += at.end - at.start;
        }
        taken.push(part);
    }
    taken
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_is_somebodys_part_once() {
        let bytes = 4 * PART_BYTES;
        let every_third: Vec<u64> = (0..bytes / PAGE_BYTES).filter(|page| page % 3 == 1).collect();
        let runs: Vec<u64> = (5..300).chain(301..700).chain([1023]).collect();
        for pages in [vec![], every_third, runs, (0..bytes / PAGE_BYTES).collect()] {
            let mut set = PageSet::new(bytes / PAGE_BYTES);
            for page in &pages {
                set.insert(*page);
            }
            let mut all = parts(&set, bytes, true);
            let (mut at, mut read) = (0, PageSet::new(bytes / PAGE_BYTES));
            loop {
                let taken = take(&mut all);
                if taken.is_empty() {
                    break;
                }
                for part in taken {
                    let (Part::Zeros(range) | Part::Pages(range)) = &part;
                    assert_eq!(range.start, at);
                    at = range.end;
                    if let Part::Pages(range) = &part {
                        assert!(range.end - range.start <= PART_BYTES);
                        let pages = range.start / PAGE_BYTES..range.end / PAGE_BYTES;
                        read.insert_range(pages);
                    }
                }
            }
            assert_eq!((at, read), (bytes, set.clone()));
            assert!(!parts(&set, bytes, false).any(|part| matches!(part, Part::Pages(_))));
        }
    }
}
