//! Files opened by name. A name may be a FIFO whose other end nobody has opened, which a plain open
//! would wait for where nothing can end it: here it is opened without waiting, and who opens it
//! decides how to wait.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Between two looks at whether a FIFO is read now: the kernel tells nobody.
pub const FIFO_AGAIN: Duration = Duration::from_millis(20);

/// How a name is opened for writing; it is made if it is not there.
#[derive(Clone, Copy, Debug)]
pub struct Create {
    /// Permissions of a new file.
    pub mode: u32,
    /// Cut off what a regular file holds.
    pub truncate: bool,
}

/// Opens `path` for writing. `None`: it is a FIFO that nobody reads yet. A file that this process
/// has opened for itself, guest memory above all, is refused.
pub fn try_create(path: &Path, how: Create) -> io::Result<Option<File>> {
    // Looked at by name: the lock of a pid file would end with a descriptor that is closed.
    if std::fs::metadata(path).is_ok_and(|is| is.is_file() && is_our_own(&is)) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "this machine uses it"));
    }
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
pub fn create(path: &Path, how: Create, ended: &dyn Fn() -> bool) -> io::Result<File> {
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
pub fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path).and_then(blocking)
}

/// Does a descriptor that is closed on exec refer to it? Those that are not came from outside.
fn is_our_own(is: &Metadata) -> bool {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return false };
    descriptors.flatten().any(|descriptor| {
        let same = std::fs::metadata(descriptor.path())
            .is_ok_and(|own| (own.dev(), own.ino()) == (is.dev(), is.ino()));
        same && is_closed_on_exec(&descriptor.file_name())
    })
}

fn is_closed_on_exec(descriptor: &OsStr) -> bool {
    let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(descriptor));
    let info = info.unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0);
    OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC)
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
        assert_eq!(std::fs::read(own.path()).unwrap(), b"memory");
        let (_file, path) = own.into_parts();
        drop(_file);
        assert!(try_create(&path, HOW).unwrap().is_some());
    }

    #[test]
    fn what_is_no_fifo_keeps_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(try_create(&path, HOW).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
}
