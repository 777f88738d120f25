//! `/proc/self`: what the kernel says of this process. It is opened once, so that a process that gave
//! up the host's file system (`-run-with chroot=`) still sees itself.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Stat, openat, readlinkat, statat};

fn folder() -> io::Result<BorrowedFd<'static>> {
    static FOLDER: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(folder) = FOLDER.get() {
        return Ok(folder.as_fd());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, "/proc/self", flags, Mode::empty())?;
    Ok(FOLDER.get_or_init(|| opened).as_fd())
}

/// Opens it, while it can be seen.
///
/// # Errors
/// Without `/proc`.
pub(crate) fn prepare() -> io::Result<()> {
    folder().map(drop)
}

/// Opens what is called `name` there for reading; of `fd/N` the file itself, anew.
pub(crate) fn open(name: &str) -> io::Result<File> {
    let opened = openat(folder()?, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(opened.into())
}

/// What descriptor `number` refers to.
pub(crate) fn stat(number: RawFd) -> io::Result<Stat> {
    Ok(statat(folder()?, format!("fd/{number}"), AtFlags::empty())?)
}

/// What its file was called.
pub(crate) fn name_of(number: RawFd) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let name = readlinkat(folder()?, format!("fd/{number}"), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(name.into_bytes()).into())
}

/// How it was opened, with `CLOEXEC` for one that does not outlive a call of exec.
pub(crate) fn flags_of(number: RawFd) -> io::Result<OFlags> {
    let mut text = String::new();
    open(&format!("fdinfo/{number}"))?.read_to_string(&mut text)?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.map(OFlags::from_bits_retain).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The numbers of all open descriptors.
pub(crate) fn descriptors() -> io::Result<Vec<RawFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = Dir::new(openat(folder()?, "fd", flags, Mode::empty())?)?;
    let mut numbers = Vec::new();
    for entry in listed {
        let number: Option<RawFd> =
            entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        numbers.extend(number);
    }
    Ok(numbers)
}
