//! All RAM of one guest, by block and by guest address.
//!
//! Unsafe because vm-memory's regions are laid over mappings that the blocks own.
#![allow(unsafe_code)]

use super::backing::Backing;
use super::uffd::{Uffd, Unavailable};
use super::watch::{BeforeWrite, Watch, WriteGuard};
use super::{Error, PAGE_BYTES, PageSet};
use crate::config::{Memory, MemoryBackend};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

/// RAM as vm-memory and the crates built upon it see it. Writes through it mark their pages.
pub type Mem = GuestMemoryMmap<AtomicBitmap>;

/// RAM below the 4 GiB hole ends here at the latest; the rest starts at [`HIGH_START`] (QEMU's
/// microvm).
const LOW_END: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;
/// Firmware, the only memory that a stream brings without a device here, is smaller.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Where a part of a block appears in the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
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
}

impl RamBlock {
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn bytes(&self) -> u64 {
        self.inner.backing.bytes()
    }

    /// Whether both are the same block.
    pub fn is(&self, other: &RamBlock) -> bool {
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

    /// The descriptor behind the block, unless it is private anonymous memory.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.backing.fd()
    }

    /// Where the block starts in [`RamBlock::fd`].
    pub fn file_offset(&self) -> u64 {
        self.inner.backing.file_offset()
    }

    /// Whether what the guest writes reaches the descriptor.
    pub fn is_shared(&self) -> bool {
        self.inner.backing.is_shared()
    }

    /// Bytes of one page of the backend: 4096, or more on hugetlbfs. Discarding works in these
    /// units.
    pub fn page_bytes(&self) -> u64 {
        self.inner.backing.page_bytes()
    }

    /// Where the guest sees the block, ascending. Empty for a block that is only kept.
    pub fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// The first range at or after `from` (bytes into the block) that may hold something else than
    /// zeros; `None` if only holes follow. Asking is reading: clear the dirty bits of the range
    /// first. Touches no page.
    pub fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Error> {
        self.inner.backing.next_data(from).map_err(|source| self.hole_error(source))
    }

    /// Where the first data in a range (bytes) begin, by [`RamBlock::next_data`]'s rules, at a cost
    /// that does not grow with the data, nor, beyond the range, with the hole.
    pub fn first_data(&self, range: Range<u64>) -> Result<Option<u64>, Error> {
        self.inner.backing.first_data(range).map_err(|source| self.hole_error(source))
    }

    /// Says which pages of a range (bytes) were ever touched, by their offset, at a cost of the
    /// range's length alone. False: this memory cannot tell, and [`RamBlock::next_data`] is to be
    /// asked.
    pub fn touched(&self, range: Range<u64>, say: impl FnMut(u64)) -> Result<bool, Error> {
        self.inner.backing.touched(range, say).map_err(|source| self.hole_error(source))
    }

