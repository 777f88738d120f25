//! A destination that somebody else opens and writes, by name.

use std::fs::{Metadata, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::attributes::take_over;
use super::destination::{Destination, Place, folder_of};
use super::file::{settle, with_builder};
use super::unfinished::{Undo, Unfinished};

/// An output that somebody else opens and writes, by its temporary name.
#[derive(Debug)]
pub(crate) struct NamedOutput {
    name: PathBuf,
    target: PathBuf,
    old: Option<Metadata>,
    part: PathBuf,
    unfinished: Unfinished,
}

impl Destination {
    /// The name for somebody who opens and writes the file, and what makes it the one that was
    /// asked for. What is written in place has only its own name.
    pub(crate) fn open_elsewhere(self) -> Result<(String, Option<NamedOutput>), Error> {
        let Destination { name, place } = self;
        match place {
            Place::Descriptor(_) => Err(Error::NotPassed(name)),
            Place::Special { path, .. } => Ok((utf8(&name, path)?, None)),
            Place::File { path, old } => {
                let folder = folder_of(&path);
                let made = with_builder(&path, |builder| builder.make_in(folder, |_| Ok(())))
                    .map_err(|source| Error::Create { folder: folder.to_owned(), source })?;
                let part = made.into_temp_path();
                let text = utf8(&name, part.to_path_buf())?;
                let (part, unfinished) =
                    (part.to_path_buf(), Unfinished::begin(Undo::Remove(part)));
                let output = NamedOutput { name, target: path, old, part, unfinished };
                Ok((text, Some(output)))
            }
        }
    }
}

fn utf8(name: &Path, path: PathBuf) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|_| Error::NotUtf8(name.to_owned()))
}

impl NamedOutput {
    /// As [`OutputFile::finish`](super::OutputFile::finish).
    pub(crate) fn finish(self) -> Result<Option<u64>, Error> {
        let NamedOutput { name, target, old, part, unfinished } = self;
        let is = match part.symlink_metadata() {
            Ok(is) if is.is_file() => is,
            Ok(_) => return Err(Error::Changed(part)),
            Err(_) => return Err(Error::Elsewhere(part)),
        };
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&part);
        let taken = opened.and_then(|file| {
            old.as_ref().map_or(Ok(()), |old| take_over(&file, &target, old))?;
            file.sync_all()
        });
        let settled = unfinished.finish(|undo| match (taken, undo) {
            (Err(source), Undo::Remove(made)) if old.is_some() => {
                let _ = made.keep();
                Err(Error::Rename { part, name, source })
            }
            // A new file that is not ours to open is as its maker left it.
            (_, undo) => settle(&name, undo, Some((&target, old.as_ref()))),
        });
        settled.unwrap_or(Ok(()))?;
        Ok(Some(is.len()))
    }
}
