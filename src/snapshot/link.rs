//! One file of a chain: a mapped-ram file, or an increment.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::ThreadPool;
use rayon::prelude::*;

use super::error::{Error, failed};
use super::format::{
    Block, Catalogue, HEADER_BYTES, Header, MAGIC, NoHeader, Now, RAM_BYTES_MAX, Run,
};
use super::head;
use super::sum::{PIECE_BYTES, sum, sum_of};
use crate::memory::{PAGE_BYTES, PageSet};
use crate::stream;
use crate::stream::mapped::MappedHeader;

/// A file that is open, and what is in it.
pub(crate) struct Link {
    pub name: PathBuf,
    pub(super) file: File,
    is: Is,
    pub(super) holds: Holds,
}

/// What tells a file from others, and from itself once it was written to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Is {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

pub(super) enum Holds {
    Mapped(Vec<Places>),
    Increment { id: [u8; 16], catalogue: Catalogue },
}

/// A block of a mapped-ram file.
pub(super) struct Places {
    pub name: String,
    pub bytes: u64,
    header: MappedHeader,
    pages: PageSet,
}

/// Bytes of a file that have a sum.
pub(super) struct Summed {
    at: u64,
    bytes: u64,
    sum: u64,
}

impl Is {
    fn of(file: &File) -> io::Result<Self> {
        let is = file.metadata()?;
        let modified = (is.mtime(), is.mtime_nsec());
        Ok(Self { device: is.dev(), inode: is.ino(), bytes: is.len(), modified })
    }
}

