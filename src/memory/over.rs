//! A file laid over memory: a guest begins with its bytes, which are read as they are touched, and
//! what it writes stays in this process. Any number of processes share what none of them wrote.
//!
//! The kernel shows a private mapping what others write to the file, as long as the page was not
//! copied. So the file is watched: one that is written to, or cut short, was lost as the guest's
//! memory, and counts as a loss of the block (see [`super::full`]).
//!
//! Unsafe because it maps memory.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::pipe::{PipeFlags, pipe_with};

use super::backing::Backing;
use super::block::RamBlock;
use super::error::Error;

/// How often the file is looked at where the kernel does not tell of changes.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A file that lies over anonymous memory.
#[derive(Debug)]
pub(super) struct Over {
    pub file: File,
    pub path: PathBuf,
    pub on_tmpfs: bool,
    /// Where the block starts in `file`.
    pub offset: u64,
    /// As it was when it was laid over.
    before: Metadata,
    is_changed: Arc<AtomicBool>,
    /// Its other end hangs up when this is gone.
    _watched: OwnedFd,
}

impl Over {
    /// Whether somebody has written to it, or begun to.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Acquire)
            || !self.file.metadata().is_ok_and(|now| is_same(&self.before, &now))
    }
}

impl RamBlock {
    /// Maps `file` from `offset` on privately in place of this memory, whose content goes: a page is
    /// read when it is touched first. `changed` is called, on a thread of its own, once the file was
    /// written to by anybody: then [`RamBlock::file_has_changed`] has something to say.
    ///
    /// # Errors
    /// [`Error::NotLaidOver`] where the memory is shared or a file's, preallocated, or has a file over
    /// it already; [`Error::NotMapped`] where the kernel refuses.
    pub(crate) fn lay_over(
        &self,
        file: File,
        offset: u64,
        changed: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let backing = self.backing();
        let why = match backing {
            backing if backing.over().is_some() => "it was mapped before",
            backing if backing.file().is_some() || backing.is_shared() => {
                "it is shared, or a file's"
            }
            backing if backing.is_noted() => "it is preallocated (prealloc=on)",
            _ => "",
        };
        if !why.is_empty() {
            return Err(Error::NotLaidOver { block: self.name().into(), why });
        }
        let failed = |source| Error::NotMapped { block: self.name().into(), source };
        let before = file.metadata().map_err(failed)?;
        let is_changed = Arc::new(AtomicBool::new(false));
        let told = is_changed.clone();
        let watched = watch(&file, before.clone(), move || {
            told.store(true, Ordering::Release);
            changed();
        });
        backing.map_file(file, before, offset, is_changed, watched.map_err(failed)?).map_err(failed)
    }

    pub(crate) fn has_file_over(&self) -> bool {
        self.backing().over().is_some()
    }

    /// Takes the file that lies over this memory away: the memory is empty, and nobody watches the file
    /// any more. For a guest that did not come.
    pub(crate) fn uncover(&self) {
        if !self.has_file_over() {
            return;
        }
        match self.backing().map_nothing() {
            Ok(()) => self.backing().set_over(None),
            Err(error) => {
                let block = self.name();
                tracing::error!("block {block:?} stays mapped from its snapshot: {error}");
            }
        }
    }

    /// Somebody wrote to a file that lay over this memory: one more loss, if it still does.
    pub(crate) fn file_has_changed(&self) {
        if self.backing().over().is_some_and(|over| over.is_changed()) {
            self.backing().watched().lose();
        }
    }
}

impl Backing {
    fn map_file(
        &self,
        file: File,
        before: Metadata,
        offset: u64,
        is_changed: Arc<AtomicBool>,
        watched: OwnedFd,
    ) -> io::Result<()> {
        let place = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let path = crate::io::proc::name_of(file.as_raw_fd())?;
        let on_tmpfs = super::backing::is_on_tmpfs(&file);
        self.map_again(0, file.as_raw_fd(), place)?;
        let over = Over { file, path, on_tmpfs, offset, before, is_changed, _watched: watched };
        self.set_over(Some(over));
        Ok(())
    }

