//! A snapshot with all that it builds upon: its bases down to the mapped-ram file, verified, and read
//! as one memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::{Error, failed};
use super::format::{Base, BaseIs, Catalogue, HEADER_BYTES};
use super::link::{GoOn, Holds, Link};
use crate::io::name;
use crate::memory::{PAGE_BYTES, PageSet};
use crate::output::Input;

/// Of a stream without pages, at most: devices' state is small.
const STREAM_BYTES_MAX: u64 = 64 << 20;

/// Files that build on each other. All of them are open.
pub struct Chain {
    /// The mapped-ram file first.
    pub(super) links: Vec<Link>,
    /// For each link but the first, which block of the one below has the name of each of its own.
    below: Vec<Vec<usize>>,
}

impl Chain {
    /// Opens the snapshot of this name and its bases. Headers and catalogues are compared with their
    /// checksums, pages are not: [`Chain::verify`] does that.
    ///
    /// # Errors
    /// A file of the chain is missing, broken, another than the one that was built upon, or its own
    /// base: each by its name.
    pub fn open(name: &Path) -> Result<Self, Error> {
        Self::of(open(name).map_err(failed(name))?, name)
    }

    /// The same of a file that is open, and lies in the folder of `name`.
    pub(crate) fn of(file: File, name: &Path) -> Result<Self, Error> {
        let mut links = vec![Link::read(file, name)?];
        let mut below = Vec::new();
        while let Some(Catalogue { base, .. }) = links[links.len() - 1].catalogue() {
            let link = &links[links.len() - 1];
            let folder = folder_of(&link.name);
            let path = folder.join(&base.name);
            let lower = self::base(link, base, &path)?;
            if links.iter().any(|link| link.is_same_file(&lower)) {
                return Err(no_base(link, &path, "which builds on it in turn".into()));
            }
            below.push(blocks_below(link, &lower)?);
            links.push(lower);
        }
        links.reverse();
        below.reverse();
        Ok(Self { links, below })
    }

    fn top(&self) -> &Link {
        &self.links[self.links.len() - 1]
    }

    /// The name of the snapshot itself.
    pub(crate) fn name(&self) -> &Path {
        &self.top().name
    }

    /// Names and sizes in bytes of its blocks.
    pub fn blocks(&self) -> Vec<(&str, u64)> {
        self.top().blocks()
    }

    /// The number of the block of this name, which must have this size.
    pub(crate) fn block(&self, name: &str, bytes: u64) -> Result<usize, Error> {
        find(self.top(), name, bytes)
    }

    /// Compares the checksums of all that the chain has, but of a mapped-ram file that nothing builds
    /// upon: it has none. Reads every file once, holes excepted.
    ///
    /// # Errors
    /// The first file found broken, and where; [`Error::Cancelled`] when `go_on` says so.
    pub(crate) fn verify(&self, pool: &ThreadPool, go_on: GoOn<'_>) -> Result<(), Error> {
        for (number, link) in self.links.iter().enumerate() {
            link.verify(&link.chunks(), pool, go_on)?;
            let above = self.links.get(number + 1).and_then(Link::catalogue);
            if let Some(BaseIs::Mapped { sums, .. }) = above.map(|above| &above.base.is) {
                link.verify(&link.pieces(sums), pool, go_on)?;
            }
        }
        self.check_unchanged()
    }

    /// The same with threads of its own.
    ///
    /// # Errors
    /// As [`Chain::merge`].
    pub fn verify_all(&self, go_on: GoOn<'_>) -> Result<(), Error> {
        self.verify(&threads()?, go_on)
    }

