//! The file with our process id, locked for as long as we live.
//!
//! The lock is the one QEMU takes (`F_SETLK`, a write lock on the whole file), so that the two keep
//! out of each other's way. It belongs to the process, and ends with it however that ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::io::socket_file::FileId;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write the process id to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("-pidfile {}: a running machine holds it{}; end it, or take another file", path.display(), owner(.pid))]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("-pidfile {}: is no regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("-pidfile {}: holds something else than a process id; remove it, or take another file", path.display())]
    Foreign { path: PathBuf },
}

fn owner(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Keeps the lock; the file is removed when this is dropped, if it still is ours.
#[derive(Debug)]
pub(crate) struct Pidfile {
    /// Links followed.
    path: PathBuf,
    id: FileId,
    /// The lock ends when any descriptor of the file is closed.
    file: File,
}

impl Pidfile {
    /// Locks the file and writes the process id to it.
    pub(crate) fn claim(path: &Path) -> Result<Pidfile, Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                // A FIFO would keep us here; it is refused below.
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
                .open(path)
                .map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if !metadata.is_file() {
                return Err(Error::NotAFile { path: path.to_owned() });
            }
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    return Err(Error::Locked { path: path.to_owned(), pid: pid_in(&file) });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
            // Whoever held it until now may have removed it: then this is a file without a name.
            let id = FileId::from(&metadata);
            let Ok(whole) = fs::canonicalize(path) else { continue };
            if !FileId::at(&whole).is_ok_and(|there| there == id) {
                continue;
            }
            if metadata.len() > 0 && pid_in(&file).is_none() {
                return Err(Error::Foreign { path: path.to_owned() });
            }
            let claimed = Pidfile { path: whole, id, file };
            claimed.file.set_len(0).map_err(failed)?;
            writeln!(&claimed.file, "{}", std::process::id()).map_err(failed)?;
            return Ok(claimed);
        }
    }
}

/// The process id that a file of ours or QEMU's begins with.
fn pid_in(file: &File) -> Option<u32> {
    let mut text = [0; 32];
    let bytes = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..bytes]).ok()?.trim().parse().ok()
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        self.id.remove(&self.path);
    }
}