    fn map_nothing(&self) -> io::Result<()> {
        self.map_again(libc::MAP_ANONYMOUS, -1, 0)
    }

    fn map_again(&self, kind: i32, fd: i32, place: libc::off_t) -> io::Result<()> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE | kind;
        // SAFETY: the range is this mapping, whole; it stays plain memory whose bytes may change at
        // any time, and is unmapped as before.
        let at = unsafe {
            let (start, bytes) = (self.host().cast(), self.bytes() as usize);
            libc::mmap(start, bytes, prot, flags, fd, place)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.advise_again();
        Ok(())
    }
}

/// Starts to watch `file`, until what is returned is dropped.
fn watch(
    file: &File,
    before: Metadata,
    changed: impl FnOnce() + Send + 'static,
) -> io::Result<OwnedFd> {
    let (hung_up, watched) = pipe_with(PipeFlags::CLOEXEC)?;
    let file = file.try_clone()?;
    let told = told(&file).inspect_err(|error| {
        tracing::warn!("the kernel does not tell of changes of the snapshot ({error}): it is looked at once a second");
    });
    let wait = move || {
        if is_changed(&file, told.ok(), &hung_up, &before) {
            changed();
        }
    };
    std::thread::Builder::new().name("snapshot-watch".into()).spawn(wait)?;
    Ok(watched)
}

/// A descriptor that is readable once the file was written to or cut short.
fn told(file: &File) -> io::Result<OwnedFd> {
    let told = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // By whatever name, or none.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify::add_watch(&told, path, inotify::WatchFlags::MODIFY)?;
    Ok(told)
}

/// Waits for a change. False: nobody wants to know any more.
fn is_changed(file: &File, told: Option<OwnedFd>, hung_up: &OwnedFd, before: &Metadata) -> bool {
    loop {
        let mut fds = vec![PollFd::new(hung_up, PollFlags::empty())];
        fds.extend(told.as_ref().map(|told| PollFd::new(told, PollFlags::IN)));
        if poll(&mut fds, Some(&LOOK)).is_err() {
            // A signal.
            continue;
        }
        if !fds[0].revents().is_empty() {
            return false;
        }
        // Of writes through somebody's mapping, or on another host, the kernel does not tell.
        let is_told = told.as_ref().is_some_and(|told| is_told(told.as_fd()));
        if is_told || !file.metadata().is_ok_and(|now| is_same(before, &now)) {
            return true;
        }
    }
}

fn is_told(told: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut room = [MaybeUninit::uninit(); 1024];
    let mut events = inotify::Reader::new(told, &mut room);
    while let Ok(event) = events.next() {
        if event.events().contains(inotify::ReadFlags::MODIFY) {
            return true;
        }
    }
    false
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let of = |metadata: &Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    of(one) == of(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_change_is_noticed_with_and_without_the_kernels_word_and_an_end_is_none() {
        for kernel_tells in [true, false] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[1; 8192], 0).unwrap();
            let (say, hear) = mpsc::channel();
            let (hung_up, watched) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let before = file.metadata().unwrap();
            let told = kernel_tells.then(|| told(&file).unwrap());
            let seen = file.try_clone().unwrap();
            std::thread::spawn(move || say.send(is_changed(&seen, told, &hung_up, &before)));
            let mut bytes = [0; 10];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(hear.recv_timeout(Duration::from_millis(20)).is_err(), "reading is no change");
            file.set_len(4096).unwrap();
            assert!(hear.recv_timeout(Duration::from_secs(60)).unwrap());
            drop(watched);
        }
        let (say, hear) = mpsc::channel::<()>();
        let file = tempfile::tempfile().unwrap();
        let watched = watch(&file, file.metadata().unwrap(), move || drop(say)).unwrap();
        drop(watched);
        let end = hear.recv_timeout(Duration::from_secs(60)).unwrap_err();
        assert_eq!(end, mpsc::RecvTimeoutError::Disconnected);
    }
}
