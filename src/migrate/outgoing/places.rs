//! Places of pages in a file (capability `mapped-ram`): each page has its own from the beginning, a
//! later version of it goes over the one before, and pages of zeros are not written.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xbzrle::parallel::Output;

use super::error::Error;
use super::framing::{Framing, ZeroRules};
use crate::io::Gather;
use crate::memory::PAGE_BYTES;
use crate::pages::PageSource;
use crate::stream::mapped::MappedHeader;

/// Where the blocks lie, and which of their pages count.
pub(super) struct MappedFile(pub Vec<MappedBlock>);

pub(super) struct MappedBlock {
    pub header: MappedHeader,
    /// Bits of pages that were written and not zero since. A channel changes bits of its own pages,
    /// of which there are whole words.
    pub written: Vec<AtomicU64>,
}

impl MappedBlock {
    pub(super) fn new(header: MappedHeader, pages: u64) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0));
        Self { header, written: words.collect() }
    }

    fn set(&self, pages: Range<u64>, count: bool) {
        for word in pages.start / 64..pages.end.div_ceil(64) {
            let first = pages.start.max(word * 64) % 64;
            let last = (pages.end.min(word * 64 + 64) - 1) % 64;
            let bits = u64::MAX << first & u64::MAX >> (63 - last);
            let word = &self.written[word as usize];
            match count {
                true => word.fetch_or(bits, Ordering::Relaxed),
                false => word.fetch_and(!bits, Ordering::Relaxed),
            };
        }
    }
}

/// Lays out pages at their places in the file.
pub(super) struct AtPlaces(pub Arc<MappedFile>);

impl AtPlaces {
    fn block(&self, source: &PageSource) -> &MappedBlock {
        &self.0.0[usize::from(source.index())]
    }
}

impl Framing for AtPlaces {
    fn zeros(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        _: ZeroRules,
        _: &mut Gather,
    ) -> Result<(), Error> {
        self.block(source).set(pages, false);
        Ok(())
    }

    fn whole(
        &mut self,
        source: &PageSource,
        pages: Range<u64>,
        gather: &mut Gather,
    ) -> Result<(), Error> {
        gather.memory(source.block(), pages.start * PAGE_BYTES..pages.end * PAGE_BYTES);
        self.block(source).set(pages, true);
        Ok(())
    }

    fn copied(
        &mut self,
        source: &PageSource,
        page: u64,
        bytes: &[u8],
        gather: &mut Gather,
    ) -> Result<(), Error> {
        gather.own().extend_from_slice(bytes);
        self.block(source).set(page..page + 1, true);
        Ok(())
    }

    fn deltas(&mut self, _: &Output, _: &mut Gather) {
        unreachable!("xbzrle does not go with mapped-ram")
    }

    fn place(&self, source: &PageSource, page: u64) -> Option<u64> {
        Some(self.block(source).header.pages_offset + page * PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_the_last_version_of_a_page() {
        let block = MappedBlock::new(MappedHeader::new(0, 200 * PAGE_BYTES), 200);
        let bits = |block: &MappedBlock| {
            let set = |page: &u64| {
                block.written[(page / 64) as usize].load(Ordering::Relaxed) >> (page % 64) & 1 == 1
            };
            (0..256).filter(set).collect::<Vec<u64>>()
        };
        block.set(3..4, true);
        block.set(60..200, true);
        assert_eq!(bits(&block), [3].into_iter().chain(60..200).collect::<Vec<_>>());
        block.set(63..129, false);
        block.set(0..64, false);
        assert_eq!(bits(&block), (129..200).collect::<Vec<_>>());
        block.set(64..128, true);
        assert_eq!(bits(&block), (64..128).chain(129..200).collect::<Vec<_>>());
    }
}
