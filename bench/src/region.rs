//! Memory for measurements: many pages in one mapping, huge pages advised, every page touched.

use std::io;

use memmap2::{Advice, MmapMut, MmapOptions};
use xbzrle::PAGE_SIZE;

/// One page.
pub type Page = [u8; PAGE_SIZE];

/// An array of pages.
pub struct Region {
    map: MmapMut,
}

impl Region {
    /// Pages of zeros, all of them in memory. Huge pages are used if the kernel has them to give.
    pub fn new(pages: usize) -> io::Result<Self> {
        // A huge page needs an aligned one; the kernel aligns a mapping of whole huge pages by
        // itself.
        let map =
            MmapOptions::new().len((pages * PAGE_SIZE).next_multiple_of(2 << 20)).map_anon()?;
        // A kernel without huge pages refuses, and is measured as it is.
        let _ = map.advise(Advice::HugePage);
        let mut region = Self { map };
        region.pages_mut().iter_mut().for_each(|page| page[0] = 0);
        Ok(region)
    }

    pub fn pages(&self) -> &[Page] {
        self.map.as_chunks().0
    }

    pub fn pages_mut(&mut self) -> &mut [Page] {
        self.map.as_chunks_mut().0
    }
}
