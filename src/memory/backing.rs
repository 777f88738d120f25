//! The mapping behind a RAM block: anonymous, memfd, file or hugetlbfs, behind one interface.
//!
//! Unsafe because it maps and unmaps memory and advises the kernel about it.
#![allow(unsafe_code)]

use super::error::Error;
use super::full::Watched;
use super::over::Over;
use super::pages::PAGE_BYTES;
use crate::config::{HugePages, MemoryBackend};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Mappings start on this boundary, so that a guest's 2 MiB pages can be host pages too.
const ALIGN_BYTES: u64 = 2 << 20;
/// `f_type` of hugetlbfs, from linux/magic.h.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// `f_type` of tmpfs, memfd's file system too.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// One mapping of guest RAM, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Backing {
    host: NonNull<u8>,
    bytes: u64,
    file: Option<File>,
    /// Of the file, for messages.
    path: Option<PathBuf>,
    on_tmpfs: bool,
    /// Huge pages that nobody else knows of.
    own_hugetlb: bool,
    /// Where the block starts in `file`.
    file_offset: u64,
    /// Bytes of one page of the backend: 4096, or the huge page size of hugetlb memory.
    page_bytes: u64,
    /// Writes reach `file`.
    shared: bool,
    discard_at_exit: bool,
    /// What lies over anonymous memory.
    over: RwLock<Option<Arc<Over>>>,
    /// What the kernel was told about the mapping.
    advice: Vec<i32>,
    /// Ranges, ascending, whose pages are there and have page tables.
    mapped: OnceLock<Vec<Range<u64>>>,
    /// Of this process, opened when it is first asked; `None` if it cannot be.
    page_map: OnceLock<Option<File>>,
    watched: Watched,
}

/// A file behind a mapping.
pub(super) enum Mapped<'b> {
    Own(&'b File),
    Over(Arc<Over>),
}

impl std::ops::Deref for Mapped<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Mapped::Own(file) => file,
            Mapped::Over(over) => &over.file,
        }
    }
}

// SAFETY: the mapping is plain memory that stays where it is until `drop`; all access to its bytes
// goes through raw pointers or vm-memory's volatile accessors, which answer for their own races.
unsafe impl Send for Backing {}
// SAFETY: as for `Send`; no method takes a reference into the mapping.
unsafe impl Sync for Backing {}

