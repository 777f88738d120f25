//! A destination, opened; and what becomes of it.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use super::attributes::{can_be_replaced, take_over};
use super::destination::{Destination, Place, descriptor_path, folder_of, is_same_file};
use super::unfinished::{Cut, Undo, Unfinished};
use super::{Error, Input};

/// An output that is being written. Dropped, it is as if it had never been begun, as far as that can
/// be.
#[derive(Debug)]
pub(crate) struct OutputFile {
    name: PathBuf,
    file: File,
    /// Where it will be, and what was there; nothing for what is written in place.
    replaces: Option<(PathBuf, Option<Metadata>)>,
    unfinished: Option<Unfinished>,
}

/// How often a FIFO is asked whether it has a reader.
const READER_TIME: Duration = Duration::from_millis(50);
/// Of the name, for the temporary one.
const PREFIX_BYTES_MAX: usize = 200;
/// Random letters and digits in it: nobody guesses 16.
const RANDOM: usize = 16;

impl Destination {
    /// A file to be read and written anywhere, which takes the name when it is whole. `None` if what
    /// has the name can only be written in place.
    pub(crate) fn open_temporary(&self, mode: u32) -> Result<Option<OutputFile>, Error> {
        let Place::File { path, old } = &self.place else { return Ok(None) };
        let made = temporary(&self.name, path, old.as_ref(), mode)?;
        Ok(made.map(|(file, unfinished)| OutputFile {
            name: self.name.clone(),
            file,
            replaces: Some((path.clone(), old.clone())),
            unfinished: Some(unfinished),
        }))
    }

    /// Opens it for writing; `mode` is for a new file, less the umask. `go_on` is asked now and then
    /// while a FIFO has no reader; false gives up.
    pub(crate) fn open(self, mode: u32, go_on: &dyn Fn() -> bool) -> Result<OutputFile, Error> {
        if let Some(file) = self.open_temporary(mode)? {
            return Ok(file);
        }
        let Destination { name, place } = self;
        match place {
            Place::File { path, old } => in_place(name, &path, old.as_ref(), go_on),
            Place::Special { path, is } => in_place(name, &path, Some(&is), go_on),
            Place::Descriptor(number) => descriptor(name, number),
        }
    }
}

/// A new file that may take the place of `path`. `None` if it may not: there is a file that has to be
/// written in place.
fn temporary(
    name: &Path,
    path: &Path,
    old: Option<&Metadata>,
    mode: u32,
) -> Result<Option<(File, Unfinished)>, Error> {
    if let Some(old) = old
        && !can_be_replaced(path, old).map_err(look_failed(name))?
    {
        return Ok(None);
    }
    let folder = folder_of(path);
    let made = with_builder(path, |builder| {
        builder.permissions(Permissions::from_mode(mode)).tempfile_in(folder)
    });
    let (file, part) = match made {
        Ok(made) => made.into_parts(),
        Err(error) if old.is_some() && is_permission(&error) => return Ok(None),
        Err(source) => return Err(Error::Create { folder: folder.to_owned(), source }),
    };
    let unfinished = Unfinished::begin(Undo::Remove(part));
    match old.map_or(Ok(()), |old| take_over(&file, path, old)) {
        Ok(()) => Ok(Some((file, unfinished))),
        Err(error) if is_permission(&error) => Ok(None),
        Err(source) => Err(Error::Create { folder: folder.to_owned(), source }),
    }
}

pub(super) fn with_builder<T>(path: &Path, make: impl FnOnce(&mut tempfile::Builder) -> T) -> T {
    let leaf = path.file_name().unwrap_or(OsStr::new("out")).as_bytes();
    let mut prefix = leaf[..leaf.len().min(PREFIX_BYTES_MAX)].to_owned();
    prefix.push(b'.');
    let mut builder = tempfile::Builder::new();
    make(builder.prefix(OsStr::from_bytes(&prefix)).suffix(".part").rand_bytes(RANDOM))
}

fn is_permission(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn look_failed(name: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Look { name: name.to_owned(), source }
}

fn open_failed(name: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Open { name: name.to_owned(), source }
}

fn in_place(
    name: PathBuf,
    path: &Path,
    is: Option<&Metadata>,
    go_on: &dyn Fn() -> bool,
) -> Result<OutputFile, Error> {
    // O_EXCL refuses a disk that is mounted.
    let disk = is.is_some_and(|is| is.file_type().is_block_device());
    let exclusive = if disk { OFlags::EXCL } else { OFlags::empty() };
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | exclusive;
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(flags.bits() as i32);
    let fifo = is.is_some_and(|is| is.file_type().is_fifo());
    let mut told = false;
    let file = loop {
        match options.open(path) {
            Err(error) if fifo && error.raw_os_error() == Some(libc::ENXIO) => {
                if !go_on() {
                    return Err(Error::NoReader(name));
                }
                if !std::mem::replace(&mut told, true) {
                    say!("{} has no reader yet; waiting for one", name.display());
                }
                std::thread::sleep(READER_TIME);
            }
            opened => break opened.map_err(open_failed(&name))?,
        }
    };
    let now = file.metadata().map_err(open_failed(&name))?;
    if is.is_some_and(|is| !is_same_file(is, &now)) {
        return Err(Error::Changed(name));
    }
    let blocking = rustix::fs::fcntl_getfl(&file)
        .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK));
    blocking.map_err(|error| open_failed(&name)(error.into()))?;
    if now.is_file() {
        file.set_len(0).map_err(open_failed(&name))?;
    }
    begin_in_place(name, file, 0)
}

