//! An image with all that it stands on, open for a guest.
//!
//! Tables are kept in memory while it is: so one is opened when the guest is here, and closed before
//! it goes.

use super::header::{Header, set_dirty};
use super::storage::{Passed, Storage, Watch};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

type Access = Arc<FormatAccess<Storage>>;

/// One image of a chain, to be opened.
#[derive(Clone)]
pub(in crate::block) struct Part {
    pub file: Arc<File>,
    pub name: String,
    /// `None`: its bytes are the disk's.
    pub header: Option<Header>,
    pub watch: Arc<Watch>,
    pub alignment: u32,
    pub no_flush: bool,
    pub passed: Option<Passed>,
}

impl Part {
    fn storage(self, writes: bool) -> Storage {
        let header = self.header.filter(|_| writes);
        Storage {
            file: self.file,
            name: self.name,
            watch: self.watch,
            alignment: self.alignment as usize,
            header,
            no_flush: self.no_flush,
            passed: self.passed,
            helper: Default::default(),
        }
    }
}

pub(in crate::block) struct Chain {
    /// `None`: a table made no sense in a way that nobody foresaw.
    top: Option<FormatAccess<Storage>>,
    part: Part,
    below: Option<Access>,
    /// A change failed, so that what is in memory may be ahead of the file.
    is_suspect: bool,
    file: Arc<File>,
    watch: Arc<Watch>,
    cluster: u64,
    /// Its header says that it is open for writing.
    says_dirty: bool,
}

fn errno(error: &io::Error, watch: &Watch) -> io::Error {
    let told = watch.take_errno();
    let number = match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => number,
        (None, io::ErrorKind::Unsupported) => libc::EOPNOTSUPP,
        (None, io::ErrorKind::OutOfMemory) => libc::ENOMEM,
        (None, _) => told.unwrap_or(libc::EIO),
    };
    io::Error::from_raw_os_error(number)
}

impl Chain {
    /// Opens the first of `parts`, which stands on the others in their order.
    pub(in crate::block) fn open(parts: Vec<Part>, writes: bool) -> io::Result<Chain> {
        let mut below = None::<Access>;
        let mut parts = parts.into_iter();
        let top = parts.next().ok_or(io::ErrorKind::InvalidInput)?;
        for part in parts.rev() {
            below = Some(Arc::new(open_one(part, below, false)?));
        }
        let part = top.clone();
        let mut chain = Chain {
            file: top.file.clone(),
            watch: top.watch.clone(),
            cluster: top.header.as_ref().map_or(1, Header::cluster),
            top: Some(open_one(top, below.clone(), writes)?),
            part,
            below,
            is_suspect: false,
            says_dirty: false,
        };
        if writes && chain.part.header.is_some() {
            chain.open_for_writing()?;
        }
        Ok(chain)
    }

    /// Says so in its header, on the disk, before anything else is written.
    fn open_for_writing(&mut self) -> io::Result<()> {
        set_dirty(&self.file, self.part.alignment, true)?;
        self.watch.set_dirty(true);
        // From here on a chain that is dropped tries to say that it is closed.
        self.says_dirty = true;
        self.with(|top| top.sync())
    }

    /// Changes something of it. What failed may have changed a table in memory and not in the file,
    /// and what is done next would be written where nobody finds it: so the file is believed from
    /// then on.
    ///
    /// # Errors
    /// Those of the change, and those of an earlier one while they last.
    fn change<T>(
        &mut self,
        work: impl FnOnce(&mut FormatAccess<Storage>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.believe_file()?;
        self.with(work).inspect_err(|_| self.is_suspect = true)
    }

    /// What went well before is written first.
    fn believe_file(&mut self) -> io::Result<()> {
        if !self.is_suspect {
            return Ok(());
        }
        self.with(|top| top.flush())?;
        let opened = open_one(self.part.clone(), self.below.clone(), true);
        self.top = Some(opened.map_err(|error| errno(&error, &self.watch))?);
        self.is_suspect = false;
        Ok(())
    }

    /// Does something with it. What panics there has no image any more, and writes nothing more.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut FormatAccess<Storage>) -> io::Result<T>,
    ) -> io::Result<T> {
        let top = self.top.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        self.watch.take_errno();
        match catch_unwind(AssertUnwindSafe(|| work(top))) {
            Ok(done) => done.map_err(|error| errno(&error, &self.watch)),
            Err(_) => {
                self.watch.close();
                self.top = None;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        }
    }

    pub(in crate::block) fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.with(|top| top.read(to, at))
    }

    pub(in crate::block) fn write(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.change(|top| top.write(from, at))
    }