impl Backing {
    pub(super) fn new(name: &str, bytes: u64, backend: &MemoryBackend) -> Result<Backing, Error> {
        match backend {
            MemoryBackend::Anonymous { share: false } => {
                Backing::map(bytes, None, 0, PAGE_BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            }
            // Shared memory may be there without a page table, so that only a descriptor can say
            // where its holes are.
            MemoryBackend::Anonymous { share: true } => {
                let made = memfd(name, bytes, false, None);
                let (file, page_bytes) = made.map_err(|source| Error::Map { bytes, source })?;
                Backing::map(bytes, Some(file), 0, page_bytes, libc::MAP_SHARED)
            }
            // Nobody else could see what is in a private memfd; its file would only hold memory
            // that is never used.
            MemoryBackend::Memfd { share: false, huge_pages: None, .. } => {
                Backing::map(bytes, None, 0, PAGE_BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            }
            MemoryBackend::Memfd { share, seal, huge_pages } => {
                let (file, page_bytes) = memfd(name, bytes, *seal, *huge_pages)
                    .map_err(|source| Error::Map { bytes, source })?;
                if !bytes.is_multiple_of(page_bytes) {
                    return Err(Error::PageSize { bytes, page_bytes });
                }
                let mut backing = Backing::map(bytes, Some(file), 0, page_bytes, kind(*share))?;
                backing.own_hugetlb = huge_pages.is_some();
                Ok(backing)
            }
            MemoryBackend::File { readonly: true, .. } => Err(Error::ReadOnly),
            MemoryBackend::File { path, share, offset, discard_at_exit, .. } => {
                let (file, page_bytes) = open(path, *offset, bytes)?;
                let mut backing =
                    Backing::map(bytes, Some(file), *offset, page_bytes, kind(*share))?;
                backing.path = Some(path.clone());
                backing.discard_at_exit = *discard_at_exit && *share;
                Ok(backing)
            }
        }
    }

    /// All of a file, as it is.
    pub(super) fn of_file(file: File) -> Result<Backing, Error> {
        let length = file.metadata().map_err(|source| Error::Map { bytes: 0, source })?.len();
        Backing::map(length, Some(file), 0, PAGE_BYTES, libc::MAP_SHARED)
    }

    pub(super) fn host(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// What the mapping is of.
    pub(super) fn file(&self) -> Option<Mapped<'_>> {
        self.over().map(Mapped::Over).or(self.file.as_ref().map(Mapped::Own))
    }

    pub(super) fn over(&self) -> Option<Arc<Over>> {
        self.over.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The mapping is the file's now, or none's any more.
    pub(super) fn set_over(&self, over: Option<Over>) {
        *self.over.write().unwrap_or_else(PoisonError::into_inner) = over.map(Arc::new);
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.over().map(|over| over.path.clone()).or(self.path.clone())
    }

    pub(super) fn is_own_hugetlb(&self) -> bool {
        self.own_hugetlb
    }

    /// Of this process.
    pub(super) fn page_map(&self) -> Option<&File> {
        self.page_map.get_or_init(|| crate::io::proc::open("pagemap").ok()).as_ref()
    }

    pub(super) fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Pages were lost, and are this process's own now.
    pub(super) fn has_lost(&self) -> bool {
        self.watched.count() > 0
    }

    /// Why the page at `offset` cannot be had.
    pub(super) fn why_missing(&self, offset: u64) -> io::Error {
        let Some(file) = self.file() else { return io::Error::from_raw_os_error(libc::ENOMEM) };
        let end = self.file_offset() + offset + self.page_bytes;
        if file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() < end) {
            return io::ErrorKind::UnexpectedEof.into();
        }
        match file_system(&file) {
            Ok(found) if found.f_bavail == 0 => io::Error::from_raw_os_error(libc::ENOSPC),
            _ => io::Error::from_raw_os_error(libc::EFAULT),
        }
    }

    pub(super) fn file_offset(&self) -> u64 {
        self.over().map_or(self.file_offset, |over| over.offset)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(super) fn is_discarded_at_exit(&self) -> bool {
        self.discard_at_exit
    }

    /// Whether a range is known to have page tables and memory.
    pub(super) fn is_mapped(&self, range: &Range<u64>) -> bool {
        let ranges = self.mapped.get().map_or(&[][..], Vec::as_slice);
        let after = ranges.partition_point(|mapped| mapped.start <= range.start);
        after.checked_sub(1).is_some_and(|at| range.end <= ranges[at].end)
    }

    /// Whether whole pages of `range` are better written through the descriptor than through the
    /// mapping: memory that is not there yet is then not cleared before it is overwritten, and no
    /// page table has to be made for it. hugetlbfs cannot be written to.
    pub(super) fn is_filled_by_descriptor(&self, range: &Range<u64>) -> bool {
        self.file.is_some()
            && self.shared
            && !self.has_lost()
            && self.page_bytes == PAGE_BYTES
            && !self.is_mapped(range)
    }

    /// Notes which ranges, ascending, have page tables and memory. Only the first call counts.
    pub(super) fn note_mapped(&self, ranges: Vec<Range<u64>>) {
        let _ = self.mapped.set(ranges);
    }

    /// Whether [`Backing::note_mapped`] was called.
    pub(super) fn is_noted(&self) -> bool {
        self.mapped.get().is_some()
    }

    /// Whether a page of the file that is there can be written to as soon as it is mapped, without
    /// asking a file system.
    pub(super) fn is_shared_tmpfs(&self) -> bool {
        self.shared && self.on_tmpfs
    }

    /// Memfds are, too.
    pub(super) fn is_on_tmpfs(&self) -> bool {
        self.over().map_or(self.on_tmpfs, |over| over.on_tmpfs)
    }

    /// Writes `pieces` one after another from `offset` (bytes into the block) on.
    ///
    /// # Panics
    /// When they do not lie in the block.
    pub(super) fn fill(&self, offset: u64, mut pieces: &mut [io::IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!(offset.checked_add(bytes as u64).is_some_and(|end| end <= self.bytes));
        match &self.file {
            Some(file) if self.is_filled_by_descriptor(&(offset..offset + bytes as u64)) => {
                let mut at = self.file_offset + offset;
                let end = at + bytes as u64;
                while at < end {
                    let written =
                        rustix::io::retry_on_intr(|| rustix::io::pwritev(file, pieces, at))?;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    at += written as u64;
                    io::IoSlice::advance_slices(&mut pieces, written);
                }
            }
            _ => {
                let mut at = offset as usize;
                for piece in pieces {
                    // SAFETY: the range lies in the mapping, as was checked above; a piece is
                    // borrowed memory, which no part of guest RAM ever is.
                    unsafe {
                        self.host().add(at).copy_from_nonoverlapping(piece.as_ptr(), piece.len())
                    };
                    at += piece.len();
                }
            }
        }
        Ok(())
    }

    /// Gives the pages of `range` back to the host; they read as zero afterwards.
    pub(super) fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let inside = range.start <= range.end && range.end <= self.bytes;
        if !inside
            || !range.start.is_multiple_of(self.page_bytes)
            || !range.end.is_multiple_of(self.page_bytes)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if range.is_empty() {
            return Ok(());
        }
        match self.file() {
            Some(file) if self.shared => {
                punch(&file, self.file_offset + range.start, range.end - range.start)
            }
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => self.advise(range, libc::MADV_DONTNEED),
        }
    }

    /// Touches every page, so that none is missing later.
    pub(super) fn populate(&self) -> Result<(), Error> {
        match self.advise(0..self.bytes, libc::MADV_POPULATE_WRITE) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.touch(),
            done => done.map_err(|source| Error::Prealloc { source })?,
        }
        self.note_mapped(std::iter::once(0..self.bytes).collect());
        Ok(())
    }

    /// For kernels before 5.14, which do not know `MADV_POPULATE_WRITE`.
    fn touch(&self) {
        for offset in (0..self.bytes).step_by(self.page_bytes as usize) {
            // SAFETY: `offset` is inside the mapping; called before anything else uses the memory,
            // so that reading a byte and writing it back races with nobody.
            unsafe {
                let byte = self.host().add(offset as usize);
                byte.write_volatile(byte.read_volatile());
            }
        }
    }

    /// Tells the kernel about the whole mapping, and about what will lie over it. Advice only: a host
    /// that does not take it runs the guest all the same.
    pub(super) fn advise_all(&mut self, advice: Vec<i32>) {
        self.advice = advice;
        self.advise_again();
    }

    pub(super) fn advise_again(&self) {
        for advice in &self.advice {
            let _ = self.advise(0..self.bytes, *advice);
        }
    }

    /// `madvise` on a range of the mapping.
    pub(super) fn advise(&self, range: Range<u64>, advice: i32) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY: the range lies in our mapping (checked); callers pass only advice that keeps it
        // mapped.
        let rc = unsafe {
            let start = self.host().add(range.start as usize);
            libc::madvise(start.cast(), (range.end - range.start) as usize, advice)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn map(
        bytes: u64,
        file: Option<File>,
        offset: u64,
        page_bytes: u64,
        flags: i32,
    ) -> Result<Backing, Error> {
        if bytes == 0 || !bytes.is_multiple_of(page_bytes) {
            return Err(Error::PageSize { bytes, page_bytes });
        }
        let align = if bytes >= ALIGN_BYTES { page_bytes.max(ALIGN_BYTES) } else { page_bytes };
        let host = map_aligned(bytes, align, flags, file.as_ref(), offset);
        let host = host.map_err(|source| Error::Map { bytes, source })?;
        let shared = flags & libc::MAP_SHARED != 0;
        let start = host.as_ptr() as usize;
        let on_tmpfs = file.as_ref().is_some_and(is_on_tmpfs);
        Ok(Backing {
            host,
            bytes,
            file,
            path: None,
            on_tmpfs,
            own_hugetlb: false,
            file_offset: offset,
            page_bytes,
            shared,
            discard_at_exit: false,
            over: RwLock::default(),
            advice: Vec::new(),
            mapped: OnceLock::new(),
            page_map: OnceLock::new(),
            watched: Watched::new(start..start + bytes as usize, page_bytes as usize),
        })
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.discard_at_exit {
            let _ = self.discard(0..self.bytes);
        }
        self.watched = Watched::nothing();
        // SAFETY: the mapping is ours and whole. Whoever holds a pointer into it holds the block,
        // too.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.bytes as usize) };
    }
}

fn kind(share: bool) -> i32 {
    if share { libc::MAP_SHARED } else { libc::MAP_PRIVATE }
}

/// Maps on a multiple of `align`: a larger range is reserved first, what sticks out is given back.
fn map_aligned(
    bytes: u64,
    align: u64,
    flags: i32,
    file: Option<&File>,
    offset: u64,
) -> io::Result<NonNull<u8>> {
    let (bytes, align) = (bytes as usize, align as usize);
    let room = bytes.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh reservation at an address of the kernel's choice touches nothing that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, reserve, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = (base as usize).next_multiple_of(align);
    let (before, after) = (start - base as usize, base as usize + room - start - bytes);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: MAP_FIXED replaces a part of the reservation made above, which nobody else knows; the
    // two munmap calls (or the one on failure) cover what is left of it.
    unsafe {
        let at = libc::mmap(
            start as *mut _,
            bytes,
            prot,
            flags | libc::MAP_FIXED,
            fd,
            offset as libc::off_t,
        );
        if at == libc::MAP_FAILED {
            let e = io::Error::last_os_error();
            libc::munmap(base, room);
            return Err(e);
        }
        if before > 0 {
            libc::munmap(base, before);
        }
        if after > 0 {
            libc::munmap((start + bytes) as *mut _, after);
        }
        Ok(NonNull::new_unchecked(at.cast()))
    }
}

fn memfd(name: &str, bytes: u64, seal: bool, huge: Option<HugePages>) -> io::Result<(File, u64)> {
    let mut flags = libc::MFD_CLOEXEC;
    if seal {
        flags |= libc::MFD_ALLOW_SEALING;
    }
    match huge {
        None => {}
        Some(HugePages::Default) => flags |= libc::MFD_HUGETLB,
        Some(HugePages::Bytes(b)) => {
            flags |= libc::MFD_HUGETLB | b.trailing_zeros() << libc::MFD_HUGE_SHIFT;
        }
    }
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: `name` is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    if seal {
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: F_ADD_SEALS takes an integer and touches no memory of ours.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let page_bytes = if huge.is_some() { file_page_bytes(&file)? } else { PAGE_BYTES };
    Ok((file, page_bytes))
}

/// Opens or makes the file; a directory gives an unnamed file in it. One without anything in it
/// gets the size that is needed; one with something in it, but too little, is a mistake, and is left
/// as it is.
fn open(path: &Path, offset: u64, bytes: u64) -> Result<(File, u64), Error> {
    let mut options = File::options();
    options.read(true).write(true);
    let file = if path.is_dir() {
        unnamed(path)
    } else {
        options.create(true).truncate(false).mode(0o644).open(path)
    };
    let file = file.map_err(|source| Error::Open { path: path.into(), source })?;
    let resize = |source| Error::Resize { path: path.into(), source };
    let page_bytes = file_page_bytes(&file).map_err(resize)?;
    if !bytes.is_multiple_of(page_bytes) || !offset.is_multiple_of(page_bytes) {
        return Err(Error::PageSize { bytes, page_bytes });
    }
    let meta = file.metadata().map_err(resize)?;
    let needed = offset.checked_add(bytes).ok_or(Error::PageSize { bytes, page_bytes })?;
    match meta.len() {
        has if !meta.is_file() || has >= needed => {}
        0 => file.set_len(needed).map_err(resize)?,
        has => return Err(Error::TooShort { path: path.into(), has, needed }),
    }
    Ok((file, page_bytes))
}

/// hugetlbfs has no `O_TMPFILE`, so that a name is made and removed there.
fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let path = dir.join(format!(
                "godwit.{}.{:x}",
                std::process::id(),
                &raw const options as usize
            ));
            let file = options.create_new(true).mode(0o600).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        done => done,
    }
}

/// 4096, or the page size of the hugetlbfs that the file lies on.
fn file_page_bytes(file: &File) -> io::Result<u64> {
    let stat = file_system(file)?;
    Ok(if stat.f_type == HUGETLBFS_MAGIC { stat.f_bsize as u64 } else { PAGE_BYTES })
}

pub(super) fn is_on_tmpfs(file: &File) -> bool {
    file_system(file).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
}

fn file_system(file: &File) -> io::Result<libc::statfs> {
    // SAFETY: all-zero is a valid `statfs`, and the call fills the one it is given.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        match libc::fstatfs(file.as_raw_fd(), &mut stat) {
            0 => Ok(stat),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes integers only.
    let rc = unsafe {
        libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, bytes as libc::off_t)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
