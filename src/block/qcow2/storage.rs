//! Files as `imago` reads and writes them: one call after the other, each done when it returns.
//!
//! So its contract about writes that settle is kept by itself: no write outlives its call. What the
//! crate asks to be `unsafe` is only that requests come aligned and do not cross one another, which
//! matters for correct data, not for memory.
#![allow(unsafe_code)]

use super::header::{Header, has_dirty_bit, put_dirty, read_up_to};
use crate::block::ring::Aligned;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use rustix::fs::{FallocateFlags, fallocate};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Zeros that are written at a time, where the file system knows no better.
const ZEROS: usize = 1 << 16;

/// What is known of a file outside the chain that uses it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The errno of the last call that failed; 0: none did.
    errno: AtomicI32,
    /// Bringing data to the disk failed: nobody knows what of it is there.
    lost: AtomicBool,
    /// Nothing is written any more.
    closed: AtomicBool,
    /// The header says that it is open for writing, which nobody is told who has it open.
    dirty: AtomicBool,
    /// How many writes work before all of them fail.
    #[cfg(test)]
    pub fails: std::sync::Mutex<Option<u64>>,
    /// One past the last byte written.
    pub highest: AtomicU64,
    /// A write that ends behind it is told of, once; 0: none is.
    pub threshold: AtomicU64,
}

impl Watch {
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn set_dirty(&self, is_dirty: bool) {
        self.dirty.store(is_dirty, Ordering::Release);
    }

    fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    pub(super) fn take_errno(&self) -> Option<i32> {
        Some(self.errno.swap(0, Ordering::AcqRel)).filter(|errno| *errno != 0)
    }

    pub(in crate::block) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Sees a write that ends there. `Some`: it ends so far behind a threshold, which is none any
    /// more: (threshold, bytes).
    pub(in crate::block) fn sees(&self, end: u64) -> Option<(u64, u64)> {
        self.highest.fetch_max(end, Ordering::Relaxed);
        let threshold = self.threshold.load(Ordering::Relaxed);
        let behind = end.checked_sub(threshold).filter(|behind| *behind > 0 && threshold > 0)?;
        let is_first =
            self.threshold.compare_exchange(threshold, 0, Ordering::AcqRel, Ordering::Relaxed);
        is_first.is_ok().then_some((threshold, behind))
    }
}

/// Told when a write has passed a threshold: (threshold, bytes behind it).
pub(in crate::block) type Passed = Arc<dyn Fn(u64, u64) + Send + Sync>;

pub(super) struct Storage {
    pub file: Arc<File>,
    pub name: String,
    pub watch: Arc<Watch>,
    pub alignment: usize,
    /// What the first cluster says, which holds nothing else; of what is written.
    pub header: Option<Header>,
    pub no_flush: bool,
    pub passed: Option<Passed>,
    pub helper: CommonStorageHelper,
}

impl fmt::Debug for Storage {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Storage({})", self.name)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.name)
    }
}

