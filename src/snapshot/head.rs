//! The front of a stream that lies in a file: what it says of its machine, and its list of blocks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::error::{Error, failed};
use crate::stream::{
    Configuration, Item, ListedBlock, NoDevices, Reader, Record, SectionHeader, Step,
};

/// Read at once, and at least.
const PART_BYTES: usize = 4096;

pub(super) struct Head {
    pub configuration: Configuration,
    /// `ram`.
    pub section: Arc<SectionHeader>,
    pub blocks: Vec<ListedBlock>,
    /// Where the stream goes on behind the list's section.
    pub end: u64,
}

/// Reads the front of the stream that `file` begins with, which has `name`.
pub(super) fn read(file: &File, name: &Path) -> Result<Head, Error> {
    read_by(name, |bytes, at| file.read_at(bytes, at))
}

/// The same of a stream that is in memory.
pub(super) fn read_bytes(stream: &[u8], name: &Path) -> Result<Head, Error> {
    read_by(name, |bytes, at| (&stream[(at as usize).min(stream.len())..]).read(bytes))
}

fn read_by(name: &Path, read: impl Fn(&mut [u8], u64) -> io::Result<usize>) -> Result<Head, Error> {
    let stream = |source| Error::Stream { file: name.to_owned(), source };
    let mut reader = Reader::new(NoDevices, Vec::new());
    let (mut input, mut at, mut place) = (Vec::new(), 0, 0);
    let (mut configuration, mut section) = (Configuration::default(), None);
    let end = loop {
        let (item, used) = match reader.next(&input[at..]).map_err(stream)? {
            Step::Item(item, used) => (item, used),
            Step::Need(needed) => {
                input.drain(..at);
                place += at as u64;
                at = 0;
                let have = input.len();
                input.resize(needed.max(have + PART_BYTES), 0);
                let got = read(&mut input[have..], place + have as u64);
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
            Item::Configuration(found) => configuration = found,
            Item::Section { header, .. } => section = Some(header),
            Item::Ram(Record::Skip { to }) => {
                input.clear();
                (at, place) = (0, to);
            }
            Item::SectionEnd => break place + at as u64,
            Item::Command(_)
            | Item::Ram(Record::Blocks { .. } | Record::Block { .. } | Record::End) => {}
            _ => {
                let (file, offset) = (name.to_owned(), place + at as u64);
                return Err(Error::Broken { file, what: "no list of blocks is there", offset });
            }
        }
    };
    let section = section.expect("a section ends that began");
    Ok(Head { configuration, section, blocks: reader.blocks().to_vec(), end })
}
