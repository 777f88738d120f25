//! A block of guest RAM: what lies behind it, where the guest sees it, where it has holes.

use super::backing::Backing;
use super::error::Error;
use super::pages::{PAGE_BYTES, PageSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a part of a block appears in the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Offset of that byte in the block.
    pub offset: u64,
    pub bytes: u64,
}

/// A block of guest memory: one mapping, one name in migration streams. Clones are the same block.
#[derive(Clone, Debug)]
pub struct RamBlock {
    inner: Arc<BlockInner>,
}

#[derive(Debug)]
struct BlockInner {
    name: String,
    backing: Backing,
    regions: Vec<Region>,
    /// Losses that a reset, or a guest that arrived, has done away with.
    forgiven: AtomicU64,
}

impl RamBlock {
    pub(super) fn new(name: String, backing: Backing, regions: Vec<Region>) -> RamBlock {
        RamBlock {
            inner: Arc::new(BlockInner { name, backing, regions, forgiven: AtomicU64::new(0) }),
        }
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn bytes(&self) -> u64 {
        self.inner.backing.bytes()
    }

    /// Opens what tells holes, before this process may no longer.
    pub(crate) fn prepare_holes(&self) {
        self.inner.backing.page_map();
    }

    /// Whether both are the same block.
    pub(crate) fn is(&self, other: &RamBlock) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Number of 4 KiB pages.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_BYTES
    }

    /// Start of the mapping in this process; valid as long as a clone of the block lives. vCPUs
    /// write there at any time, so no Rust reference may be made to these bytes while they run.
    pub fn host(&self) -> *mut u8 {
        self.inner.backing.host()
    }

