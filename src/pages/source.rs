//! Pages read from a block of guest memory: holes, zeros, bytes in place.
//!
//! Unsafe because pages are read by address while vCPUs write them. A torn page is harmless: its
//! dirty bit was cleared before, so the write that tore it has made it dirty again.
#![allow(unsafe_code)]

use std::ops::Range;

use xbzrle::parallel::LivePage;

use super::mask::{CHUNK_PAGES, ChunkMask, mask_pages, set_range};
use crate::memory::{Error, GuestRam, PAGE_BYTES, RamBlock};

/// Reads one block.
pub(crate) struct PageSource {
    block: RamBlock,
    index: u8,
    first_page: u64,
    /// Known to hold data, in bytes. Only that: a hole must be asked for again each time.
    data: Range<u64>,
    /// Of the block, when they were last looked at.
    losses: u64,
    #[cfg(feature = "sabotage")]
    early: Option<early::Answers>,
}

/// One source per block, numbered in the order of the stream's list.
pub(crate) fn sources(ram: &GuestRam) -> Vec<PageSource> {
    let mut first_page = 0;
    let mut all = Vec::new();
    for (index, block) in ram.blocks().iter().enumerate() {
        all.push(PageSource {
            block: block.clone(),
            index: index as u8,
            first_page,
            data: 0..0,
            losses: block.losses(),
            #[cfg(feature = "sabotage")]
            early: early::ask(block),
        });
        first_page += block.pages();
    }
    all
}

impl PageSource {
    /// Another that reads the same block, beside this one.
    pub(crate) fn another(&mut self) -> PageSource {
        PageSource {
            block: self.block.clone(),
            data: 0..0,
            #[cfg(feature = "sabotage")]
            early: self.early.take(),
            ..*self
        }
    }

    /// Position in the stream's list.
    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    pub(crate) fn block(&self) -> &RamBlock {
        &self.block
    }

    pub(crate) fn pages(&self) -> u64 {
        self.block.pages()
    }

    /// Whether there may be pages that this process has never mapped: anonymous memory comes by
    /// being mapped.
    pub(crate) fn may_be_unmapped(&self) -> bool {
        self.block.is_shared()
    }

    /// The number of `page` of this block among the pages of all blocks.
    pub(crate) fn number(&self, page: u64) -> u64 {
        self.first_page + page
    }

    /// Which pages of a chunk may hold something else than zeros. Asking is reading: their dirty
    /// bits must have been cleared.
    pub(crate) fn data_mask(&mut self, chunk: u64) -> Result<ChunkMask, Error> {
        #[cfg(feature = "sabotage")]
        if let Some(mask) = self.early.as_mut().and_then(|answers| answers.take(chunk)) {
            return Ok(mask);
        }
        let start = chunk * CHUNK_PAGES * PAGE_BYTES;
        let end = (start + CHUNK_PAGES * PAGE_BYTES).min(self.block.bytes());
        let mut mask = [0; 4];
        self.block.data_in(start..end, &mut self.data, |data| {
            let pages = (data.start - start) / PAGE_BYTES..(data.end - start).div_ceil(PAGE_BYTES);
            set_range(&mut mask, pages);
        })?;
        Ok(mask)
    }

    /// Has the pages in `mask`, none of them a hole, mapped into this process, so that reading them
    /// takes no fault.
    pub(crate) fn map(&self, chunk: u64, mask: &ChunkMask) {
        let pages: Vec<u64> = mask_pages(*mask).collect();
        for group in pages.chunk_by(|a, b| a / GROUP_PAGES == b / GROUP_PAGES) {
            // SAFETY: a byte of a page of the block's mapping, which lives as long as `self.block`.
            unsafe { self.at(chunk * CHUNK_PAGES + group[0]).read_volatile() };
        }
    }

