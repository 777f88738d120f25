//! A file laid over memory: a guest begins with its bytes, which are read as they are touched, and
//! what it writes stays in this process. Any number of processes share what none of them wrote.
//!
//! The kernel shows a private mapping what others write to the file, as long as the page was not
//! copied. So the file is watched: one that is written to, or cut short, was lost as the guest's
//! memory, and counts as a loss of the block (see [`super::full`]).

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
    /// `file`, watched from now on. `changed` is called, on a thread of its own, once it was written to
    /// by anybody.
    pub(super) fn watched(
        file: File,
        offset: u64,
        on_tmpfs: bool,
        changed: impl FnOnce() + Send + 'static,
    ) -> io::Result<Over> {
        let before = file.metadata()?;
        let path = crate::io::proc::name_of(file.as_raw_fd())?;
        let is_changed = Arc::new(AtomicBool::new(false));
        let told = is_changed.clone();
        let watched = watch(&file, before.clone(), move || {
            told.store(true, Ordering::Release);
            changed();
        });
        Ok(Over { file, path, on_tmpfs, offset, before, is_changed, _watched: watched? })
    }

    /// Whether somebody has written to it, or begun to.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Acquire)
            || !self.file.metadata().is_ok_and(|now| is_same(&self.before, &now))
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