    /// Its files, to be compared with an output.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let input = |link: &Link| Input::of(link.name.display().to_string(), &link.file);
        self.links.iter().filter_map(input).collect()
    }

    /// Fails if a file was written to since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), Error> {
        self.links.iter().try_for_each(Link::check_unchanged)
    }

    /// What an increment on top of this says of it, under `name`. Reads all that the chain has, and
    /// compares it: what is built on it would be of no use otherwise.
    pub(super) fn as_base(
        &self,
        name: PathBuf,
        pool: &ThreadPool,
        go_on: GoOn<'_>,
    ) -> Result<Base, Error> {
        self.verify(pool, go_on)?;
        let is = match &self.top().holds {
            Holds::Increment { id, .. } => BaseIs::Increment(*id),
            Holds::Mapped(_) => {
                let sums = self.top().sums(pool, go_on)?;
                BaseIs::Mapped { bytes: self.top().bytes(), sums }
            }
        };
        Ok(Base { name, is })
    }

    /// The pages of a block that may hold something else than zeros.
    pub(crate) fn data_pages(&self, block: usize) -> PageSet {
        let pages = self.blocks()[block].1 / PAGE_BYTES;
        let numbers = self.numbers(block);
        self.links
            .iter()
            .zip(numbers)
            .fold(PageSet::new(pages), |below, (link, block)| link.data_pages(block, below))
    }

    /// Reads whole pages of a block, from page `first` on.
    pub(crate) fn read(&self, block: usize, first: u64, out: &mut [u8]) -> Result<(), Error> {
        let numbers = self.numbers(block);
        self.links.iter().zip(numbers).try_for_each(|(link, block)| link.apply(block, first, out))
    }

    /// What number the block has in each link.
    fn numbers(&self, block: usize) -> Vec<usize> {
        let mut numbers = vec![block];
        for below in self.below.iter().rev() {
            numbers.push(below[numbers[numbers.len() - 1]]);
        }
        numbers.reverse();
        numbers
    }

    /// The stream of an increment, from its first byte to its last. `None`: a mapped-ram file is its
    /// own stream.
    pub(crate) fn stream(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(catalogue) = self.top().catalogue() else { return Ok(None) };
        let (head, tail) = (catalogue.head_bytes, catalogue.tail_bytes);
        if head.saturating_add(tail) > STREAM_BYTES_MAX {
            let file = self.name().to_owned();
            return Err(Error::Broken { file, what: "the stream is too long", offset: 8 });
        }
        let mut stream = vec![0; (head + tail) as usize];
        let (front, back) = stream.split_at_mut(head as usize);
        self.top().read_exact(front, HEADER_BYTES)?;
        self.top().read_exact(back, catalogue.tail)?;
        Ok(Some(stream))
    }
}

/// Threads that verify and compare.
pub(crate) fn threads() -> Result<ThreadPool, Error> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get()).min(8);
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    Ok(builder.thread_name(|_| "snapshot".into()).build()?)
}

/// Where the file itself lies that a name leads to.
pub(super) fn folder_of(name: &Path) -> PathBuf {
    let file = name.canonicalize().unwrap_or_else(|_| name.to_owned());
    file.parent().unwrap_or(Path::new("")).to_owned()
}

/// Without waiting for the writer of a FIFO.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let file = name::open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("is no regular file")),
    }
}

fn no_base(link: &Link, base: &Path, why: String) -> Error {
    Error::Base { file: link.name.clone(), base: base.to_owned(), why }
}

/// Opens the base of an increment, and sees that it is the one.
fn base(link: &Link, base: &Base, path: &Path) -> Result<Link, Error> {
    let refuse = |why: &str| no_base(link, path, why.into());
    let file = open(path).map_err(|error| refuse(&error.to_string()))?;
    let found = Link::read(file, path)?;
    match (&base.is, &found.holds) {
        (BaseIs::Mapped { bytes, .. }, Holds::Mapped(_)) if *bytes == found.bytes() => Ok(found),
        (BaseIs::Increment(wanted), Holds::Increment { id, .. }) if wanted == id => Ok(found),
        (BaseIs::Mapped { .. }, Holds::Mapped(_)) => {
            Err(refuse("that file was written anew, and has another size"))
        }
        _ => Err(refuse("that file is another snapshot than the one it was built upon")),
    }
}

fn blocks_below(link: &Link, lower: &Link) -> Result<Vec<usize>, Error> {
    link.blocks().iter().map(|(name, bytes)| find(lower, name, *bytes)).collect()
}

fn find(link: &Link, name: &str, bytes: u64) -> Result<usize, Error> {
    let other = |why| Error::OtherGuest { file: link.name.clone(), why };
    let blocks = link.blocks();
    let Some(number) = blocks.iter().position(|(found, _)| *found == name) else {
        return Err(other(format!("it has no RAM block \"{name}\"")));
    };
    match blocks[number].1 {
        has if has == bytes => Ok(number),
        has => Err(other(format!("its RAM block \"{name}\" has {has} bytes, not {bytes}"))),
    }
}
