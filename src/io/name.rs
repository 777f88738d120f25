//! Files opened by name. A name may be a FIFO whose other end nobody has opened, which a plain open
//! would wait for where nothing can end it: here it is opened without waiting, and who opens it
//! decides how to wait.
//!
//! What this process has opened for itself is no file to write to, under whatever name or
//! descriptor: guest memory above all.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::proc;
use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, stat};

/// Between two looks at whether a FIFO is read now: the kernel tells nobody.
pub(crate) const FIFO_AGAIN: Duration = Duration::from_millis(20);

/// How a name is opened for writing; it is made if it is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Create {
    /// Permissions of a new file.
    pub mode: u32,
    /// Cut off what a regular file holds.
    pub truncate: bool,
}

/// Opens `path` for writing. `None`: it is a FIFO that nobody reads yet. A file that this process
/// has opened for itself, guest memory above all, is refused.
pub(crate) fn try_create(path: &Path, how: Create) -> io::Result<Option<File>> {
    check_output_name(path)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(how.truncate).mode(how.mode);
    match options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        Ok(file) => blocking(file).map(Some),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same, waiting for a FIFO's reader on this thread until `ended` says that nobody wants it any
/// more; then the error is `Interrupted`.
pub(crate) fn create(path: &Path, how: Create, ended: &dyn Fn() -> bool) -> io::Result<File> {
    loop {
        if let Some(file) = try_create(path, how)? {
            return Ok(file);
        }
        if ended() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        std::thread::sleep(FIFO_AGAIN);
    }
}

/// Opens `path` for reading. A FIFO that nobody writes reads as one that has ended, until it is
/// ready to be read for the first time.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path).and_then(blocking)
}

/// Refuses to write to `fd`, which came from outside, if it is a file that this process has opened
/// for itself.
pub(crate) fn check_output(fd: BorrowedFd<'_>) -> io::Result<()> {
    if is_our_own(&fstat(fd)?, Some(fd.as_raw_fd())) { Err(in_use()) } else { Ok(()) }
}

/// The same of what `path` names, before it is opened: the lock of a pid file would end with a
/// descriptor that is closed.
pub(crate) fn check_output_name(path: &Path) -> io::Result<()> {
    if stat(path).is_ok_and(|is| is_our_own(&is, None)) { Err(in_use()) } else { Ok(()) }
}

pub(crate) fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "this machine uses it")
}

/// Does a descriptor of ours refer to it, another than `asked`? Those that are not closed on exec
/// came from outside, and so did those that clients sent.
fn is_our_own(is: &Stat, asked: Option<RawFd>) -> bool {
    if !matches!(kind(is), FileType::RegularFile | FileType::BlockDevice) {
        return false;
    }
    // What cannot be asked is taken for ours: better refused than overwritten.
    let Ok(descriptors) = proc::descriptors() else { return true };
    descriptors.into_iter().filter(|number| Some(*number) != asked).any(|number| {
        proc::stat(number).is_ok_and(|own| is_same(is, &own))
            && proc::flags_of(number).map_or(true, |flags| flags.contains(OFlags::CLOEXEC))
            && !sent().contains(&number)
    })
}

/// One file, or one disk under two names.
fn is_same(one: &Stat, other: &Stat) -> bool {
    let disks = kind(one) == FileType::BlockDevice && kind(other) == FileType::BlockDevice;
    let files = (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
    files || disks && one.st_rdev == other.st_rdev
}

fn kind(is: &Stat) -> FileType {
    FileType::from_raw_mode(is.st_mode)
}

/// A descriptor that a client sent, until it is used: its file is not ours for that.
#[derive(Debug)]
pub(crate) struct Sent {
    _number: Number,
    fd: OwnedFd,
}

#[derive(Debug)]
struct Number(RawFd);

static SENT: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

fn sent() -> MutexGuard<'static, BTreeSet<RawFd>> {
    SENT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<OwnedFd> for Sent {
    fn from(fd: OwnedFd) -> Sent {
        sent().insert(fd.as_raw_fd());
        Sent { _number: Number(fd.as_raw_fd()), fd }
    }
}

impl Sent {
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Sent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        sent().remove(&self.0);
    }
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Only the open was not to wait.
fn blocking(file: File) -> io::Result<File> {
    let flags = fcntl_getfl(file.as_fd())?;
    fcntl_setfl(file.as_fd(), flags - OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    const HOW: Create = Create { mode: 0o600, truncate: true };

    fn fifo() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600))
            .unwrap();
        (dir, path)
    }

    #[test]
    fn a_fifo_without_a_reader_is_waited_for_and_given_up() {
        let (_dir, path) = fifo();
        assert!(try_create(&path, HOW).unwrap().is_none());
        let error = create(&path, HOW, &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let reader = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut text = String::new();
                File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        let gone = AtomicBool::new(false);
        let mut file = create(&path, HOW, &|| gone.load(Ordering::Relaxed)).unwrap();
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
        file.write_all(b"text").unwrap();
        drop(file);
        assert_eq!(reader.join().unwrap(), "text");
    }

    #[test]
    fn a_fifo_without_a_writer_is_opened_at_once() {
        let (_dir, path) = fifo();
        assert!(open(&path).is_ok());
    }

    #[test]
    fn a_file_that_we_have_open_is_left_alone() {
        let mut own = tempfile::NamedTempFile::new().unwrap();
        own.write_all(b"memory").unwrap();
        let link = tempfile::tempdir().unwrap();
        let link = link.path().join("link");
        std::os::unix::fs::symlink(own.path(), &link).unwrap();
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own));
        for name in [own.path(), &link, Path::new(&descriptor)] {
            let error = try_create(name, HOW).unwrap_err();
            assert_eq!(error.to_string(), "this machine uses it", "{}", name.display());
        }
        // The same by descriptors that came from elsewhere.
        let sent = Sent::from(OwnedFd::from(File::options().write(true).open(&link).unwrap()));
        assert_eq!(check_output(sent.as_fd()).unwrap_err().to_string(), "this machine uses it");
        assert_eq!(std::fs::read(own.path()).unwrap(), b"memory");
        let (_file, path) = own.into_parts();
        drop(_file);
        // Of which two for one file are nothing to be afraid of.
        let other = Sent::from(OwnedFd::from(File::open(&link).unwrap()));
        check_output(sent.as_fd()).unwrap();
        assert!(try_create(&path, HOW).unwrap().is_some());
        let used = other.into_fd();
        assert!(check_output(sent.as_fd()).is_err() && check_output(used.as_fd()).is_ok());
    }

    #[test]
    fn what_is_no_fifo_keeps_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(try_create(&path, HOW).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
}
