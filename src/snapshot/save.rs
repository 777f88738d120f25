//! An increment that is being written: a temporary file, which takes its name when it is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rayon::ThreadPool;

use super::chain::{Chain, folder_of, threads};
use super::error::{Error, failed};
use super::format::{Base, BaseIs, Block, Catalogue, Chunk, HEADER_BYTES, Header, Now, Run};
use super::link::GoOn;
use super::sum::{sum, sum_of};
use crate::io::name;
use crate::memory::PAGE_BYTES;
use crate::output::{Destination, OutputFile};

/// What was written of a block: a record for each page that differs from the base's.
pub(crate) type Records = BTreeMap<u64, Record>;

/// What a page holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Zero,
    /// At this place of the file.
    Whole(u64),
    /// A delta of so many bytes against the base's page.
    Delta(u64, u16),
}

/// An increment to be.
pub(crate) struct Save {
    name: PathBuf,
    output: OutputFile,
    pub chain: Arc<Chain>,
    pub pool: Arc<ThreadPool>,
    base: Base,
}

/// What was written behind the head.
#[derive(Default)]
pub(crate) struct Written {
    /// Of the file, so far.
    pub end: u64,
    /// For each of the guest's blocks.
    pub records: Vec<Records>,
    /// Bytes and sum of each part, in the order of the file.
    pub chunks: Vec<(u64, u64)>,
}

impl Save {
    /// Opens the chain under `base`, and a temporary file beside `name`, in which nothing is yet.
    /// `blocks` are the guest's, with their sizes.
    ///
    /// # Errors
    /// The base is none, or another guest's; `name` is a file of the chain, or cannot be replaced.
    pub(crate) fn begin(name: &Path, base: &Path, blocks: &[(String, u64)]) -> Result<Self, Error> {
        let chain = Chain::open(base)?;
        for (name, bytes) in blocks {
            chain.block(name, *bytes)?;
        }
        name::check_output_name(name).map_err(failed(name))?;
        let destination = Destination::look(name)?;
        destination.is_none_of(&chain.inputs())?;
        let output = destination.open_temporary(0o600)?;
        let output = output.ok_or_else(|| Error::InPlace(name.to_owned()))?;
        let base = relative(&folder_of(name), base)?;
        let base = Base { name: base, is: BaseIs::Increment([0; 16]) };
        let (name, pool) = (name.to_owned(), Arc::new(threads()?));
        Ok(Self { name, output, chain: Arc::new(chain), pool, base })
    }

    /// Where the stream is written, from [`HEADER_BYTES`] on.
    pub(crate) fn file(&self) -> &File {
        self.output.file()
    }

    /// Reads and verifies the base, while the guest runs.
    pub(crate) fn verify_base(&mut self, go_on: GoOn<'_>) -> Result<(), Error> {
        let name = std::mem::take(&mut self.base.name);
        self.base = self.chain.as_base(name, &self.pool, go_on)?;
        Ok(())
    }

    /// All is written: the stream's head up to `head`, pages, and the stream's `tail`. `blocks` are the
    /// guest's.
    pub(crate) fn finish(
        self,
        head: u64,
        tail: Range<u64>,
        blocks: &[(String, u64)],
        written: &Written,
    ) -> Result<(), Error> {
        self.chain.check_unchanged()?;
        let file = self.output.file();
        let io = failed(&self.name);
        let mut buffer = Vec::new();
        let mut chunk = |at, bytes| {
            let sum = sum_of(file, at, bytes, &mut buffer).map_err(&io)?;
            Ok::<_, Error>(Chunk { bytes, sum })
        };
        let mut chunks = vec![chunk(HEADER_BYTES, head - HEADER_BYTES)?];
        chunks.extend(written.chunks.iter().map(|(bytes, sum)| Chunk { bytes: *bytes, sum: *sum }));
        chunks.push(chunk(tail.start, tail.end - tail.start)?);
        let saved = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let catalogue = Catalogue {
            saved: saved.map_or(0, |time| time.as_secs()),
            head_bytes: head - HEADER_BYTES,
            tail: tail.start,
            tail_bytes: tail.end - tail.start,
            base: self.base,
            chunks,
            blocks: blocks
                .iter()
                .zip(&written.records)
                .map(|((name, bytes), records)| Block {
                    name: name.clone(),
                    bytes: *bytes,
                    runs: runs(records),
                })
                .collect(),
        };
        let bytes = catalogue.write();
        file.write_all_at(&bytes, tail.end).map_err(&io)?;
        let mut id = [0; 16];
        random(&mut id).map_err(&io)?;
        let header = Header {
            id,
            catalogue: tail.end,
            catalogue_bytes: bytes.len() as u64,
            catalogue_sum: sum(&bytes),
        };
        file.write_all_at(&header.bytes(), 0).map_err(&io)?;
        self.output.finish()?;
        Ok(())
    }
}