/// `start`: where the output begins, if it is a regular file.
fn begin_in_place(name: PathBuf, file: File, start: u64) -> Result<OutputFile, Error> {
    let regular = file.metadata().is_ok_and(|is| is.is_file());
    let unfinished = match regular {
        true => {
            let own = file.try_clone().map_err(open_failed(&name))?;
            Some(Unfinished::begin(Undo::Cut(Cut { file: own, start: Some(start) })))
        }
        false => None,
    };
    Ok(OutputFile { name, file, replaces: None, unfinished })
}

/// A copy of a descriptor that this process was started with.
fn descriptor(name: PathBuf, number: i32) -> Result<OutputFile, Error> {
    let refused = || Error::Descriptor(number);
    // What was opened since the start belongs to this program.
    let inherited = crate::io::proc::flags_of(number)
        .ok()
        .filter(|flags| !flags.contains(OFlags::CLOEXEC))
        .ok_or_else(refused)?;
    if inherited & OFlags::ACCMODE == OFlags::RDONLY {
        return Err(refused());
    }
    let mut file = copy(number).map_err(open_failed(&name))?;
    let start = match inherited.contains(OFlags::APPEND) {
        true => file.metadata().map(|is| is.len()),
        false => file.stream_position(),
    };
    // Pipes have none.
    begin_in_place(name, file, start.unwrap_or(0))
}

fn copy(number: i32) -> io::Result<File> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let copied = own.and_then(|own| {
        rustix::process::pidfd_getfd(own.as_fd(), number, PidfdGetfdFlags::empty())
    });
    match copied {
        Ok(copy) => Ok(copy.into()),
        // Old containers forbid that; a file of its own is the next best.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => {
            OpenOptions::new().write(true).open(descriptor_path(number))
        }
        Err(error) => Err(error.into()),
    }
}

impl OutputFile {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let done = self.file.write_all(bytes);
        done.map_err(|source| Error::Write { name: self.name.clone(), source })
    }

    /// All that is left in `from`.
    pub(crate) fn copy(&mut self, from: &mut File) -> Result<(), Error> {
        let done = io::copy(from, &mut self.file).map(drop);
        done.map_err(|source| Error::Write { name: self.name.clone(), source })
    }

    /// It is whole: it gets its name. Its size in bytes, if it is a regular file.
    pub(crate) fn finish(self) -> Result<Option<u64>, Error> {
        let OutputFile { name, file, replaces, unfinished } = self;
        let written = |source| Error::Write { name: name.clone(), source };
        let is = file.metadata().map_err(written)?;
        if is.is_file() || is.file_type().is_block_device() {
            file.sync_all().map_err(written)?;
        }
        if let Some(unfinished) = unfinished {
            let target = replaces.as_ref().map(|(path, old)| (path.as_path(), old.as_ref()));
            unfinished.finish(|undo| settle(&name, undo, target)).unwrap_or(Ok(()))?;
        }
        Ok(is.is_file().then_some(is.len()))
    }
}

/// Keeps what was made; a temporary file becomes `target`.
pub(super) fn settle(
    name: &Path,
    undo: Undo,
    target: Option<(&Path, Option<&Metadata>)>,
) -> Result<(), Error> {
    let (part, target, old) = match (undo, target) {
        (Undo::Remove(part), Some((target, old))) => (part, target, old),
        (Undo::Cut(mut cut), _) => {
            cut.start = None;
            return Ok(());
        }
        (Undo::Remove(_), None) => return Ok(()),
    };
    let kept = |part: tempfile::TempPath, source| {
        let path = part.to_path_buf();
        // Nothing is lost: it is whole.
        let _ = part.keep();
        Err(Error::Rename { part: path, name: name.to_owned(), source })
    };
    // A link or a device that came meanwhile is not replaced.
    match target.symlink_metadata() {
        Ok(now) if !now.is_file() && old.is_none_or(|old| !is_same_file(old, &now)) => {
            return kept(part, io::Error::other("something else has its name now"));
        }
        _ => {}
    }
    part.persist(target).or_else(|failed| kept(failed.path, failed.error))
}

impl Input {
    /// The files that another process has open, its memory's among them, as far as we may look.
    pub(crate) fn of_process(pid: u32) -> Vec<Input> {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
        let inputs = entries.flatten().filter_map(|entry| Input::at(&entry.path()));
        inputs.collect()
    }
}