impl Link {
    /// Reads what is in `file`, whose name is `name`.
    pub(super) fn read(file: File, name: &Path) -> Result<Self, Error> {
        let is = Is::of(&file).map_err(failed(name))?;
        let mut magic = [0; 8];
        let holds = match file.read_exact_at(&mut magic, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(failed(name)(error));
            }
            Ok(()) if magic == MAGIC => increment(&file, name, is.bytes)?,
            Ok(()) if magic.starts_with(&stream::MAGIC.to_be_bytes()) => {
                Holds::Mapped(mapped(&file, name, is.bytes)?)
            }
            _ => return Err(Error::NoSnapshot(name.to_owned())),
        };
        Ok(Self { name: name.to_owned(), file, is, holds })
    }

    pub(super) fn is_same_file(&self, other: &Link) -> bool {
        (self.is.device, self.is.inode) == (other.is.device, other.is.inode)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.is.bytes
    }

    /// Fails if somebody has written to it since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        match Is::of(&self.file).map_err(failed(&self.name))? == self.is {
            true => Ok(()),
            false => Err(Error::Changed(self.name.clone())),
        }
    }

    pub(super) fn catalogue(&self) -> Option<&Catalogue> {
        match &self.holds {
            Holds::Mapped(_) => None,
            Holds::Increment { catalogue, .. } => Some(catalogue),
        }
    }

    /// Names and sizes of its blocks.
    pub(super) fn blocks(&self) -> Vec<(&str, u64)> {
        match &self.holds {
            Holds::Mapped(blocks) => {
                blocks.iter().map(|block| (&*block.name, block.bytes)).collect()
            }
            Holds::Increment { catalogue, .. } => {
                catalogue.blocks.iter().map(|block| (&*block.name, block.bytes)).collect()
            }
        }
    }

    /// The pages of `block` that may hold something else than zeros, where those in `below` did in
    /// the base.
    pub(super) fn data_pages(&self, block: usize, below: PageSet) -> PageSet {
        let mut pages = below;
        match &self.holds {
            Holds::Mapped(blocks) => return blocks[block].pages.clone(),
            Holds::Increment { catalogue, .. } => {
                for run in &catalogue.blocks[block].runs {
                    let range = run.first..run.first + run.pages;
                    match run.now {
                        Now::Zero => pages.remove_range(range),
                        Now::Whole { .. } | Now::Delta { .. } => pages.insert_range(range),
                    }
                }
            }
        }
        pages
    }

    /// Puts what it says of the pages of `block` from `first` on into `out`, which holds what the base
    /// says.
    pub(super) fn apply(&self, block: usize, first: u64, out: &mut [u8]) -> Result<(), Error> {
        match &self.holds {
            Holds::Mapped(blocks) => self.read_places(&blocks[block], first, out),
            Holds::Increment { catalogue, .. } => {
                self.apply_runs(&catalogue.blocks[block], first, out)
            }
        }
    }

    fn read_places(&self, block: &Places, first: u64, out: &mut [u8]) -> Result<(), Error> {
        out.fill(0);
        let end = first + out.len() as u64 / PAGE_BYTES;
        let mut at = first;
        while let Some(start) = block.pages.next(at).filter(|start| *start < end) {
            at = block.pages.next_absent(start).min(end);
            let bytes = &mut out[place(start - first)..place(at - first)];
            self.read_exact(bytes, block.header.pages_offset + start * PAGE_BYTES)?;
        }
        Ok(())
    }

    fn apply_runs(&self, block: &Block, first: u64, out: &mut [u8]) -> Result<(), Error> {
        let end = first + out.len() as u64 / PAGE_BYTES;
        let from = block.runs.partition_point(|run| run.first + run.pages <= first);
        for run in block.runs[from..].iter().take_while(|run| run.first < end) {
            self.apply_run(run, first, end, out)?;
        }
        Ok(())
    }

    fn apply_run(&self, run: &Run, first: u64, end: u64, out: &mut [u8]) -> Result<(), Error> {
        let (start, last) = (run.first.max(first), (run.first + run.pages).min(end));
        let bytes = &mut out[place(start - first)..place(last - first)];
        match run.now {
            Now::Zero => bytes.fill(0),
            Now::Whole { at } => self.read_exact(bytes, at + (start - run.first) * PAGE_BYTES)?,
            Now::Delta { at, bytes: length } => {
                let mut delta = [0; PAGE_BYTES as usize];
                let delta = &mut delta[..length.into()];
                self.read_exact(delta, at)?;
                let page: &mut [u8; PAGE_BYTES as usize] =
                    bytes.try_into().expect("a delta is of one page");
                xbzrle::decode(delta, page).map_err(|_| Error::Broken {
                    file: self.name.clone(),
                    what: "a delta that is none",
                    offset: at,
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn read_exact(&self, bytes: &mut [u8], at: u64) -> Result<(), Error> {
        self.file.read_exact_at(bytes, at).map_err(failed(&self.name))
    }

    /// What has a sum of an increment. The header's and the catalogue's were compared when it was
    /// opened.
    pub(super) fn chunks(&self) -> Vec<Summed> {
        let Some(catalogue) = self.catalogue() else { return Vec::new() };
        let mut at = HEADER_BYTES;
        let chunks = catalogue.chunks.iter().map(|chunk| {
            at += chunk.bytes;
            Summed { at: at - chunk.bytes, bytes: chunk.bytes, sum: chunk.sum }
        });
        chunks.collect()
    }

    /// The same of a mapped-ram file, whose sums are an increment's.
    pub(super) fn pieces(&self, sums: &[u64]) -> Vec<Summed> {
        let pieces = (0..self.is.bytes).step_by(PIECE_BYTES as usize).zip(sums);
        let bytes = |at| PIECE_BYTES.min(self.is.bytes - at);
        pieces.map(|(at, sum)| Summed { at, bytes: bytes(at), sum: *sum }).collect()
    }

    /// Sums of all pieces of the file.
    pub(super) fn sums(&self, pool: &ThreadPool, go_on: GoOn<'_>) -> Result<Vec<u64>, Error> {
        let pieces: Vec<u64> = (0..self.is.bytes).step_by(PIECE_BYTES as usize).collect();
        pool.install(|| {
            let sum = |buffer: &mut Vec<u8>, at: &u64| {
                go_on().then_some(()).ok_or(Error::Cancelled)?;
                let bytes = PIECE_BYTES.min(self.is.bytes - at);
                sum_of(&self.file, *at, bytes, buffer).map_err(failed(&self.name))
            };
            pieces.par_iter().map_init(Vec::new, sum).collect()
        })
    }

    /// Compares all sums.
    pub(super) fn verify(
        &self,
        summed: &[Summed],
        pool: &ThreadPool,
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        pool.install(|| {
            summed.par_iter().try_for_each_init(Vec::new, |buffer, part| {
                go_on().then_some(()).ok_or(Error::Cancelled)?;
                let found = sum_of(&self.file, part.at, part.bytes, buffer);
                match found.map_err(failed(&self.name))? == part.sum {
                    true => Ok(()),
                    false => Err(Error::Broken {
                        file: self.name.clone(),
                        what: "a checksum is wrong",
                        offset: part.at,
                    }),
                }
            })
        })
    }
}

/// Asked now and then by what takes long; false ends it.
pub type GoOn<'a> = &'a (dyn Fn() -> bool + Sync);

fn place(pages: u64) -> usize {
    (pages * PAGE_BYTES) as usize
}

fn increment(file: &File, name: &Path, bytes: u64) -> Result<Holds, Error> {
    let broken = |(what, offset)| Error::Broken { file: name.to_owned(), what, offset };
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0).map_err(failed(name))?;
    let header = Header::parse(&header, bytes).map_err(|error| match error {
        NoHeader::Version(found) => Error::Newer { file: name.to_owned(), found },
        NoHeader::Problem(problem) => broken(problem),
    })?;
    let mut catalogue = vec![0; header.catalogue_bytes as usize];
    file.read_exact_at(&mut catalogue, header.catalogue).map_err(failed(name))?;
    if sum(&catalogue) != header.catalogue_sum {
        return Err(broken(("the catalogue's checksum is wrong", header.catalogue)));
    }
    let parsed = Catalogue::parse(&catalogue, header.catalogue);
    let catalogue = parsed.map_err(|(what, at)| broken((what, header.catalogue + at)))?;
    Ok(Holds::Increment { id: header.id, catalogue })
}

fn mapped(file: &File, name: &Path, file_bytes: u64) -> Result<Vec<Places>, Error> {
    let broken = |what, offset| Error::Broken { file: name.to_owned(), what, offset };
    let stream = |source| Error::Stream { file: name.to_owned(), source };
    let (mut blocks, mut ram) = (Vec::new(), 0u64);
    for listed in head::read(file, name)?.blocks {
        let Some(header) = listed.mapped else { return Err(Error::NoPlaces(name.to_owned())) };
        ram = ram.saturating_add(listed.bytes);
        if ram > RAM_BYTES_MAX {
            return Err(broken("the blocks are larger than a guest's", header.bitmap_offset));
        }
        if header.end(listed.bytes) > file_bytes {
            return Err(broken("the file is cut short", file_bytes));
        }
        let pages = listed.bytes / PAGE_BYTES;
        let mut bitmap = vec![0; MappedHeader::bitmap_bytes(listed.bytes) as usize];
        file.read_exact_at(&mut bitmap, header.bitmap_offset).map_err(failed(name))?;
        let words = (0..).zip(bitmap.as_chunks().0);
        let words = words.map(|(index, word)| header.word(index, *word, &listed.name, pages));
        let words = words.collect::<Result<Vec<u64>, _>>().map_err(stream)?;
        let pages = PageSet::from_words(words, pages);
        blocks.push(Places { name: listed.name, bytes: listed.bytes, header, pages });
    }
    if blocks.is_empty() {
        return Err(Error::NoPlaces(name.to_owned()));
    }
    Ok(blocks)
}