    /// Says which parts of `range` (bytes, in whole pages) may hold something else than zeros,
    /// ascending. `known` is what the last answer brought beyond the range, which spares questions
    /// of who asks for range after range; it holds data only: a hole must be asked for again each
    /// time. Asking is reading: clear the dirty bits of the range first. Touches no page.
    pub fn data_in(
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
    pub fn is_in_memory(&self, range: Range<u64>) -> bool {
        self.inner.backing.is_in_memory(range)
    }

    /// Whether [`RamBlock::fill`] writes a range through the descriptor, and so beats writing to
    /// [`RamBlock::host`].
    pub fn is_filled_by_descriptor(&self, range: &Range<u64>) -> bool {
        self.inner.backing.is_filled_by_descriptor(range)
    }

    /// Whether a range is known to have page tables and memory, so that writing there takes no
    /// fault.
    pub fn is_mapped(&self, range: &Range<u64>) -> bool {
        self.inner.backing.is_mapped(range)
    }

    /// Keeps huge pages away, for tests that ask which pages are there.
    #[cfg(test)]
    pub fn small_pages(&self) {
        let _ = self.inner.backing.advise(0..self.bytes(), libc::MADV_NOHUGEPAGE);
    }

    pub(super) fn backing(&self) -> &Backing {
        &self.inner.backing
    }

    /// All pages that are not holes, by [`RamBlock::next_data`].
    pub fn data_pages(&self) -> Result<PageSet, Error> {
        let mut set = PageSet::new(self.pages());
        let mut at = 0;
        while let Some(data) = self.next_data(at)? {
            set.insert_range(data.start / PAGE_BYTES..data.end.div_ceil(PAGE_BYTES));
            at = data.end;
        }
        Ok(set)
    }

    /// True if the page is a hole, and so reads as zero.
    pub fn is_hole(&self, page: u64) -> Result<bool, Error> {
        Ok(self.first_data(page * PAGE_BYTES..(page + 1) * PAGE_BYTES)?.is_none())
    }

    /// Gives pages back to the host; they are holes afterwards. `range` is in bytes, in units of
    /// [`RamBlock::page_bytes`]. Does not mark pages dirty.
    pub fn discard(&self, range: Range<u64>) -> Result<(), Error> {
        self.inner.backing.discard(range).map_err(|source| self.hole_error(source))
    }

    /// Guest physical address of a byte of the block.
    pub fn gpa(&self, offset: u64) -> Option<u64> {
        let region =
            self.regions().iter().find(|r| (r.offset..r.offset + r.bytes).contains(&offset))?;
        Some(region.gpa + (offset - region.offset))
    }

    /// Offset in the block of a guest physical address.
    pub fn offset(&self, gpa: u64) -> Option<u64> {
        let region = self.regions().iter().find(|r| (r.gpa..r.gpa + r.bytes).contains(&gpa))?;
        Some(region.offset + (gpa - region.gpa))
    }

    /// How many pages went away under the hands of who read or wrote them: nothing reads right if
    /// the number moves meanwhile, see [`RamBlock::check_losses`]. Costs one load.
    pub fn losses(&self) -> u64 {
        self.inner.backing.watched().count()
    }

    /// Fails if pages were lost since there were `before`.
    pub fn check_losses(&self, before: u64) -> Result<(), Error> {
        if self.losses() == before {
            return Ok(());
        }
        Err(self.missing(self.inner.backing.watched().offset()))
    }

    /// Why the host cannot supply the page at `offset`.
    pub fn missing(&self, offset: u64) -> Error {
        self.full(offset, self.inner.backing.why_missing(offset))
    }

    /// The error of a host that did not supply memory at `offset`.
    pub fn full(&self, offset: u64, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.hole_error(source),
            _ => Error::Full { block: self.label(), offset, source },
        }
    }

    fn hole_error(&self, source: io::Error) -> Error {
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

/// All RAM of a guest. Clones are cheap and are the same RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    inner: Arc<RamInner>,
}

#[derive(Debug)]
struct RamInner {
    main: [RamBlock; 1],
    /// The main block and one that a stream brought, once there is one.
    with_kept: OnceLock<Vec<RamBlock>>,
    mem: Mem,
    watch: Watch,
}

impl GuestRam {
    /// Maps RAM as configured.
    ///
    /// # Errors
    /// [`Error::Map`] when memory is short, [`Error::Open`] and [`Error::Resize`] for files,
    /// [`Error::PageSize`].
    pub fn new(config: &Memory) -> Result<GuestRam, Error> {
        let backing = Backing::new(&config.block, config.bytes, &config.backend)?;
        advise(&backing, config);
        if config.prealloc {
            backing.populate()?;
        }
        let regions = layout(config.bytes);
        let main = block(config.block.clone(), backing, regions);
        let mem = lay_over(&main)?;
        Ok(GuestRam {
            inner: Arc::new(RamInner {
                main: [main],
                with_kept: OnceLock::new(),
                mem,
                watch: Watch::default(),
            }),
        })
    }

    /// The blocks, the guest's RAM first.
    pub fn blocks(&self) -> &[RamBlock] {
        self.inner.with_kept.get().map_or(&self.inner.main, Vec::as_slice)
    }

    /// The guest's RAM.
    pub fn main(&self) -> &RamBlock {
        &self.inner.main[0]
    }

    pub fn block(&self, name: &str) -> Option<&RamBlock> {
        self.blocks().iter().find(|b| b.name() == name)
    }

