//! What a file of a chain is, for people.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::chain::{Chain, open};
use super::error::{Error, failed};
use super::format::Now;
use super::link::Link;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: PathBuf,
    /// Seconds since 1970; of a mapped-ram file, when it was written to last.
    pub saved: u64,
    /// Of the file, holes included.
    pub bytes: u64,
    /// The guest's RAM.
    pub ram: u64,
    /// `None`: a mapped-ram file, which has all.
    pub changes: Option<Changes>,
}

/// What an increment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// As it is recorded.
    pub base: PathBuf,
    /// Pages.
    pub whole: u64,
    pub deltas: u64,
    pub zeros: u64,
}

impl Description {
    /// Of one file, whatever it builds upon.
    ///
    /// # Errors
    /// It is no snapshot, or broken.
    pub fn of(name: &Path) -> Result<Self, Error> {
        Self::of_link(&Link::read(open(name).map_err(failed(name))?, name)?)
    }

    fn of_link(link: &Link) -> Result<Self, Error> {
        let changes = link.catalogue().map(|catalogue| {
            let mut changes = Changes { base: catalogue.base.name.clone(), ..Changes::default() };
            for run in catalogue.blocks.iter().flat_map(|block| &block.runs) {
                let count = match run.now {
                    Now::Zero => &mut changes.zeros,
                    Now::Whole { .. } => &mut changes.whole,
                    Now::Delta { .. } => &mut changes.deltas,
                };
                *count += run.pages;
            }
            changes
        });
        let modified = || {
            let modified = link.file.metadata()?.modified()?;
            Ok(modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()))
        };
        let saved = match link.catalogue() {
            Some(catalogue) => catalogue.saved,
            None => modified().map_err(failed(&link.name))?,
        };
        let ram = link.blocks().iter().map(|(_, bytes)| bytes).sum();
        Ok(Self { name: link.name.clone(), saved, bytes: link.bytes(), ram, changes })
    }
}

impl Chain {
    /// Its files, the mapped-ram file first.
    pub fn describe(&self) -> Result<Vec<Description>, Error> {
        self.links.iter().map(Description::of_link).collect()
    }
}