/// Records of pages in a row, as far as they say the same.
fn runs(records: &Records) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (page, record) in records {
        let now = match *record {
            Record::Zero => Now::Zero,
            Record::Whole(at) => Now::Whole { at },
            Record::Delta(at, bytes) => Now::Delta { at, bytes },
        };
        if let Some(last) = runs.last_mut()
            && last.first + last.pages == *page
            && last.pages < u32::MAX.into()
        {
            let goes_on = match (last.now, now) {
                (Now::Zero, Now::Zero) => true,
                (Now::Whole { at }, Now::Whole { at: next }) => {
                    at + last.pages * PAGE_BYTES == next
                }
                _ => false,
            };
            if goes_on {
                last.pages += 1;
                continue;
            }
        }
        runs.push(Run { first: *page, pages: 1, now });
    }
    runs
}

fn random(id: &mut [u8; 16]) -> std::io::Result<()> {
    let mut done = 0;
    while done < id.len() {
        done += rustix::rand::getrandom(&mut id[done..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

/// The name of `to` for who stands in the folder `from`: both may be moved together.
fn relative(from: &Path, to: &Path) -> Result<PathBuf, Error> {
    let from = if from.as_os_str().is_empty() { Path::new(".") } else { from };
    let folder = from.canonicalize().map_err(failed(from))?;
    let file = to.canonicalize().map_err(failed(to))?;
    let (folder, whole): (Vec<_>, Vec<_>) =
        (folder.components().collect(), file.components().collect());
    let same = folder.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let up = folder[same..].iter().map(|_| Component::ParentDir);
    let name: PathBuf = up.chain(whole[same..].iter().copied()).collect();
    match name.as_os_str().as_bytes().len() {
        0..=0xffff => Ok(name),
        _ => Err(failed(to)(std::io::Error::other("its name is too long"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_increments_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::create_dir_all(at("c")).unwrap();
        std::fs::write(at("a/base"), "").unwrap();
        std::os::unix::fs::symlink(at("a/base"), at("c/link")).unwrap();
        for (from, to, is) in [
            ("a", "a/base", "base"),
            ("a/b", "a/base", "../base"),
            ("c", "a/base", "../a/base"),
            ("c", "c/link", "../a/base"),
            ("", "a/base", "a/base"),
        ] {
            assert_eq!(relative(&at(from), &at(to)).unwrap(), Path::new(is), "{from} {to}");
        }
        assert!(relative(&at("a"), &at("none")).is_err());
    }

    #[test]
    fn pages_in_a_row_are_one_run() {
        let records: Records = [
            (3, Record::Whole(100)),
            (4, Record::Whole(100 + 4096)),
            (5, Record::Whole(100)),
            (6, Record::Zero),
            (7, Record::Zero),
            (9, Record::Zero),
            (10, Record::Delta(5, 9)),
        ]
        .into();
        let pages: Vec<_> = runs(&records).iter().map(|run| (run.first, run.pages)).collect();
        assert_eq!(pages, [(3, 2), (5, 1), (6, 2), (9, 1), (10, 1)]);
    }
}
