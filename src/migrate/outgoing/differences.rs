//! What differs from a snapshot (parameter `x-godwit-base`): each page that would travel is compared
//! with the base's, and goes into the file whole or as a delta, whichever is shorter, or not at all.
//! [`crate::snapshot`] has the file; what is behind its base is read, and compared with its checksums,
//! before the first page, while the guest runs.
//!
//! One channel writes all pages, one behind the other: a later version of a page leaves the earlier one
//! where it is, and the catalogue names the last.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;
use rayon::prelude::*;
use xbzrle::Outcome;
use xbzrle::parallel::Output;

use super::error::Error;
use super::framing::{Framing, ZeroRules};
use super::source::Source;
use crate::io::{self, Connection, Gather, Writer};
use crate::memory::{GuestRam, PAGE_BYTES, PageSet};
use crate::migrate::progress::Progress;
use crate::pages::PageSource;
use crate::snapshot::{Chain, HEADER_BYTES, Record, Save, Sum, Written};

/// Pages that are read, compared and encoded together.
const UNIT_PAGES: u64 = 256;

type Page = [u8; PAGE_BYTES as usize];

/// The file, until it is whole.
pub(super) struct Increment {
    save: Box<Save>,
    progress: Arc<Progress>,
    written: Arc<Mutex<Written>>,
    /// The guest's, with their sizes.
    blocks: Vec<(String, u64)>,
    /// Where the stream's head ends, and its tail begins.
    head: u64,
    tail: u64,
}

/// Lays out what differs.
pub(super) struct Differences {
    chain: Arc<Chain>,
    pool: Arc<ThreadPool>,
    written: Arc<Mutex<Written>>,
    /// For each block of the guest: its number in the base, and which of its pages hold anything there.
    bases: Vec<(usize, PageSet)>,
    /// Of the send being filled.
    sum: Sum,
}

/// What became of a page.
enum Difference {
    None,
    Zero,
    Whole,
    Delta(Vec<u8>),
}

/// The stream goes into the file behind the room for its header.
pub(super) fn connection(save: &Save) -> Result<Connection, Error> {
    let mut file = save.file().try_clone().map_err(io::Error::from)?;
    file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(io::Error::from)?;
    Ok(Connection::from_fd(file.into()))
}

/// The guest's, as a chain of snapshots knows them.
pub(in crate::migrate) fn blocks_of(ram: &GuestRam) -> Vec<(String, u64)> {
    ram.blocks().iter().map(|block| (block.name().to_owned(), block.bytes())).collect()
}

impl Increment {
    /// Reads all that the file builds upon.
    pub(super) fn new(source: &Source, mut save: Box<Save>) -> Result<Self, Error> {
        save.verify_base(&|| !source.waker.is_cancelled())?;
        let blocks = blocks_of(source.guest.ram());
        let (progress, written) = (source.progress.clone(), Arc::default());
        Ok(Self { save, progress, written, blocks, head: 0, tail: 0 })
    }

    /// The stream's head ends at `head` of the file, and pages follow: makes what lays them out.
    pub(super) fn begin_pages(&mut self, head: u64) -> Result<Differences, Error> {
        (self.head, self.tail) = (head, head);
        let chain = self.save.chain.clone();
        let base = |(name, bytes): &(String, u64)| {
            let number = chain.block(name, *bytes)?;
            Ok::<_, Error>((number, chain.data_pages(number)))
        };
        let bases = self.blocks.iter().map(base).collect::<Result<Vec<_>, _>>()?;
        *lock(&self.written) = Written {
            end: head,
            records: bases.iter().map(|_| BTreeMap::new()).collect(),
            chunks: Vec::new(),
        };
        let (pool, written) = (self.save.pool.clone(), self.written.clone());
        Ok(Differences { chain, pool, written, bases, sum: Sum::default() })
    }

    /// Where the rest of the stream goes, behind all pages.
    pub(super) fn end_pages(&mut self) -> u64 {
        self.tail = lock(&self.written).end;
        self.tail
    }

