//! The bytes of an increment: header and catalogue, written and read. Nothing here does I/O.
//! [`super`] has the layout.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::sum::{PIECE_BYTES, sum};
use crate::memory::PAGE_BYTES;
use crate::stream::{BLOCKS_MAX, Cursor, put_pstr};

pub(crate) const MAGIC: [u8; 8] = *b"GODWITIN";
/// The only one there is.
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: u64 = 64;
/// A catalogue is read as a whole. One of 64 GiB in which each second page changed is this long.
pub(super) const CATALOGUE_BYTES_MAX: u64 = 256 << 20;
/// All blocks of a guest together: a larger one runs nowhere.
pub(super) const RAM_BYTES_MAX: u64 = 4 << 40;

const MAPPED: u8 = 1;
const INCREMENT: u8 = 2;

/// What is wrong, and how many bytes in.
pub(super) type Problem = (&'static str, u64);

/// The first 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Drawn at random; names this increment to those that build on it.
    pub id: [u8; 16],
    /// The catalogue begins here and ends with the file.
    pub catalogue: u64,
    pub catalogue_bytes: u64,
    pub catalogue_sum: u64,
}

/// Why there is no header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoHeader {
    Version(u32),
    Problem(Problem),
}

impl Header {
    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES as usize] {
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&(PAGE_BYTES as u32).to_be_bytes());
        out.extend_from_slice(&self.id);
        for word in [self.catalogue, self.catalogue_bytes, self.catalogue_sum] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&sum(&out).to_be_bytes());
        out.try_into().expect("the fields are 64 bytes")
    }

    /// Of a file of `file_bytes` that begins with the magic.
    pub(super) fn parse(
        bytes: &[u8; HEADER_BYTES as usize],
        file_bytes: u64,
    ) -> Result<Self, NoHeader> {
        let problem = |what, at| Err(NoHeader::Problem((what, at)));
        let mut fields = Cursor::new(bytes);
        fields.take(MAGIC.len());
        let version = fields.u32().unwrap_or(0);
        if version != VERSION {
            return Err(NoHeader::Version(version));
        }
        let sealed = u64::from_be_bytes(*bytes.last_chunk().expect("64 bytes"));
        if sum(&bytes[..56]) != sealed {
            return problem("the header's checksum is wrong", 56);
        }
        if fields.u32() != Some(PAGE_BYTES as u32) {
            return problem("pages are of another size", 12);
        }
        let id = fields.take(16).and_then(|id| id.try_into().ok());
        let words = [fields.u64(), fields.u64(), fields.u64()];
        let (Some(id), [Some(catalogue), Some(catalogue_bytes), Some(catalogue_sum)]) = (id, words)
        else {
            return problem("the header is cut short", 0);
        };
        if catalogue < HEADER_BYTES || catalogue.checked_add(catalogue_bytes) != Some(file_bytes) {
            return problem("the catalogue does not end with the file", 32);
        }
        if catalogue_bytes > CATALOGUE_BYTES_MAX {
            return problem("the catalogue is too large", 40);
        }
        Ok(Self { id, catalogue, catalogue_bytes, catalogue_sum })
    }
}

/// What the pages of an increment differ from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// From the increment's folder on, or absolute.
    pub name: PathBuf,
    pub is: BaseIs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BaseIs {
    /// A mapped-ram file of so many bytes: it has no checksums of its own, so they are here, one for
    /// each piece.
    Mapped { bytes: u64, sums: Vec<u64> },
    /// The increment that has this id.
    Increment([u8; 16]),
}

/// Bytes of the file in a row that have one sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub bytes: u64,
    pub sum: u64,
}

/// Pages in a row that were changed alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub first: u64,
    pub pages: u64,
    pub now: Now,
}

/// What changed pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    Zero,
    /// Whole, one after another from there on.
    Whole {
        at: u64,
    },
    /// One page: an XBZRLE delta against the base's.
    Delta {
        at: u64,
        bytes: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub name: String,
    pub bytes: u64,
    /// Ascending, none over another.
    pub runs: Vec<Run>,
}

/// What is in an increment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Catalogue {
    /// Seconds since 1970.
    pub saved: u64,
    /// The stream up to its list of blocks stands behind the header.
    pub head_bytes: u64,
    /// The rest of the stream: the state of the devices.
    pub tail: u64,
    pub tail_bytes: u64,
    pub base: Base,
    /// All bytes from the header to the catalogue.
    pub chunks: Vec<Chunk>,
    pub blocks: Vec<Block>,
}