    /// Whether it is private memory without a file.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.inner.backing.file().is_none()
    }

    /// Its file, for another process that shares it.
    pub(crate) fn descriptor(&self) -> Option<File> {
        self.inner.backing.file().and_then(|file| file.try_clone().ok())
    }

    /// Where the block starts in its file, if it has one.
    pub(crate) fn file_offset(&self) -> u64 {
        self.inner.backing.file_offset()
    }

    /// Whether what the guest writes reaches the descriptor.
    pub(crate) fn is_shared(&self) -> bool {
        self.inner.backing.is_shared()
    }

    /// Bytes of one page of the backend: 4096, or more on hugetlbfs. Discarding works in these
    /// units.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.inner.backing.page_bytes()
    }

    /// Where the guest sees the block, ascending. Empty for a block that is only kept.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// The first range at or after `from` (bytes into the block) that may hold something else than
    /// zeros; `None` if only holes follow. Asking is reading: clear the dirty bits of the range
    /// first. Touches no page.
    pub(crate) fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Error> {
        self.inner.backing.next_data(from).map_err(|source| self.hole_error(source))
    }

    /// Where the first data in a range (bytes) begin, by [`RamBlock::next_data`]'s rules, at a cost
    /// that does not grow with the data, nor, beyond the range, with the hole.
    pub(crate) fn first_data(&self, range: Range<u64>) -> Result<Option<u64>, Error> {
        self.inner.backing.first_data(range).map_err(|source| self.hole_error(source))
    }

    /// Says which pages of a range (bytes) were ever touched, by their offset, at a cost of the
    /// range's length alone. False: this memory cannot tell, and [`RamBlock::next_data`] is to be
    /// asked.
    pub(crate) fn touched(&self, range: Range<u64>, say: impl FnMut(u64)) -> Result<bool, Error> {
        self.inner.backing.touched(range, say).map_err(|source| self.hole_error(source))
    }

    /// Says which parts of `range` (bytes, in whole pages) may hold something else than zeros,
    /// ascending. `known` is what the last answer brought beyond the range, which spares questions
    /// of who asks for range after range; it holds data only: a hole must be asked for again each
    /// time. Asking is reading: clear the dirty bits of the range first. Touches no page.
    pub(crate) fn data_in(
        &self,
        range: Range<u64>,
        known: &mut Range<u64>,
        mut say: impl FnMut(Range<u64>),
    ) -> Result<(), Error> {
        if self.touched(range.clone(), |page| say(page..page + PAGE_BYTES))? {
            return Ok(());
        }
        // Finding where data end takes as long as there are pages; that there are any, or no hole,
        // is known sooner.
        if !known.contains(&range.start) && self.is_in_memory(range.clone()) {
            say(range);
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            if !known.contains(&at) {
                if self.first_data(at..range.end)?.is_none() {
                    break;
                }
                match self.next_data(at)? {
                    Some(data) => *known = data,
                    None => break,
                }
            }
            let from = known.start.max(at);
            if from >= range.end {
                break;
            }
            say(from..known.end.min(range.end));
            at = known.end;
        }
        Ok(())
    }

    /// True if all of a range (bytes, whole pages) is in memory, and so has no hole, at a cost that
    /// is small beside that of reading it. False says nothing.
    pub(crate) fn is_in_memory(&self, range: Range<u64>) -> bool {
        self.inner.backing.is_in_memory(range)
    }

    /// Whether [`RamBlock::fill`] writes a range through the descriptor, and so beats writing to
    /// [`RamBlock::host`].
    pub(crate) fn is_filled_by_descriptor(&self, range: &Range<u64>) -> bool {
        self.inner.backing.is_filled_by_descriptor(range)
    }

    /// Whether a range is known to have page tables and memory, so that writing there takes no
    /// fault.
    pub(crate) fn is_mapped(&self, range: &Range<u64>) -> bool {
        self.inner.backing.is_mapped(range)
    }

    /// Keeps huge pages away, for tests that ask which pages are there.
    #[cfg(test)]
    pub(crate) fn small_pages(&self) {
        let _ = self.inner.backing.advise(0..self.bytes(), libc::MADV_NOHUGEPAGE);
    }

    pub(super) fn backing(&self) -> &Backing {
        &self.inner.backing
    }

    /// All pages that are not holes, by [`RamBlock::next_data`].
    pub(crate) fn data_pages(&self) -> Result<PageSet, Error> {
        let mut set = PageSet::new(self.pages());
        let mut at = 0;
        while let Some(data) = self.next_data(at)? {
            set.insert_range(data.start / PAGE_BYTES..data.end.div_ceil(PAGE_BYTES));
            at = data.end;
        }
        Ok(set)
    }

    /// True if the page is a hole, and so reads as zero.
    pub(crate) fn is_hole(&self, page: u64) -> Result<bool, Error> {
        Ok(self.first_data(page * PAGE_BYTES..(page + 1) * PAGE_BYTES)?.is_none())
    }

    /// Guest physical address of a byte of the block.
    pub fn gpa(&self, offset: u64) -> Option<u64> {
        let region =
            self.regions().iter().find(|r| (r.offset..r.offset + r.bytes).contains(&offset))?;
        Some(region.gpa + (offset - region.offset))
    }

    /// Offset in the block of a guest physical address.
    pub(crate) fn offset(&self, gpa: u64) -> Option<u64> {
        let region = self.regions().iter().find(|r| (r.gpa..r.gpa + r.bytes).contains(&gpa))?;
        Some(region.offset + (gpa - region.gpa))
    }

    /// How many pages went away under the hands of who read or wrote them: nothing reads right if
    /// the number moves meanwhile, see [`RamBlock::check_losses`]. Costs one load.
    pub(crate) fn losses(&self) -> u64 {
        self.inner.backing.watched().count()
    }

    /// Fails if pages were lost since there were `before`.
    pub(crate) fn check_losses(&self, before: u64) -> Result<(), Error> {
        if self.losses() == before {
            return Ok(());
        }
        Err(self.missing(self.inner.backing.watched().offset()))
    }

    /// Fails where this is not the guest's memory: pages were lost that nobody has forgiven, or the file
    /// that lies over it was written to. The number of losses is for [`RamBlock::check_still_whole`].
    pub(crate) fn check_whole(&self) -> Result<u64, Error> {
        let losses = self.forgiven();
        self.check_still_whole(losses)?;
        Ok(losses)
    }

    /// Fails if pages were lost since there were `before`, as [`RamBlock::check_losses`] does, or if
    /// the file that lies over the memory was written to; that file is asked itself, for who is told
    /// of a write hears of it later than it can be seen. Comes behind the last read of a copy that is
    /// to be whole.
    pub(crate) fn check_still_whole(&self, before: u64) -> Result<(), Error> {
        match self.backing().over() {
            Some(over) if over.is_changed() => Err(Error::Changed { block: self.label() }),
            _ => self.check_losses(before),
        }
    }

    /// Losses that [`RamBlock::forgive`] has done away with.
    pub(crate) fn forgiven(&self) -> u64 {
        self.inner.forgiven.load(Ordering::Acquire)
    }

    /// Memory with so many losses is a guest's again, as it is: one that starts over, or one that came.
    pub(crate) fn forgive(&self, losses: u64) {
        self.inner.forgiven.store(losses, Ordering::Release);
    }

    /// Why the host cannot supply the page at `offset`.
    pub(crate) fn missing(&self, offset: u64) -> Error {
        if self.backing().over().is_some_and(|over| over.is_changed()) {
            return Error::Changed { block: self.label() };
        }
        self.full(offset, self.inner.backing.why_missing(offset))
    }

    /// The error of a host that did not supply memory at `offset`.
    pub(crate) fn full(&self, offset: u64, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.hole_error(source),
            _ => Error::Full { block: self.label(), offset, source },
        }
    }

    pub(super) fn hole_error(&self, source: io::Error) -> Error {
        let left = || {
            let bytes = self.inner.backing.file()?.metadata().ok()?.len();
            Some(bytes.saturating_sub(self.file_offset()))
        };
        match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::CutShort { block: self.label(), left: left().unwrap_or(0) }
            }
            _ => Error::Hole { block: self.label(), source },
        }
    }

    /// The block's name, and the file's behind it.
    fn label(&self) -> String {
        match self.inner.backing.path() {
            Some(path) => format!("{:?} ({})", self.name(), path.display()),
            None => format!("{:?}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryBackend;
    use crate::memory::with_backend;

    fn memfd() -> MemoryBackend {
        MemoryBackend::Memfd { share: true, seal: false, huge_pages: None }
    }

    #[test]
    fn holes_are_found_and_made() {
        for backend in [memfd(), MemoryBackend::Anonymous { share: false }] {
            let ram = with_backend(16 << 20, backend).unwrap();
            // Page-exact answers need small pages.
            ram.main().small_pages();
            assert_eq!(ram.main().next_data(0).unwrap(), None);
            ram.write(5 * PAGE_BYTES, &[1; 8192]).unwrap();
            ram.write(600 * PAGE_BYTES, &[1]).unwrap();
            assert_eq!(ram.main().data_pages().unwrap().iter().collect::<Vec<_>>(), [5, 6, 600]);
            assert!(ram.main().is_hole(4).unwrap() && !ram.main().is_hole(5).unwrap());
            let first = |pages: Range<u64>| {
                let range = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
                ram.main().first_data(range).unwrap().map(|at| at / PAGE_BYTES)
            };
            assert_eq!(
                (first(0..4096), first(6..7), first(7..4096)),
                (Some(5), Some(6), Some(600))
            );
            assert_eq!(
                (first(0..5), first(7..600), first(601..4096), first(4096..9000)),
                (None, None, None, None)
            );
            ram.main().inner.backing.discard(5 * PAGE_BYTES..6 * PAGE_BYTES).unwrap();
            assert_eq!(ram.main().data_pages().unwrap().iter().collect::<Vec<_>>(), [6, 600]);
            let mut byte = [9];
            ram.read(5 * PAGE_BYTES, &mut byte).unwrap();
            assert_eq!(byte, [0]);
        }
    }

    #[test]
    fn a_page_of_a_private_file_is_a_hole_if_neither_the_file_nor_the_process_has_it() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("ram");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(16 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 300 * PAGE_BYTES).unwrap();
        let backend = |share| MemoryBackend::File {
            path: path.clone(),
            share,
            offset: 0,
            readonly: false,
            discard_at_exit: false,
        };
        let ram = with_backend(16 << 20, backend(false)).unwrap();
        let main = ram.main();
        main.small_pages();
        ram.write(5 * PAGE_BYTES, &[1]).unwrap();
        ram.write(301 * PAGE_BYTES, &[0; 4096]).unwrap();
        ram.write(400 * PAGE_BYTES, &[1]).unwrap();
        let pages = main.data_pages().unwrap();
        assert_eq!(pages.iter().collect::<Vec<_>>(), [5, 300, 301, 400]);
        assert!(main.is_hole(4).unwrap() && !main.is_hole(301).unwrap());
        let mut byte = [9];
        ram.read(301 * PAGE_BYTES, &mut byte).unwrap();
        assert_eq!(byte, [0], "the process's own page counts");
        let mut seen = Vec::new();
        main.data_in(1 << 20..2 << 20, &mut (0..0), |data| seen.push(data)).unwrap();
        let page = |page: u64| page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        assert_eq!(seen.iter().map(|data| data.end - data.start).sum::<u64>(), 3 * PAGE_BYTES);
        assert_eq!(seen.last(), Some(&page(400)));
    }

    #[test]
    fn a_page_without_a_page_table_entry_is_no_hole() {
        for backend in [memfd(), MemoryBackend::Anonymous { share: true }] {
            let ram = with_backend(16 << 20, backend).unwrap();
            let (main, backing) = (ram.main(), ram.main().backing());
            main.small_pages();
            ram.write(5 * PAGE_BYTES, &[1; 8192]).unwrap();
            // As swapping and collapsing do: the entries go, the memory stays.
            backing.advise(0..16 << 20, libc::MADV_DONTNEED).unwrap();
            assert_eq!(main.data_pages().unwrap().iter().collect::<Vec<_>>(), [5, 6]);
            assert_eq!(main.first_data(0..main.bytes()).unwrap(), Some(5 * PAGE_BYTES));
            assert!(!main.is_hole(6).unwrap());
            main.inner.backing.discard(5 * PAGE_BYTES..6 * PAGE_BYTES).unwrap();
            assert_eq!(main.data_pages().unwrap().iter().collect::<Vec<_>>(), [6]);
        }
    }

    #[test]
    fn write_protection_fills_no_hole_with_userfaultfd() {
        use std::os::unix::fs::FileExt;
        for backend in [memfd(), MemoryBackend::Anonymous { share: false }] {
            let ram = with_backend(16 << 20, backend).unwrap();
            let main = ram.main();
            let _ = main.backing().advise(0..16 << 20, libc::MADV_NOHUGEPAGE);
            ram.write(5 * PAGE_BYTES, &[1; 8192]).unwrap();
            let mut entry = [0; 8];
            let page = main.host() as u64 / PAGE_BYTES + 5;
            std::fs::File::open("/proc/self/pagemap")
                .unwrap()
                .read_exact_at(&mut entry, page * 8)
                .unwrap();
            let places_are_shown = u64::from_ne_bytes(entry) << 9 != 0;
            let watch = ram.watch_main().unwrap();
            watch.protect(0..main.bytes(), true).unwrap();
            let data = main.data_pages().unwrap();
            if places_are_shown || main.is_shared() {
                assert_eq!(data.iter().collect::<Vec<_>>(), [5, 6]);
            } else {
                assert!(data.contains(5) && data.contains(6));
            }
            drop(watch);
            assert_eq!(main.data_pages().unwrap().iter().collect::<Vec<_>>(), [5, 6]);
        }
    }
}
