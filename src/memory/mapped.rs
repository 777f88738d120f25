//! Page tables made in advance, for memory that is there but was never mapped: a file that an
//! earlier run filled, or pages that came through the descriptor. A page that has to be mapped when
//! it is wanted costs the guest a fault, and a migration as much again as sending it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backing::Backing;
use super::block::RamBlock;

/// Mapped by one call, which takes less than a millisecond.
const STEP_BYTES: u64 = 4 << 20;
/// Small pieces are not worth being remembered, nor are too many.
const RANGES_MAX: usize = 1024;

impl RamBlock {
    /// Maps the memory that is there already, until `stop` is set, and remembers it, for a target
    /// that has time before its guest comes. No memory is added.
    pub(crate) fn map_what_is_there(&self, stop: &AtomicBool) {
        if self.has_to_map() {
            let backing = self.backing();
            backing.note_mapped(map(backing, stop));
        }
    }

    /// Whether memory can be there that has no page tables: not that of an anonymous block.
    pub(crate) fn has_to_map(&self) -> bool {
        !self.backing().is_noted() && self.backing().is_shared_tmpfs()
    }

    /// Maps the memory that is there already on a thread of its own, which takes only time that
    /// nobody else wants. No memory is added. Nothing ends the thread but its work and the end of
    /// the process, so that memory that is to be discarded then is left alone.
    pub(crate) fn map_in_background(&self) {
        let all = 0..self.bytes();
        let nothing_to_do = self.is_mapped(&all) || matches!(self.first_data(all), Ok(None));
        if !self.backing().is_shared_tmpfs()
            || self.backing().is_discarded_at_exit()
            || nothing_to_do
        {
            return;
        }
        let block = self.clone();
        let work = move || {
            // Of this thread alone.
            let _ = rustix::process::setpriority_process(None, 19);
            map(block.backing(), &AtomicBool::new(false));
        };
        // Without the thread everything works, only slower.
        let _ = std::thread::Builder::new().name("map".into()).spawn(work);
    }
}

/// Maps data until `stop` is set, and says which ranges have page tables then.
fn map(backing: &Backing, stop: &AtomicBool) -> Vec<Range<u64>> {
    let (mut mapped, mut at) = (Vec::new(), 0);
    while let (Ok(Some(data)), true) = (backing.next_data(at), mapped.len() < RANGES_MAX) {
        let mut end = data.start;
        while end < data.end && !stop.load(Ordering::Relaxed) {
            let next = data.end.min(end + STEP_BYTES);
            if backing.advise(end..next, libc::MADV_POPULATE_READ).is_err() {
                break;
            }
            end = next;
        }
        if end - data.start >= STEP_BYTES {
            mapped.push(data.start..end);
        }
        if end < data.end {
            break;
        }
        at = data.end;
    }
    mapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};
    use crate::memory::{GuestRam, PAGE_BYTES};

    fn ram(bytes: u64, backend: MemoryBackend) -> GuestRam {
        let block = "microvm.ram".into();
        GuestRam::new(&Memory { bytes, block, backend, prealloc: false, merge: false, dump: true })
            .unwrap()
    }

    fn memfd() -> MemoryBackend {
        MemoryBackend::Memfd { share: true, seal: false, huge_pages: None }
    }

    #[test]
    fn only_what_is_there_is_mapped() {
        let ram = ram(32 << 20, memfd());
        let block = ram.main();
        ram.write(8 << 20, &vec![1; 8 << 20]).unwrap();
        block.map_what_is_there(&AtomicBool::new(false));
        assert!(block.is_mapped(&(8 << 20..16 << 20)) && block.is_mapped(&(9 << 20..10 << 20)));
        for range in [0..4096, (8 << 20) - 4096..9 << 20, 15 << 20..17 << 20, 20 << 20..21 << 20] {
            assert!(
                !block.is_mapped(&range) && block.is_filled_by_descriptor(&range),
                "{range:x?}"
            );
        }
        assert_eq!(
            block.data_pages().unwrap().count(),
            (8 << 20) / PAGE_BYTES,
            "no memory is added"
        );
    }

    #[test]
    fn what_came_through_the_descriptor_is_mapped_in_the_background() {
        let ram = ram(32 << 20, memfd());
        let block = ram.main();
        block.fill(8 << 20, &mut [std::io::IoSlice::new(&vec![1; 8 << 20])]).unwrap();
        let mapped = || {
            let mut entry = [0; 8];
            let page = (block.host() as u64 + (12 << 20)) / PAGE_BYTES;
            let map = std::fs::File::open("/proc/self/pagemap").unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&map, &mut entry, page * 8).unwrap();
            u64::from_ne_bytes(entry) >> 63 == 1
        };
        assert!(!mapped());
        block.map_in_background();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !mapped() {
            assert!(std::time::Instant::now() < end, "not mapped");
            std::thread::yield_now();
        }
        assert_eq!(
            block.data_pages().unwrap().count(),
            (8 << 20) / PAGE_BYTES,
            "no memory is added"
        );
    }
}
