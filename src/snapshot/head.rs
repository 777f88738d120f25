//! The front of a stream that lies in a file: what it says of its machine, and its list of blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Error, failed};
use crate::stream::{Item, ListedBlock, NoDevices, Reader, Record, Step};

/// Read at once, and at least.
const PART_BYTES: usize = 4096;

pub(super) struct Head {
    pub blocks: Vec<ListedBlock>,
}

/// Reads the front of the stream that begins at `start` of `file`, which has `name`.
pub(super) fn read(file: &File, name: &Path, start: u64) -> Result<Head, Error> {
    let stream = |source| Error::Stream { file: name.to_owned(), source };
    let mut reader = Reader::new(NoDevices, Vec::new()).starting_at(start);
    let (mut input, mut at, mut place) = (Vec::new(), 0, start);
    loop {
        let (item, used) = match reader.next(&input[at..]).map_err(stream)? {
            Step::Item(item, used) => (item, used),
            Step::Need(needed) => {
                input.drain(..at);
                place += at as u64;
                at = 0;
                let have = input.len();
                input.resize(needed.max(have + PART_BYTES), 0);
                let got = file.read_at(&mut input[have..], place + have as u64);
                input.truncate(have + got.map_err(failed(name))?);
                if input.len() == have {
                    let (file, offset) = (name.to_owned(), place);
                    return Err(Error::Broken { file, what: "the stream is cut short", offset });
                }
                continue;
            }
        };
        at += used;
        match item {
            Item::Ram(Record::Skip { to }) => {
                input.clear();
                (at, place) = (0, to);
            }
            Item::SectionEnd => break,
            Item::Configuration(_)
            | Item::Section { .. }
            | Item::Command(_)
            | Item::Ram(Record::Blocks { .. } | Record::Block { .. } | Record::End) => {}
            _ => {
                let (file, offset) = (name.to_owned(), place + at as u64);
                return Err(Error::Broken { file, what: "no list of blocks is there", offset });
            }
        }
    }
    Ok(Head { blocks: reader.blocks().to_vec() })
}
