//! All RAM of one guest, by block and by guest address.
//!
//! Unsafe because vm-memory's regions are laid over mappings that the blocks own.
#![allow(unsafe_code)]

use super::backing::Backing;
use super::block::{RamBlock, Region};
use super::error::Error;
use super::pages::{PAGE_BYTES, PageSet};
use super::uffd::{Uffd, Unavailable};
use super::watch::{BeforeWrite, Watch, WriteGuard};
use crate::config::{Memory, MemoryBackend};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
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
/// Firmware and its tables, the only memory beside RAM, are smaller, each of them.
const KEPT_BYTES_MAX: u64 = 16 << 20;
/// Given back in one go: a snapshot has to keep it first.
const DISCARD_BYTES: u64 = 1 << 20;
/// How long whoever stops or resets a guest is kept waiting by a snapshot's reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// Blocks beside RAM: firmware, and the three files of ACPI tables.
const KEPT_MAX: usize = 4;

/// All RAM of a guest. Clones are cheap and are the same RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    inner: Arc<RamInner>,
}

#[derive(Debug)]
struct RamInner {
    main: [RamBlock; 1],
    /// The main block and, in entry n, the first n + 1 others, once they are there.
    with_kept: [OnceLock<Vec<RamBlock>>; KEPT_MAX],
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
        let mut backing = Backing::new(&config.block, config.bytes, &config.backend)?;
        backing.advise_all(advice(&backing, config));
        if config.prealloc {
            backing.populate()?;
        }
        GuestRam::over(&config.block, backing)
    }

    /// RAM of a guest that is not here, in a file that holds all of it, open for reading and
    /// writing.
    ///
    /// # Errors
    /// [`Error::Map`] where it cannot be mapped, [`Error::PageSize`] where it is no whole number of
    /// pages, or none.
    pub(crate) fn of_file(name: &str, file: File) -> Result<GuestRam, Error> {
        GuestRam::over(name, Backing::of_file(file)?)
    }

    fn over(name: &str, backing: Backing) -> Result<GuestRam, Error> {
        let regions = layout(backing.bytes());
        let main = RamBlock::new(name.to_owned(), backing, regions);
        let mem = lay_over(&main)?;
        let (with_kept, watch) = (Default::default(), Watch::default());
        Ok(GuestRam { inner: Arc::new(RamInner { main: [main], with_kept, mem, watch }) })
    }

    /// The blocks, the guest's RAM first.
    pub(crate) fn blocks(&self) -> &[RamBlock] {
        let longest = self.inner.with_kept.iter().rev().find_map(OnceLock::get);
        longest.map_or(&self.inner.main, Vec::as_slice)
    }

    /// The guest's RAM.
    pub fn main(&self) -> &RamBlock {
        &self.inner.main[0]
    }

    pub fn block(&self, name: &str) -> Option<&RamBlock> {
        self.blocks().iter().find(|b| b.name() == name)
    }

    /// The block `name`, made if it is not there: memory that the guest does not see, such as the ACPI
    /// tables that it reads through fw_cfg, or firmware that only a stream knows (`pc.bios`). Four at
    /// most.
    pub(crate) fn keep_block(&self, name: &str, bytes: u64) -> Result<&RamBlock, Error> {
        if self.block(name).is_none() {
            if bytes > KEPT_BYTES_MAX {
                return Err(Error::BlockTooLarge { name: name.into(), bytes });
            }
            let mut blocks = self.blocks().to_vec();
            let Some(place) = self.inner.with_kept.get(blocks.len() - 1) else {
                return Err(Error::TooManyBlocks { name: name.into(), most: KEPT_MAX });
            };
            let backend = MemoryBackend::Anonymous { share: false };
            let kept = RamBlock::new(name.into(), Backing::new(name, bytes, &backend)?, Vec::new());
            blocks.push(kept);
            let _ = place.set(blocks);
        }
        let found = self.block(name).filter(|b| b.bytes() == bytes);
        found.ok_or_else(|| Error::BlockExists(name.into()))
    }

    /// vm-memory's view, by guest address.
    pub(crate) fn mem(&self) -> &Mem {
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
    /// [`GuestRam::write`]: through [`GuestRam::mem`], or by DMA, which asks before its submission and
    /// need not hold the guard: none is on its way when an image is fixed, for devices stand still
    /// then. Memory that is not there is not asked for.
    pub(crate) fn ask_to_write(&self, gpa: u64, bytes: u64) -> WriteGuard<'_> {
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

    /// Runs `job`, which waits for vCPUs or devices, or writes guest memory. A snapshot whose pool is
    /// full keeps them waiting for whoever reads it; it gives way if that lasts for a second.
    pub(crate) fn not_kept_waiting<T>(&self, job: impl FnOnce() -> T) -> T {
        let watch = &self.inner.watch;
        if !watch.keeps_waiting() {
            return job();
        }
        std::thread::scope(|scope| {
            let (done, is_done) = mpsc::channel::<()>();
            let look = move || {
                while is_done.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    watch.give_way();
                }
            };
            let thread = std::thread::Builder::new().name("give-way".into());
            if thread.spawn_scoped(scope, look).is_err() {
                // Nobody could look later.
                watch.give_way();
            }
            let result = job();
            drop(done);
            result
        })
    }

    /// Write protection for the main block. It must not outlive this RAM: whoever takes it keeps a
    /// clone.
    pub(super) fn watch_main(&self) -> Result<Uffd, Unavailable> {
        let main = self.main();
        let anonymous = main.is_anonymous();
        // SAFETY: the mapping lives as long as the block, and the caller keeps a clone of it.
        unsafe { Uffd::watch(main.host(), main.bytes(), anonymous) }
    }

    /// Marks pages that were written through a raw pointer (`bytes` from `offset` in the main
    /// block).
    pub(crate) fn mark(&self, offset: u64, bytes: u64) {
        for (region, map) in self.main().regions().iter().zip(self.mem().iter()) {
            let start = offset.max(region.offset);
            let end = (offset + bytes).min(region.offset + region.bytes);
            if start < end {
                map.bitmap()
                    .set_addr_range((start - region.offset) as usize, (end - start) as usize);
            }
        }
    }

    /// Gives the whole pages within `range` (bytes of the main block) back to the host, and marks
    /// them: they read as zeros afterwards. What a snapshot needs of them is kept.
    ///
    /// # Errors
    /// [`Error::Hole`] where the backing cannot give memory back (a file that is mapped privately),
    /// or the host fails: the rest of the range is as it was.
    pub(crate) fn discard(&self, range: Range<u64>) -> Result<(), Error> {
        let main = self.main();
        let page = main.page_bytes();
        let (mut at, end) = (range.start.next_multiple_of(page), range.end / page * page);
        while at < end {
            let piece = at..end.min(at + page.max(DISCARD_BYTES));
            let _guard = self.inner.watch.ask(piece.clone());
            let done = main.backing().discard(piece.clone());
            self.mark(piece.start, piece.end - piece.start);
            done.map_err(|source| main.hole_error(source))?;
            at = piece.end;
        }
        Ok(())
    }

    /// Adds the pages of the main block that this process wrote since the last call to `into`, and
    /// forgets them.
    pub(crate) fn take_vmm_dirty(&self, into: &mut PageSet) {
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

/// Up to 3 GiB from zero, the rest from 4 GiB.
pub(crate) fn layout(bytes: u64) -> Vec<Region> {
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

fn advice(backing: &Backing, config: &Memory) -> Vec<i32> {
    let merge = config.merge.then_some(libc::MADV_MERGEABLE);
    let dump = (!config.dump).then_some(libc::MADV_DONTDUMP);
    let huge = (backing.page_bytes() == PAGE_BYTES).then_some(libc::MADV_HUGEPAGE);
    [merge, dump, huge].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::with_backend;

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
            let ram = with_backend(4 << 20, backend).unwrap();
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
            assert!(dirty.count() == 0);
        }
    }

    #[test]
    fn ram_above_three_gigabytes_continues_at_four() {
        let ram = with_backend(5 << 30, memfd()).unwrap();
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
        let ram = with_backend(1 << 20, memfd()).unwrap();
        assert!(ram.keep_block("pc.bios", 1 << 40).is_err(), "as large as a stream says");
        assert_eq!(ram.keep_block("pc.bios", 65536).unwrap().bytes(), 65536);
        assert_eq!(ram.keep_block("pc.bios", 65536).unwrap().pages(), 16);
        assert!(ram.keep_block("pc.bios", 131072).is_err());
        assert_eq!(ram.blocks().len(), 2);
        assert!(ram.blocks()[1].regions().is_empty());
        for name in ["a", "b", "c"] {
            ram.keep_block(name, 4096).unwrap();
        }
        let names: Vec<_> = ram.blocks().iter().map(|block| block.name()).collect();
        assert_eq!(names[1..], ["pc.bios", "a", "b", "c"]);
        let refused = ram.keep_block("d", 4096).unwrap_err();
        assert!(matches!(refused, Error::TooManyBlocks { most: 4, .. }), "{refused}");
        let kept = ram.block("b").unwrap();
        kept.fill(0, &mut [std::io::IoSlice::new(&[7; 4096])]).unwrap();
        let mut bytes = [0; 3];
        kept.copy_out(4093, &mut bytes);
        assert_eq!(bytes, [7; 3]);
    }

    #[test]
    fn short_memory_is_said_with_advice() {
        let e = with_backend(1 << 46, MemoryBackend::Anonymous { share: false }).unwrap_err();
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
        let ram = with_backend(2 << 20, backend.clone()).unwrap();
        let mut byte = [0];
        ram.read(4096, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        let len = || std::fs::metadata(&path).unwrap().len();
        assert_eq!(len(), 3 << 20);
        let refused = with_backend(4 << 20, backend.clone()).unwrap_err();
        assert!(matches!(refused, Error::TooShort { has: 0x30_0000, needed: 0x40_0000, .. }));
        assert_eq!(len(), 3 << 20);
        std::fs::File::create(&path).unwrap();
        with_backend(4 << 20, backend).unwrap();
        assert_eq!(len(), 4 << 20);
    }
}
