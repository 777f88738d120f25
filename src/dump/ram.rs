//! The guest's RAM as a view.

use super::ranges::Range;
use super::view::{GuestView, ReadFailed};
use crate::memory::{Error, GuestRam, Snapshot};
use crate::pages::Extent;
use crate::pages::Still;

/// RAM of a guest that stands still for as long as the view is used, or as it was at one moment.
pub struct RamView {
    memory: Still,
    ranges: Vec<Range>,
}

impl RamView {
    pub fn stopped(ram: &GuestRam) -> Result<RamView, Error> {
        Still::stopped(ram).map(RamView::of)
    }

    /// Of a guest that runs: `snapshot` is of `ram` and fixed.
    pub(crate) fn frozen(ram: &GuestRam, snapshot: Snapshot) -> Result<RamView, Error> {
        Still::frozen(ram, snapshot).map(RamView::of)
    }

    fn of(memory: Still) -> RamView {
        let regions = memory.regions().iter();
        let ranges = regions.map(|region| Range { start: region.gpa, len: region.bytes }).collect();
        RamView { memory, ranges }
    }
}

impl GuestView for RamView {
    fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), ReadFailed> {
        let read = self.memory.read(address, out);
        read.map_err(|error| ReadFailed { address, reason: error.to_string() })
    }

    fn check(&self) -> Result<(), String> {
        self.memory.check().map_err(|error| error.to_string())
    }

    fn urgent(&self) -> Option<Range> {
        let range = self.memory.urgent()?;
        Some(Range { start: range.start, len: range.end - range.start })
    }

    fn release(&self, range: Range) {
        self.memory.release(range.start..range.end());
    }

    fn extent(&self, address: u64, len: u64) -> Extent {
        self.memory.extent(address, len)
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
        let view = RamView::stopped(&ram).unwrap();
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
