//! Lays a file over a block's memory, and takes it away.
//!
//! Unsafe because it maps memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::backing::Backing;
use super::block::RamBlock;
use super::error::Error;
use super::over::Over;

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
        let on_tmpfs = super::backing::is_on_tmpfs(&file);
        let over = Over::watched(file, offset, on_tmpfs, changed).map_err(failed)?;
        backing.map_file(over).map_err(failed)
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
    fn map_file(&self, over: Over) -> io::Result<()> {
        let place = libc::off_t::try_from(over.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.map_again(0, over.file.as_raw_fd(), place)?;
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