impl Storage {
    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.watch.errno.store(errno, Ordering::Release);
        })
    }

    pub(super) fn may_write(&self, at: u64, start: &[u8]) -> io::Result<()> {
        if self.watch.closed.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        #[cfg(test)]
        if let Some(left) = &mut *self.watch.fails.lock().unwrap() {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            }
        }
        // Tables that lie about free clusters would have a guest write the header, and with it the
        // name of a file that is opened next time.
        match &self.header {
            Some(was) if at < was.cluster() && !self.says_the_same(was, at, start)? => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            _ => Ok(()),
        }
    }

    /// Whether the header, with `start` written at `at`, is of the same image, over the same file.
    fn says_the_same(&self, was: &Header, at: u64, start: &[u8]) -> io::Result<bool> {
        if at != 0 || start.is_empty() {
            return Ok(false);
        }
        let mut all = Aligned::new(was.cluster() as usize)?;
        let all = all.get_mut();
        read_up_to(&self.file, all, 0)?;
        let count = start.len().min(all.len());
        all[..count].copy_from_slice(&start[..count]);
        Ok(Header::parse(all).is_ok_and(|is| is.shape() == was.shape()))
    }

    /// What was read without the bit is not written without it.
    fn write_header(&self, from: &[u8], at: u64) -> io::Result<()> {
        let mut own = Aligned::new(from.len())?;
        own.get_mut().copy_from_slice(from);
        put_dirty(own.get_mut(), at, true);
        self.file.write_all_at(own.get(), at)
    }

    fn wrote(&self, end: u64) {
        if let (Some((threshold, behind)), Some(passed)) = (self.watch.sees(end), &self.passed) {
            passed(threshold, behind);
        }
    }

    fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.may_write(at, &[])?;
        match fallocate(&*self.file, FallocateFlags::ZERO_RANGE, at, bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {
                write_zeros(&self.file, at, bytes)?;
            }
            Err(error) => return Err(error.into()),
        }
        self.wrote(at + bytes);
        Ok(())
    }
}

/// Zeros as data, from where `O_DIRECT` takes them.
fn write_zeros(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    let zeros = Aligned::new(bytes.min(ZEROS as u64) as usize)?;
    let end = at + bytes;
    let mut next = at;
    while next < end {
        let count = ((end - next) as usize).min(ZEROS);
        file.write_all_at(&zeros.get()[..count], next)?;
        next += count as u64;
    }
    Ok(())
}

impl imago::Storage for Storage {
    fn mem_align(&self) -> usize {
        // IoBuffer's own boundary for O_DIRECT; any will do else.
        if self.alignment > 1 { self.alignment.max(4096) } else { 1 }
    }

    fn req_align(&self) -> usize {
        self.alignment
    }

    fn size(&self) -> io::Result<u64> {
        let found = self.file.metadata()?;
        if found.is_file() { Ok(found.len()) } else { (&*self.file).seek(SeekFrom::End(0)) }
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut buffer in buffers.into_inner() {
            let filled = self.noted(read_up_to(&self.file, &mut buffer, at))?;
            // Behind the end are zeros.
            buffer[filled..].fill(0);
            if self.header.is_some() && self.watch.is_dirty() {
                put_dirty(&mut buffer, at, false);
            }
            at += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers.into_inner() {
            self.noted(self.may_write(at, &buffer))?;
            let has_bit = self.header.is_some() && has_dirty_bit(at, buffer.len());
            self.noted(match has_bit && self.watch.is_dirty() {
                true => self.write_header(&buffer, at),
                false => self.file.write_all_at(&buffer, at),
            })?;
            at += buffer.len() as u64;
            self.wrote(at);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.noted(self.zero(offset, length))
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.noted(self.zero(offset, length))
    }

    /// Nothing is kept here.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.no_flush {
            return Ok(());
        }
        self.noted(self.file.sync_data().inspect_err(|_| {
            self.watch.lost.store(true, Ordering::Release);
        }))
    }

    fn settle_writes(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, bytes: u64, how: PreallocateMode) -> io::Result<()> {
        match how {
            PreallocateMode::None | PreallocateMode::Zero => self.noted(self.file.set_len(bytes)),
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    #[test]
    fn zeros_are_written_past_the_cache_of_the_host() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 3 << 16], 0).unwrap();
        fcntl_setfl(&file, fcntl_getfl(&file).unwrap() | OFlags::DIRECT).unwrap();
        write_zeros(&file, 4096, (2 << 16) - 4096).unwrap();
        fcntl_setfl(&file, fcntl_getfl(&file).unwrap() - OFlags::DIRECT).unwrap();
        let mut found = vec![2; 3 << 16];
        file.read_exact_at(&mut found, 0).unwrap();
        for (at, byte) in found.into_iter().enumerate() {
            assert_eq!(byte, u8::from(!(4096..2 << 16).contains(&at)), "{at}");
        }
    }
}