    /// Which of the pages in `mask` are all zeros.
    pub(crate) fn zero_mask(&self, chunk: u64, mask: &ChunkMask) -> ChunkMask {
        let mut zeros = [0; 4];
        for page in mask_pages(*mask) {
            let at = self.at(chunk * CHUNK_PAGES + page);
            // SAFETY: `at` is a page of the block's mapping, which lives as long as `self.block`.
            if unsafe { xbzrle::is_zero_live(at, PAGE_BYTES as usize) } {
                zeros[(page / 64) as usize] |= 1 << (page % 64);
            }
        }
        zeros
    }

    /// Page `page` for the delta encoder.
    pub(crate) fn live(&self, page: u64) -> LivePage<'_> {
        // SAFETY: the page lies in the block's mapping, which lives as long as `self.block` and is
        // neither cache nor output; only the guest and devices write it.
        unsafe { LivePage::new(self.number(page), self.at(page)) }
    }

    /// Copies a page.
    pub(crate) fn copy(&self, page: u64, to: &mut [u8; PAGE_BYTES as usize]) {
        // SAFETY: the page lies in the block's mapping, which lives as long as `self.block`.
        unsafe { xbzrle::copy_live(to, self.at(page)) };
    }

    /// Fails if pages went away while this source read them: what it said and gave since the last
    /// call is no part of the guest's memory.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.losses, self.block.losses());
        self.block.check_losses(before)
    }

    fn at(&self, page: u64) -> *const u8 {
        assert!(page < self.block.pages());
        // SAFETY: the page lies inside the mapping, just checked.
        unsafe { self.block.host().add((page * PAGE_BYTES) as usize) }
    }
}

/// Pages that the kernel maps around one that was touched (`fault_around_bytes`, 64 KiB).
const GROUP_PAGES: u64 = 16;

/// The fault that asks for holes before any dirty bit was cleared; see [`crate::sabotage`].
#[cfg(feature = "sabotage")]
mod early {
    use super::*;
    use crate::memory::PageSet;
    use crate::pages::chunk_of;
    use crate::sabotage::{Fault, on};
    use std::time::Duration;

    /// Which pages had data, and for which chunks that has not been used yet.
    pub(super) struct Answers {
        data: PageSet,
        unused: PageSet,
    }

    pub(super) fn ask(block: &RamBlock) -> Option<Answers> {
        on(Fault::HoleTestNotReading).then(|| {
            let data = block.data_pages().expect("holes can be asked for");
            std::thread::sleep(Duration::from_millis(100));
            Answers { data, unused: PageSet::full(block.pages().div_ceil(CHUNK_PAGES)) }
        })
    }

    impl Answers {
        pub(super) fn take(&mut self, chunk: u64) -> Option<ChunkMask> {
            self.unused.remove(chunk).then(|| chunk_of(&self.data, chunk))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};
    use crate::pages::mask_ranges;

    fn ram(bytes: u64, backend: MemoryBackend) -> GuestRam {
        GuestRam::new(&Memory {
            bytes,
            block: "ram".into(),
            backend,
            prealloc: false,
            merge: false,
            dump: true,
        })
        .unwrap()
    }

    #[test]
    fn holes_zeros_and_bytes_are_told_apart() {
        let memfd = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        for backend in [memfd, MemoryBackend::Anonymous { share: false }] {
            let ram = ram(4 << 20, backend.clone());
            ram.main().small_pages();
            ram.write(300 * PAGE_BYTES, &[1]).unwrap();
            ram.write(302 * PAGE_BYTES, &[0; 10]).unwrap();
            let mut source = sources(&ram).remove(0);
            assert_eq!(source.data_mask(0).unwrap(), [0; 4], "{backend:?}");
            let data = source.data_mask(1).unwrap();
            assert_eq!(mask_ranges(data).collect::<Vec<_>>(), [44..45, 46..47], "{backend:?}");
            let zeros = source.zero_mask(1, &data);
            assert_eq!(
                mask_ranges(zeros).collect::<Vec<_>>(),
                std::iter::once(46..47).collect::<Vec<_>>()
            );
            ram.write(0, &[1]).unwrap();
            assert_eq!(source.data_mask(0).unwrap()[0], 1, "a hole is asked for again");
        }
    }
}
