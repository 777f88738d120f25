//! What was begun and would look whole if the process ended now.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;

/// Undone by being dropped.
#[derive(Debug)]
pub(crate) enum Undo {
    /// A file with a name of its own.
    Remove(TempPath),
    /// A file that is written in place.
    Cut(Cut),
}

/// Cuts the file off; what stood before this offset stays.
#[derive(Debug)]
pub(crate) struct Cut {
    pub file: File,
    pub start: Option<u64>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // Nothing else can be done about it.
            let _ = self.file.set_len(start);
        }
    }
}

/// All of the process's. A process that is killed leaves its temporary files.
static UNFINISHED: Mutex<BTreeMap<u64, Undo>> = Mutex::new(BTreeMap::new());

fn unfinished() -> MutexGuard<'static, BTreeMap<u64, Undo>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that is begun; undone when it is dropped.
#[derive(Debug)]
pub(crate) struct Unfinished(u64);

impl Unfinished {
    pub(crate) fn begin(undo: Undo) -> Unfinished {
        let mut all = unfinished();
        let id = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(id, undo);
        Unfinished(id)
    }

    /// It is whole. `done` may hand the undo back, if it is still to be undone.
    pub(crate) fn finish<T>(self, done: impl FnOnce(Undo) -> T) -> Option<T> {
        // With the lock held: a signal removes nothing that is being renamed.
        let mut all = unfinished();
        all.remove(&self.0).map(done)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

/// Before the process ends without winding up. Whatever is still being written is lost.
pub(crate) fn undo_unfinished() {
    unfinished().clear();
}