impl Catalogue {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [self.saved, self.head_bytes, self.tail, self.tail_bytes] {
            put(&mut out, word);
        }
        let name = self.base.name.as_os_str().as_bytes();
        out.push(match self.base.is {
            BaseIs::Mapped { .. } => MAPPED,
            BaseIs::Increment(_) => INCREMENT,
        });
        out.extend_from_slice(&(name.len() as u16).to_be_bytes());
        out.extend_from_slice(name);
        match &self.base.is {
            BaseIs::Mapped { bytes, sums } => {
                put(&mut out, *bytes);
                sums.iter().for_each(|sum| put(&mut out, *sum));
            }
            BaseIs::Increment(id) => out.extend_from_slice(id),
        }
        put(&mut out, self.chunks.len() as u64);
        for chunk in &self.chunks {
            put(&mut out, chunk.bytes);
            put(&mut out, chunk.sum);
        }
        put(&mut out, self.blocks.len() as u64);
        for block in &self.blocks {
            put_pstr(&mut out, &block.name);
            put(&mut out, block.bytes);
            put(&mut out, block.runs.len() as u64);
            for run in &block.runs {
                let (each, at) = match run.now {
                    Now::Zero => (0, 0),
                    Now::Whole { at } => (PAGE_BYTES as u32, at),
                    Now::Delta { at, bytes } => (bytes.into(), at),
                };
                put(&mut out, run.first);
                out.extend_from_slice(&(run.pages as u32).to_be_bytes());
                out.extend_from_slice(&each.to_be_bytes());
                put(&mut out, at);
            }
        }
        out
    }

    /// Reads a catalogue that stands at `at` of its file. Whatever it names lies before it.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self, Problem> {
        let mut fields = Cursor::new(bytes);
        let found =
            Self::read(&mut fields, at).ok_or(("the catalogue is cut short", fields.at() as u64));
        let catalogue = found??;
        if fields.at() < bytes.len() {
            return Err(("bytes behind the catalogue's end", fields.at() as u64));
        }
        Ok(catalogue)
    }

    /// `None`: it ends too early.
    fn read(fields: &mut Cursor<'_>, end: u64) -> Option<Result<Self, Problem>> {
        let inside = |at: u64, bytes: u64| {
            at >= HEADER_BYTES && at.checked_add(bytes).is_some_and(|last| last <= end)
        };
        let saved = fields.u64()?;
        let (head_bytes, tail, tail_bytes) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if !inside(HEADER_BYTES, head_bytes) || !inside(tail, tail_bytes) {
            return Some(Err(("the stream lies outside the file", 8)));
        }
        let base = match base(fields)? {
            Ok(base) => base,
            Err(problem) => return Some(Err(problem)),
        };
        let (mut chunks, mut place) = (Vec::new(), HEADER_BYTES);
        for _ in 0..fields.u64()? {
            let chunk = Chunk { bytes: fields.u64()?, sum: fields.u64()? };
            if chunk.bytes == 0 || !inside(place, chunk.bytes) {
                return Some(Err(("a chunk lies outside the file", fields.at() as u64)));
            }
            place += chunk.bytes;
            chunks.push(chunk);
        }
        if place != end {
            return Some(Err(("bytes of the file belong to no chunk", fields.at() as u64)));
        }
        let (mut blocks, mut ram) = (Vec::new(), 0);
        let count = fields.u64()?;
        if count > BLOCKS_MAX as u64 {
            return Some(Err(("there are too many blocks", fields.at() as u64)));
        }
        for _ in 0..count {
            match block(fields, inside)? {
                Ok(block) => {
                    ram += block.bytes;
                    blocks.push(block);
                }
                Err(problem) => return Some(Err(problem)),
            }
        }
        if ram > RAM_BYTES_MAX {
            return Some(Err(("the blocks are larger than a guest's", fields.at() as u64)));
        }
        Some(Ok(Self { saved, head_bytes, tail, tail_bytes, base, chunks, blocks }))
    }
}

fn base(fields: &mut Cursor<'_>) -> Option<Result<Base, Problem>> {
    let kind = fields.u8()?;
    let length = fields.u16()?;
    let name = fields.take(length.into())?;
    if name.is_empty() || name.contains(&0) {
        return Some(Err(("the base has no name", fields.at() as u64)));
    }
    let is = match kind {
        MAPPED => {
            let bytes = fields.u64()?;
            let mut sums = Vec::new();
            for _ in 0..bytes.div_ceil(PIECE_BYTES) {
                sums.push(fields.u64()?);
            }
            BaseIs::Mapped { bytes, sums }
        }
        INCREMENT => BaseIs::Increment(fields.take(16)?.try_into().ok()?),
        _ => return Some(Err(("the base is of an unknown kind", fields.at() as u64))),
    };
    let name = Path::new(&OsString::from_vec(name.to_vec())).to_owned();
    Some(Ok(Base { name, is }))
}