    /// The block `name`, made if it is not there: memory that belongs to no device here (`pc.bios`)
    /// and is kept because a stream brought it. One such block at most; the guest does not see it.
    pub fn keep_block(&self, name: &str, bytes: u64) -> Result<&RamBlock, Error> {
        if self.block(name).is_none() && self.inner.with_kept.get().is_none() {
            if bytes > KEPT_BYTES_MAX {
                return Err(Error::BlockTooLarge { name: name.into(), bytes });
            }
            let backend = MemoryBackend::Anonymous { share: false };
            let kept = block(name.into(), Backing::new(name, bytes, &backend)?, Vec::new());
            let _ = self.inner.with_kept.set(vec![self.main().clone(), kept]);
        }
        let found = self.block(name).filter(|b| b.bytes() == bytes);
        found.ok_or_else(|| Error::BlockExists(name.into()))
    }

    /// vm-memory's view, by guest address.
    pub fn mem(&self) -> &Mem {
        &self.inner.mem
    }

    /// Bytes of all RAM that the guest sees.
    pub fn bytes(&self) -> u64 {
        self.main().bytes()
    }

    /// Copies guest memory at `gpa` into `buf`. A hole that is read may become memory: who reads
    /// much asks for holes first.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (bytes, losses) = (buf.len(), self.main().losses());
        self.mem().read_slice(buf, GuestAddress(gpa)).map_err(|_| Error::Address { gpa, bytes })?;
        self.main().check_losses(losses)
    }

    /// Copies `bytes` into guest memory and marks the pages.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Error> {
        let (len, losses) = (bytes.len(), self.main().losses());
        let _guard = self.ask_to_write(gpa, len as u64);
        self.mem()
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|_| Error::Address { gpa, bytes: len })?;
        self.main().check_losses(losses)
    }

    /// Announces that this process will write `bytes` bytes at `gpa` by another way than
    /// [`GuestRam::write`]: through [`GuestRam::mem`], or by DMA, which holds the guard from before
    /// its submission until its completion. Memory that is not there is not asked for.
    pub fn ask_to_write(&self, gpa: u64, bytes: u64) -> WriteGuard<'_> {
        let main = self.main();
        let region = main.regions().iter().find(|r| (r.gpa..r.gpa + r.bytes).contains(&gpa));
        let range = region.map_or(0..0, |region| {
            let start = region.offset + (gpa - region.gpa);
            start..start + bytes.min(region.gpa + region.bytes - gpa)
        });
        self.inner.watch.ask(range)
    }

    /// Reads the main block, from `offset` on; it may reach over the end of a region.
    pub(super) fn read_main(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), Error> {
        for region in self.main().regions() {
            let end = region.offset + region.bytes;
            if !buf.is_empty() && (region.offset..end).contains(&offset) {
                let (part, rest) = buf.split_at_mut(buf.len().min((end - offset) as usize));
                self.read(region.gpa + (offset - region.offset), part)?;
                offset = end;
                buf = rest;
            }
        }
        if buf.is_empty() { Ok(()) } else { Err(Error::Address { gpa: offset, bytes: buf.len() }) }
    }

    /// Who is asked before this process writes the main block. Waits for every write in progress.
    pub(super) fn set_watch(&self, asked: Option<Arc<dyn BeforeWrite>>) {
        self.inner.watch.set(asked);
    }

    /// Write protection for the main block. It must not outlive this RAM: whoever takes it keeps a
    /// clone.
    pub(super) fn watch_main(&self) -> Result<Uffd, Unavailable> {
        let main = self.main();
        let anonymous = main.fd().is_none();
        // SAFETY: the mapping lives as long as the block, and the caller keeps a clone of it.
        unsafe { Uffd::watch(main.host(), main.bytes(), anonymous) }
    }

    /// Marks pages that were written through a raw pointer (`bytes` from `offset` in the main
    /// block).
    pub fn mark(&self, offset: u64, bytes: u64) {
        for (region, map) in self.main().regions().iter().zip(self.mem().iter()) {
            let start = offset.max(region.offset);
            let end = (offset + bytes).min(region.offset + region.bytes);
            if start < end {
                map.bitmap()
                    .set_addr_range((start - region.offset) as usize, (end - start) as usize);
            }
        }
    }

    /// Adds the pages of the main block that this process wrote since the last call to `into`, and
    /// forgets them.
    pub fn take_vmm_dirty(&self, into: &mut PageSet) {
        for (region, map) in self.main().regions().iter().zip(self.mem().iter()) {
            let first = (region.offset / PAGE_BYTES) as usize / 64;
            for (i, word) in map.bitmap().get_and_reset().into_iter().enumerate() {
                if word != 0 {
                    into.union_word(first + i, word);
                }
            }
        }
    }
}