    /// Tables and data to the disk.
    pub(in crate::block) fn flush(&mut self) -> io::Result<()> {
        self.believe_file()?;
        self.with(|top| {
            top.flush()?;
            top.sync()
        })
    }

    /// Zeros, in place where `unmap` is not said.
    pub(in crate::block) fn zero(&mut self, at: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        match unmap {
            true => self.change(|top| top.discard_to_zero(at, bytes)),
            false => self.change(|top| top.write_zeroes(at, bytes)),
        }
    }

    /// Gives whole clusters back, and what the file had for them.
    pub(in crate::block) fn discard(&mut self, at: u64, bytes: u64) -> io::Result<()> {
        let (cluster, file) = (self.cluster, self.file.clone());
        let end = at + bytes;
        let mut at = at.next_multiple_of(cluster);
        self.change(|top| {
            let end = if end == top.size() { end } else { end - end % cluster };
            while at < end {
                let (found, length) = top.get_shallow_mapping(at, end - at)?;
                if length == 0 {
                    break;
                }
                // Only what nobody else has, an inner snapshot above all.
                let place = match found {
                    ShallowMapping::Zero { explicit: false, .. } => {
                        at += length;
                        continue;
                    }
                    ShallowMapping::Raw { offset, writable: true, .. } => Some(offset),
                    _ => None,
                };
                top.discard_to_any(at, length)?;
                // Nobody has been given the place yet: requests are done one after the other.
                if let Some(place) = place.filter(|_| length.is_multiple_of(cluster)) {
                    // It is advice: a file system that cannot take it has lost nothing.
                    let _ = fallocate(&*file, PUNCH, place, length);
                }
                at += length;
            }
            Ok(())
        })
    }

    /// Makes it so long. `hides`: what is below is longer than it was.
    pub(in crate::block) fn resize(&mut self, bytes: u64, hides: bool) -> io::Result<()> {
        use imago::format::PreallocateMode;
        let new = if hides { PreallocateMode::Zero } else { PreallocateMode::None };
        self.change(|top| {
            top.resize(bytes, new)?;
            top.flush()?;
            top.sync()
        })
    }

    /// Writes what is left of its tables, says in its header that it is closed, and writes nothing
    /// more from then on. After an error it is open as before, and its header says so.
    pub(in crate::block) fn close(&mut self) -> io::Result<()> {
        if self.says_dirty {
            self.say_closed()?;
        }
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.says_dirty) {
            self.watch.close();
            self.watch.set_dirty(false);
        }
        self.top = None;
    }

    fn say_closed(&mut self) -> io::Result<()> {
        self.flush()?;
        // A flush that works after one that failed says nothing of pages that the kernel gave up.
        if self.part.alignment <= 1 && self.watch.has_lost() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let said = set_dirty(&self.file, self.part.alignment, false);
        said.and_then(|()| self.with(|top| top.sync())).inspect_err(|_| {
            // Whether it works or not, the error is told.
            let _ = set_dirty(&self.file, self.part.alignment, true);
        })
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // Who drops it without closing it has an error to tell already.
        let _ = self.close();
        self.end();
    }
}

fn open_one(part: Part, below: Option<Access>, writes: bool) -> io::Result<FormatAccess<Storage>> {
    let watch = part.watch.clone();
    watch.open();
    let is_qcow2 = part.header.is_some();
    let storage = part.storage(writes);
    let gate = DenyImplicitOpenGate::default();
    let opened = catch_unwind(AssertUnwindSafe(|| match is_qcow2 {
        true => {
            let image = Qcow2::<Storage, Access>::builder(storage);
            let image = image.backing(below).data_file(None).write(writes).open(gate)?;
            Ok(FormatAccess::new(image))
        }
        false => Ok(FormatAccess::new(Raw::builder(storage).write(writes).open(gate)?)),
    }));
    match opened {
        Ok(opened) => opened.map_err(|error: io::Error| match watch.take_errno() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => error,
        }),
        Err(_) => Err(io::Error::other("its tables make no sense")),
    }
}

/// Makes a new image of `bytes` bytes in the empty `file`, which stands on `(name, format)`.
pub(in crate::block) fn create(
    file: &Arc<File>,
    bytes: u64,
    below: (String, String),
) -> io::Result<()> {
    let part = Part {
        file: file.clone(),
        name: "a new image".into(),
        header: None,
        watch: Arc::default(),
        alignment: 1,
        no_flush: false,
        passed: None,
    };
    use imago::FormatCreateBuilder;
    let watch = part.watch.clone();
    let image = Qcow2::<Storage, Access>::create_builder(part.storage(true));
    let image = image.size(bytes).backing(below.0, below.1);
    image.create().map_err(|error| errno(&error, &watch))?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