fn block(
    fields: &mut Cursor<'_>,
    inside: impl Fn(u64, u64) -> bool,
) -> Option<Result<Block, Problem>> {
    let name = std::str::from_utf8(fields.pstr()?);
    let bytes = fields.u64()?;
    let pages = bytes / PAGE_BYTES;
    let Ok(name) = name else {
        return Some(Err(("a block's name is not text", fields.at() as u64)));
    };
    if !bytes.is_multiple_of(PAGE_BYTES) || bytes > RAM_BYTES_MAX {
        return Some(Err(("a block has no size of a guest's", fields.at() as u64)));
    }
    let (mut runs, mut next) = (Vec::new(), 0);
    for _ in 0..fields.u64()? {
        let (first, count) = (fields.u64()?, u64::from(fields.u32()?));
        let (each, at) = (fields.u32()?, fields.u64()?);
        let end = first.checked_add(count).filter(|end| *end <= pages);
        let Some(end) = end.filter(|_| count > 0 && first >= next) else {
            return Some(Err(("pages are not in their order, or none", fields.at() as u64)));
        };
        let whole = u64::from(each) == PAGE_BYTES;
        let now = match each {
            0 => Now::Zero,
            _ if !inside(at, count * u64::from(each)) => {
                return Some(Err(("a page lies outside the file", fields.at() as u64)));
            }
            _ if whole => Now::Whole { at },
            _ if count == 1 && u64::from(each) < PAGE_BYTES => {
                Now::Delta { at, bytes: each as u16 }
            }
            _ => return Some(Err(("a page is too long", fields.at() as u64))),
        };
        runs.push(Run { first, pages: count, now });
        next = end;
    }
    Some(Ok(Block { name: name.to_owned(), bytes, runs }))
}

fn put(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        Catalogue {
            saved: 1_700_000_000,
            head_bytes: 100,
            tail: 9000,
            tail_bytes: 1000,
            base: Base {
                name: "base".into(),
                is: BaseIs::Mapped { bytes: (1 << 20) + 1, sums: vec![1, 2] },
            },
            chunks: vec![Chunk { bytes: 9000, sum: 3 }, Chunk { bytes: 936, sum: 4 }],
            blocks: vec![Block {
                name: "ram".into(),
                bytes: 100 * PAGE_BYTES,
                runs: vec![
                    Run { first: 1, pages: 2, now: Now::Whole { at: 164 } },
                    Run { first: 3, pages: 90, now: Now::Zero },
                    Run { first: 99, pages: 1, now: Now::Delta { at: 8500, bytes: 7 } },
                ],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut catalogue = catalogue();
        for is in [catalogue.base.is.clone(), BaseIs::Increment([7; 16])] {
            catalogue.base.is = is;
            let bytes = catalogue.write();
            assert_eq!(Catalogue::parse(&bytes, 10_000), Ok(catalogue.clone()));
            for end in 0..bytes.len() {
                assert!(Catalogue::parse(&bytes[..end], 10_000).is_err(), "{end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Catalogue::parse(&longer, 10_000).unwrap_err().1, bytes.len() as u64);
        }
        let header =
            Header { id: [9; 16], catalogue: 1000, catalogue_bytes: 24, catalogue_sum: 77 };
        assert_eq!(Header::parse(&header.bytes(), 1024), Ok(header));
        for bit in 64..512 {
            let mut bytes = header.bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bytes, 1024).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_lie_are_refused_and_take_nothing() {
        let changed = |change: fn(&mut Catalogue)| {
            let mut catalogue = catalogue();
            change(&mut catalogue);
            Catalogue::parse(&catalogue.write(), 10_000).unwrap_err().0
        };
        type Change = fn(&mut Catalogue);
        let lies: [(Change, &str); 12] = [
            (|c| c.head_bytes = u64::MAX, "stream lies outside"),
            (|c| c.tail = u64::MAX, "stream lies outside"),
            (|c| c.tail = 0, "stream lies outside"),
            (|c| c.base.name = "".into(), "no name"),
            (|c| c.chunks[0].bytes = u64::MAX, "chunk lies outside"),
            (|c| c.chunks[1].bytes -= 1, "no chunk"),
            (|c| c.blocks[0].bytes += 1, "no size of a guest's"),
            (|c| c.blocks[0].bytes = u64::MAX / 4096 * 4096, "no size of a guest's"),
            (|c| c.blocks[0].runs[1].first = 2, "not in their order"),
            (|c| c.blocks[0].runs[1].first = u64::MAX, "not in their order"),
            (|c| c.blocks[0].runs[0].now = Now::Whole { at: 9000 }, "page lies outside"),
            (|c| c.blocks[0].runs[0].now = Now::Delta { at: 100, bytes: 7 }, "too long"),
        ];
        for (change, says) in lies {
            let said = changed(change);
            assert!(said.contains(says), "{said}, not {says}");
        }
        // As many chunks, sums and runs as a word can say: none of them is there.
        let bytes = catalogue().write();
        for at in 0..bytes.len() - 8 {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].fill(0xff);
            let _ = Catalogue::parse(&bytes, 10_000);
        }
    }
}