    /// The stream has ended where `writer` stands: the file gets its catalogue, its header and its
    /// name.
    pub(super) fn finish(self, writer: &Writer) -> Result<(), Error> {
        let end = writer.place().ok_or(Error::MappedNeedsFile)?;
        let written = lock(&self.written);
        let count = |wanted: fn(&Record) -> bool| {
            let records = written.records.iter().flat_map(BTreeMap::values);
            records.filter(|record| wanted(record)).count() as u64
        };
        // What was counted meanwhile was compared; this is in the file.
        let counters = &self.progress.counters;
        counters.normal.store(count(|is| matches!(is, Record::Whole(_))), Ordering::Relaxed);
        counters.deltas.store(count(|is| matches!(is, Record::Delta(..))), Ordering::Relaxed);
        counters.duplicate.store(count(|is| *is == Record::Zero), Ordering::Relaxed);
        Ok(self.save.finish(self.head, self.tail..end, &self.blocks, &written)?)
    }
}

impl Differences {
    /// Puts those of `pages`, which are copies of the block's from `first` on, into the send that differ
    /// from the base's.
    fn put(
        &mut self,
        block: usize,
        first: u64,
        pages: &[Page],
        gather: &mut Gather,
    ) -> Result<(), Error> {
        let number = self.bases[block].0;
        let mut old = vec![[0; PAGE_BYTES as usize]; pages.len()];
        self.chain.read(number, first, old.as_flattened_mut())?;
        let found: Vec<Difference> = match pages.len() {
            1 => vec![difference(&old[0], &pages[0])],
            _ => self.pool.install(|| {
                old.par_iter().zip(pages).map(|(old, new)| difference(old, new)).collect()
            }),
        };
        let mut written = lock(&self.written);
        let Written { end, records, .. } = &mut *written;
        for ((page, bytes), difference) in (first..).zip(pages).zip(&found) {
            let (bytes, record): (&[u8], _) = match difference {
                Difference::None => {
                    records[block].remove(&page);
                    continue;
                }
                Difference::Zero => (&[], Record::Zero),
                Difference::Whole => (bytes, Record::Whole(*end)),
                Difference::Delta(delta) => (delta, Record::Delta(*end, delta.len() as u16)),
            };
            gather.own().extend_from_slice(bytes);
            self.sum.add(bytes);
            *end += bytes.len() as u64;
            records[block].insert(page, record);
        }
        Ok(())
    }
}

fn difference(old: &Page, new: &Page) -> Difference {
    let mut delta = [0; PAGE_BYTES as usize];
    match xbzrle::encode(old, new, &mut delta) {
        Outcome::Unchanged => Difference::None,
        _ if xbzrle::is_zero(new) => Difference::Zero,
        Outcome::Delta(bytes) if bytes < new.len() => Difference::Delta(delta[..bytes].to_vec()),
        Outcome::Delta(_) | Outcome::TooLong => Difference::Whole,
    }
}

impl Framing for Differences {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        _: ZeroRules,
        _: &mut Gather,
    ) -> Result<(), Error> {
        let block = usize::from(source.index());
        let mut written = lock(&self.written);
        let records = &mut written.records[block];
        let stale: Vec<u64> = records.range(pages.clone()).map(|(page, _)| *page).collect();
        stale.iter().for_each(|page| {
            records.remove(page);
        });
        let mut at = pages.start;
        while let Some(page) = self.bases[block].1.next(at).filter(|page| *page < pages.end) {
            records.insert(page, Record::Zero);
            at = page + 1;
        }
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        let mut copies = Vec::new();
        for first in pages.clone().step_by(UNIT_PAGES as usize) {
            let unit = first..(first + UNIT_PAGES).min(pages.end);
            copies.resize((unit.end - unit.start) as usize, [0; PAGE_BYTES as usize]);
            unit.zip(&mut copies).for_each(|(page, copy)| source.copy(page, copy));
            self.put(source.index().into(), first, &copies, gather)?;
        }
        Ok(())
    }

    fn copied(
        &mut self,
        source: &PageSource,
        page: u64,
        bytes: &[u8],
        gather: &mut Gather,
    ) -> Result<(), Error> {
        let (pages, _) = bytes.as_chunks();
        self.put(source.index().into(), page, pages, gather)
    }

    fn place(&self, _: &PageSource, _: u64) -> Option<u64> {
        Some(lock(&self.written).end)
    }

    fn deltas(&mut self, _: &Output, _: &mut Gather) {
        unreachable!("xbzrle does not go with x-godwit-base")
    }

    fn seal(&mut self, _: &mut Gather) {
        let chunk = self.sum.take();
        if chunk.0 > 0 {
            lock(&self.written).chunks.push(chunk);
        }
    }
}

fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}
