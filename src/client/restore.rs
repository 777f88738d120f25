//! `godwit restore`: runs a guest from a file, with the options of `godwit run`.

use super::error::{Error, RestoreError};
use crate::config::{Config, Incoming, Restore as How};
use clap::Args;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args, Debug)]
pub struct Restore {
    /// The snapshot, Godwit's or QEMU's
    pub file: PathBuf,
    /// Read all of its memory before the guest runs; takes any file (the default)
    #[arg(long, conflicts_with = "mapped")]
    pub eager: bool,
    /// Run the guest at once: its memory is read as it is touched, and shared by all that run from
    /// this file
    #[arg(long)]
    pub mapped: bool,
    /// The machine, with the options of `godwit run` that it had when it was saved
    #[arg(last = true, value_name = "RUN-OPTION")]
    pub options: Vec<OsString>,
}

impl Restore {
    /// The words for `godwit run`. That the file is a snapshot is looked at first.
    pub fn words(&self) -> Result<Vec<OsString>, Error> {
        let names_incoming = |word: &&OsString| {
            let word = word.to_string_lossy();
            let name = word.trim_start_matches('-');
            word.starts_with('-') && (name == "incoming" || name.starts_with("incoming="))
        };
        if self.options.iter().any(|word| names_incoming(&word)) {
            return Err(RestoreError::Incoming.into());
        }
        let opened = |error| RestoreError::Open(self.file.clone(), error);
        let mut first = [0; 8];
        // A FIFO would be waited for.
        if !self.file.metadata().map_err(opened)?.is_file() {
            return Err(RestoreError::NoSnapshot(self.file.clone()).into());
        }
        let read = File::open(&self.file).map_err(opened)?.read_exact(&mut first);
        let is_stream = first.starts_with(&crate::stream::MAGIC.to_be_bytes());
        if read.is_err() || !is_stream && first != crate::snapshot::MAGIC {
            return Err(RestoreError::NoSnapshot(self.file.clone()).into());
        }
        let mut words = self.options.clone();
        words.extend(["-incoming".into(), "defer".into()]);
        Ok(words)
    }

    /// Has the machine read the file, and say when its guest is there.
    pub fn apply(&self, config: &mut Config, since: Instant) -> Result<(), Error> {
        let name = self.file.to_str().ok_or_else(|| RestoreError::NotUtf8(self.file.clone()))?;
        if name.contains(",offset=") {
            // An address would take it for one of its own.
            return Err(RestoreError::Offset(self.file.clone()).into());
        }
        config.incoming = Some(Incoming::Uri(format!("file:{name}")));
        config.restore = Some(if self.mapped { How::Mapped } else { How::Eager });
        config.restored_since = Some(since);
        Ok(())
    }
}
