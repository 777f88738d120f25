//! What a name that was given for an output is, before anything is opened.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Error;

/// A name for an output, looked at.
#[derive(Debug)]
pub(crate) struct Destination {
    /// As it was given.
    pub(super) name: PathBuf,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    /// A name that can be given to a regular file; links have been followed.
    File { path: PathBuf, old: Option<Metadata> },
    /// What is written in place, by opening it.
    Special { path: PathBuf, is: Metadata },
    /// A descriptor of this process.
    Descriptor(i32),
}

/// A file that is read, to be compared with an output.
#[derive(Debug)]
pub(crate) struct Input {
    pub name: String,
    is: Metadata,
}

impl Input {
    /// `None` if there is no such file; who opens it will say so.
    pub(crate) fn at(path: &Path) -> Option<Input> {
        let is = path.metadata().ok()?;
        Some(Input { name: path.display().to_string(), is })
    }

    /// One that is open, whatever has its name now.
    pub(crate) fn of(name: String, file: &std::fs::File) -> Option<Input> {
        Some(Input { name, is: file.metadata().ok()? })
    }
}

impl Input {
    /// Is it the same file, so that writing one changes the other?
    pub(crate) fn is(&self, other: &Input) -> bool {
        same(&self.is, &other.is)
    }
}

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;

impl Destination {
    pub(crate) fn look(name: &Path) -> Result<Destination, Error> {
        let place = look(name)?;
        Ok(Destination { name: name.to_owned(), place })
    }

    /// Does what is written go to standard output?
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.place, Place::Descriptor(1))
    }

    /// A file without a name for what is not ready to be written yet: beside the output, or else
    /// where temporary files are.
    pub(crate) fn scratch(&self) -> io::Result<std::fs::File> {
        match &self.place {
            Place::File { path, .. } => tempfile::tempfile_in(folder_of(path)),
            _ => tempfile::tempfile(),
        }
    }

    /// Refuses an output that is one of the inputs.
    pub(crate) fn is_none_of(&self, inputs: &[Input]) -> Result<(), Error> {
        let Some(is) = self.metadata() else { return Ok(()) };
        match inputs.iter().find(|input| same(&is, &input.is)) {
            Some(input) => Err(Error::Input(self.name.clone(), input.name.clone())),
            None => Ok(()),
        }
    }

    /// Refuses two outputs to one file.
    pub(crate) fn is_not(&self, other: &Destination) -> Result<(), Error> {
        let twice = match (&self.place, &other.place) {
            (Place::Descriptor(one), Place::Descriptor(two)) if one == two => true,
            (Place::File { path: one, .. }, Place::File { path: two, .. }) if one == two => true,
            _ => self.metadata().zip(other.metadata()).is_some_and(|(one, two)| same(&one, &two)),
        };
        if twice { Err(Error::Twice(self.name.clone(), other.name.clone())) } else { Ok(()) }
    }

    fn metadata(&self) -> Option<Metadata> {
        match &self.place {
            Place::File { old, .. } => old.clone(),
            Place::Special { is, .. } => Some(is.clone()),
            Place::Descriptor(number) => descriptor_path(*number).metadata().ok(),
        }
    }
}

/// Is writing one changing what is read from the other? Terminals and /dev/null are not files.
fn same(one: &Metadata, two: &Metadata) -> bool {
    let (kind, other) = (one.file_type(), two.file_type());
    if kind.is_block_device() && other.is_block_device() {
        return one.rdev() == two.rdev();
    }
    !kind.is_char_device() && is_same_file(one, two)
}

pub(super) fn is_same_file(one: &Metadata, two: &Metadata) -> bool {
    (one.dev(), one.ino()) == (two.dev(), two.ino())
}

pub(super) fn descriptor_path(number: i32) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn look(name: &Path) -> Result<Place, Error> {
    match name.as_os_str().as_bytes() {
        b"" => return Err(Error::Empty),
        b"-" => return Ok(Place::Descriptor(1)),
        _ => {}
    }
    let failed = |source| Error::Look { name: name.to_owned(), source };
    let mut path = name.to_owned();
    for _ in 0..LINKS_MAX {
        if names_folder(&path) {
            return Err(Error::Folder(name.to_owned()));
        }
        let leaf = path.file_name().ok_or_else(|| Error::Folder(name.to_owned()))?;
        let folder = folder_of(&path).canonicalize().map_err(failed)?;
        if let Some(number) = own_descriptor(&folder, leaf.as_bytes()) {
            return Ok(Place::Descriptor(number));
        }
        let at = folder.join(leaf);
        let is = match at.symlink_metadata() {
            Ok(is) => is,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Place::File { path: at, old: None });
            }
            Err(error) => return Err(failed(error)),
        };
        if !is.is_symlink() {
            return classify(name, at, is);
        }
        if folder.starts_with("/proc") && folder.ends_with("fd") {
            // Another process's descriptor: its link leads to more than the name it shows.
            let is = at.metadata().map_err(failed)?;
            return Ok(Place::Special { path: at, is });
        }
        let target = at.read_link().map_err(failed)?;
        path = folder.join(target);
    }
    Err(Error::Links(name.to_owned()))
}

fn classify(name: &Path, path: PathBuf, is: Metadata) -> Result<Place, Error> {
    let kind = is.file_type();
    if kind.is_dir() {
        Err(Error::Folder(name.to_owned()))
    } else if kind.is_socket() {
        Err(Error::Socket(name.to_owned()))
    } else if kind.is_file() {
        Ok(Place::File { path, old: Some(is) })
    } else {
        Ok(Place::Special { path, is })
    }
}

/// A name that only a folder can have.
fn names_folder(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"."
}

/// `/dev/fd` and `/proc/self/fd` lead to `/proc/PID/fd`.
fn own_descriptor(folder: &Path, leaf: &[u8]) -> Option<i32> {
    let own = Path::new("/proc/self").canonicalize().ok()?;
    let inside = folder.strip_prefix(own).ok()?;
    if inside != Path::new("fd") && !(inside.starts_with("task") && inside.ends_with("fd")) {
        return None;
    }
    std::str::from_utf8(leaf).ok()?.parse().ok()
}