fn block(name: String, backing: Backing, regions: Vec<Region>) -> RamBlock {
    RamBlock { inner: Arc::new(BlockInner { name, backing, regions }) }
}

/// Up to 3 GiB from zero, the rest from 4 GiB.
pub fn layout(bytes: u64) -> Vec<Region> {
    let low = bytes.min(LOW_END);
    let mut regions = vec![Region { gpa: 0, offset: 0, bytes: low }];
    if bytes > low {
        regions.push(Region { gpa: HIGH_START, offset: low, bytes: bytes - low });
    }
    regions
}

fn lay_over(block: &RamBlock) -> Result<Mem, Error> {
    let mut maps = Vec::with_capacity(block.regions().len());
    for region in block.regions() {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = if block.is_shared() { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        // SAFETY: the range lies inside the block's mapping, which `RamInner` keeps for as long as
        // the `Mem`: both are its fields, and a raw region is not unmapped when it is dropped.
        let map = unsafe {
            MmapRegion::build_raw(
                block.host().add(region.offset as usize),
                region.bytes as usize,
                prot,
                flags | libc::MAP_NORESERVE,
            )
        };
        let failed = |e: String| Error::Map { bytes: region.bytes, source: io::Error::other(e) };
        let map = map.map_err(|e| failed(e.to_string()))?;
        let map = GuestRegionMmap::new(map, GuestAddress(region.gpa));
        maps.push(map.ok_or_else(|| failed("address range overflows".into()))?);
    }
    Mem::from_regions(maps)
        .map_err(|e| Error::Map { bytes: block.bytes(), source: io::Error::other(e.to_string()) })
}

/// Advice only: a host that does not take it runs the guest all the same.
fn advise(backing: &Backing, config: &Memory) {
    let all = 0..backing.bytes();
    if config.merge {
        let _ = backing.advise(all.clone(), libc::MADV_MERGEABLE);
    }
    if !config.dump {
        let _ = backing.advise(all.clone(), libc::MADV_DONTDUMP);
    }
    if backing.page_bytes() == PAGE_BYTES {
        let _ = backing.advise(all, libc::MADV_HUGEPAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bytes: u64, backend: MemoryBackend) -> Memory {
        Memory {
            bytes,
            block: "microvm.ram".into(),
            backend,
            prealloc: false,
            merge: false,
            dump: true,
        }
    }

    fn memfd() -> MemoryBackend {
        MemoryBackend::Memfd { share: true, seal: false, huge_pages: None }
    }

    fn backends(dir: &std::path::Path) -> Vec<MemoryBackend> {
        let file = |path, share| MemoryBackend::File {
            path,
            share,
            offset: 0,
            readonly: false,
            discard_at_exit: false,
        };
        vec![
            memfd(),
            MemoryBackend::Memfd { share: false, seal: true, huge_pages: None },
            MemoryBackend::Anonymous { share: false },
            MemoryBackend::Anonymous { share: true },
            file(dir.join("ram"), true),
            file(dir.join("private"), false),
            file(dir.to_path_buf(), true),
        ]
    }

    #[test]
    fn every_backend_reads_back_and_marks_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        for backend in backends(dir.path()) {
            let ram = GuestRam::new(&config(4 << 20, backend)).unwrap();
            assert_eq!(ram.main().host() as usize % (2 << 20), 0);
            ram.write(0x3ffe, b"godwit").unwrap();
            let mut back = [0; 6];
            ram.read(0x3ffe, &mut back).unwrap();
            assert_eq!(&back, b"godwit");
            let mut dirty = PageSet::new(ram.main().pages());
            ram.take_vmm_dirty(&mut dirty);
            assert_eq!(dirty.iter().collect::<Vec<_>>(), [3, 4]);
            dirty.clear();
            ram.take_vmm_dirty(&mut dirty);
            assert!(dirty.is_empty());
        }
    }

    #[test]
    fn holes_are_found_and_made() {
        for backend in [memfd(), MemoryBackend::Anonymous { share: false }] {
            let ram = GuestRam::new(&config(16 << 20, backend)).unwrap();
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
            ram.main().discard(5 * PAGE_BYTES..6 * PAGE_BYTES).unwrap();
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
        let ram = GuestRam::new(&config(16 << 20, backend(false))).unwrap();
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
            let ram = GuestRam::new(&config(16 << 20, backend)).unwrap();
            let (main, backing) = (ram.main(), &ram.main().inner.backing);
            main.small_pages();
            ram.write(5 * PAGE_BYTES, &[1; 8192]).unwrap();
            // As swapping and collapsing do: the entries go, the memory stays.
            backing.advise(0..16 << 20, libc::MADV_DONTNEED).unwrap();
            assert_eq!(main.data_pages().unwrap().iter().collect::<Vec<_>>(), [5, 6]);
            assert_eq!(main.first_data(0..main.bytes()).unwrap(), Some(5 * PAGE_BYTES));
            assert!(!main.is_hole(6).unwrap());
            main.discard(5 * PAGE_BYTES..6 * PAGE_BYTES).unwrap();
            assert_eq!(main.data_pages().unwrap().iter().collect::<Vec<_>>(), [6]);
        }
    }

    #[test]
    fn write_protection_fills_no_hole_with_userfaultfd() {
        use std::os::unix::fs::FileExt;
        for backend in [memfd(), MemoryBackend::Anonymous { share: false }] {
            let ram = GuestRam::new(&config(16 << 20, backend)).unwrap();
            let main = ram.main();
            let _ = main.inner.backing.advise(0..16 << 20, libc::MADV_NOHUGEPAGE);
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

    #[test]
    fn ram_above_three_gigabytes_continues_at_four() {
        let ram = GuestRam::new(&config(5 << 30, memfd())).unwrap();
        let main = ram.main();
        assert_eq!(main.regions().len(), 2);
        assert_eq!(main.gpa(3 << 30), Some(4 << 30));
        assert_eq!(main.offset((4 << 30) + 4096), Some((3 << 30) + 4096));
        assert!(ram.write(3 << 30, &[1]).is_err());
        ram.write(4 << 30, &[7]).unwrap();
        // SAFETY: the offset lies in the block and nobody writes to it.
        assert_eq!(unsafe { *main.host().add(3 << 30) }, 7);
        let mut dirty = PageSet::new(main.pages());
        ram.take_vmm_dirty(&mut dirty);
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [(3 << 30) / PAGE_BYTES]);
        ram.mark((3 << 30) - 1, 2);
        dirty.clear();
        ram.take_vmm_dirty(&mut dirty);
        assert_eq!(dirty.count(), 2);
    }

    #[test]
    fn a_kept_block_stays_beside_the_main_one() {
        let ram = GuestRam::new(&config(1 << 20, memfd())).unwrap();
        assert!(ram.keep_block("pc.bios", 1 << 40).is_err(), "as large as a stream says");
        assert_eq!(ram.keep_block("pc.bios", 65536).unwrap().bytes(), 65536);
        assert_eq!(ram.keep_block("pc.bios", 65536).unwrap().pages(), 16);
        assert!(ram.keep_block("pc.bios", 131072).is_err());
        assert_eq!(ram.blocks().len(), 2);
        assert!(ram.blocks()[1].regions().is_empty());
    }

    #[test]
    fn short_memory_is_said_with_advice() {
        let e =
            GuestRam::new(&config(1 << 46, MemoryBackend::Anonymous { share: false })).unwrap_err();
        assert!(e.to_string().contains("-m"), "{e}");
    }

    #[test]
    fn a_long_file_is_kept_an_empty_one_grows_and_a_short_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        std::fs::write(&path, vec![7u8; 3 << 20]).unwrap();
        let backend = MemoryBackend::File {
            path: path.clone(),
            share: true,
            offset: 0,
            readonly: false,
            discard_at_exit: false,
        };
        let ram = GuestRam::new(&config(2 << 20, backend.clone())).unwrap();
        let mut byte = [0];
        ram.read(4096, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        let len = || std::fs::metadata(&path).unwrap().len();
        assert_eq!(len(), 3 << 20);
        let refused = GuestRam::new(&config(4 << 20, backend.clone())).unwrap_err();
        assert!(matches!(refused, Error::TooShort { has: 0x30_0000, needed: 0x40_0000, .. }));
        assert_eq!(len(), 3 << 20);
        std::fs::File::create(&path).unwrap();
        GuestRam::new(&config(4 << 20, backend)).unwrap();
        assert_eq!(len(), 4 << 20);
    }
}
