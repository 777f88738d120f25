//! The guest's RAM as a view.

use super::{Extent, GuestView, Range, ReadFailed};
use crate::memory::{self, GuestRam, PAGE_BYTES, PageSet, Snapshot};

/// RAM of a guest that stands still for as long as the view is used, or as it was at one moment.
/// Blocks that the guest does not see are left out.
///
/// Which pages are holes is found out once, so that dumping memory that was never touched does not
/// allocate it. Of a guest that runs this is sound too: what is a hole after the moment was one
/// before, and what was one and is written reads as the snapshot's zeros.
pub struct RamView {
    ram: GuestRam,
    snapshot: Option<Snapshot>,
    ranges: Vec<Range>,
    /// by block
    data: Vec<PageSet>,
}

impl RamView {
    pub fn new(ram: &GuestRam) -> Result<RamView, memory::Error> {
        RamView::with(ram, None)
    }

    /// Of a guest that runs: `snapshot` is of `ram` and fixed.
    pub fn of(ram: &GuestRam, snapshot: Snapshot) -> Result<RamView, memory::Error> {
        RamView::with(ram, Some(snapshot))
    }

    fn with(ram: &GuestRam, snapshot: Option<Snapshot>) -> Result<RamView, memory::Error> {
        let regions = ram.blocks().iter().flat_map(|block| block.regions());
        let ranges = regions.map(|region| Range { start: region.gpa, len: region.bytes }).collect();
        let data = ram.blocks().iter().map(|block| block.data_pages()).collect::<Result<_, _>>()?;
        Ok(RamView { ram: ram.clone(), snapshot, ranges, data })
    }
}

impl GuestView for RamView {
    fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), ReadFailed> {
        let read = match (&self.snapshot, self.ram.main().offset(address)) {
            (Some(snapshot), Some(offset)) => snapshot.read(offset, out),
            _ => self.ram.read(address, out),
        };
        read.map_err(|error| ReadFailed { address, reason: error.to_string() })
    }

    fn urgent(&self) -> Option<Range> {
        let bytes = self.snapshot.as_ref()?.urgent()?;
        let start = self.ram.main().gpa(bytes.start)?;
        Some(Range { start, len: bytes.end - bytes.start })
    }

    fn release(&self, range: Range) {
        if let (Some(snapshot), Some(offset)) =
            (&self.snapshot, self.ram.main().offset(range.start))
        {
            snapshot.release(offset..offset + range.len);
        }
    }

    fn extent(&self, address: u64, len: u64) -> Extent {
        let found = self.ram.blocks().iter().zip(&self.data).find_map(|(block, data)| {
            let offset = block.offset(address)?;
            Some((block, data, offset))
        });
        let Some((block, data, offset)) = found else {
            return Extent::Data(len);
        };
        let page = offset / PAGE_BYTES;
        let known = |end: u64| {
            let end = (end * PAGE_BYTES).min(block.bytes());
            (end - offset).clamp(1, len)
        };
        // A block's regions need not touch in the guest's addresses; what is said holds for the
        // block's bytes, and no caller asks beyond a range.
        match data.next(page) {
            Some(next) if next == page => Extent::Data(known(data.next_absent(page))),
            Some(next) => Extent::Hole(known(next)),
            None => Extent::Hole(known(u64::MAX / PAGE_BYTES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};

    #[test]
    fn holes_are_told_and_memory_on_both_sides_of_the_gap_is_read() {
        let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        let bytes = (3 << 30) + (2 << 20);
        let config = Memory {
            bytes,
            block: "microvm.ram".into(),
            backend,
            prealloc: false,
            merge: false,
            dump: true,
        };
        let ram = GuestRam::new(&config).unwrap();
        ram.write(0x5000, b"low").unwrap();
        ram.write((4 << 30) + 0x1000, b"high").unwrap();
        let view = RamView::new(&ram).unwrap();
        assert_eq!(view.ranges().len(), 2);
        let page_or_more = |extent| match extent {
            Extent::Data(len) => (true, len),
            Extent::Hole(len) => (false, len),
        };
        assert!(page_or_more(view.extent(0x5800, 0x100)).0);
        assert!(page_or_more(view.extent(4 << 30 | 0x1000, 1 << 20)).0);
        // A host with huge pages may have filled more than was written.
        let (data, len) = page_or_more(view.extent(64 << 20, 8 << 20));
        assert_eq!((data, len), (false, 8 << 20));
        let mut four = [0; 4];
        view.read((4 << 30) + 0x1000, &mut four).unwrap();
        assert_eq!(&four, b"high");
        assert!(view.read(3 << 30, &mut four).is_err());
    }
}
