//! What is wrong with a snapshot's files.

use std::io;
use std::path::{Path, PathBuf};

use super::format::VERSION;
use crate::stream;

/// Why a chain of snapshots cannot be read or written. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", .file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error("{} is no snapshot: it begins neither as a mapped-ram file nor as an increment", .0.display())]
    NoSnapshot(PathBuf),
    #[error("{} is a mapped-ram file already: there is nothing to merge it with", .0.display())]
    NoIncrement(PathBuf),
    #[error("{} has no places for pages: a base is written with capability mapped-ram", .0.display())]
    NoPlaces(PathBuf),
    #[error("{}: {source}", .file.display())]
    Stream { file: PathBuf, source: stream::Error },
    #[error("{} is broken: {what}, at offset {offset:#x}", .file.display())]
    Broken { file: PathBuf, what: &'static str, offset: u64 },
    #[error("{} is an increment of format {found}, and this Godwit reads format {VERSION}", .file.display())]
    Newer { file: PathBuf, found: u32 },
    #[error("{} needs its base {}: {why}", .file.display(), .base.display())]
    Base { file: PathBuf, base: PathBuf, why: String },
    #[error("{} is a snapshot of another guest: {why}", .file.display())]
    OtherGuest { file: PathBuf, why: String },
    #[error("{} was changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error("{}: an increment gets a name when it is whole, and this name can only be written in place", .0.display())]
    InPlace(PathBuf),
    #[error("an increment is a file of its own: {0} is not built in")]
    NotAlone(&'static str),
    #[error(transparent)]
    Output(#[from] crate::output::Error),
    #[error("no threads for the snapshot: {0}")]
    Pool(#[from] rayon::ThreadPoolBuildError),
    #[error("cancelled")]
    Cancelled,
}

pub(super) fn failed(file: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Io { file: file.to_owned(), source }
}
