//! Memory that holds still: that of a guest that is stopped, or as it was at one moment, frozen by
//! write protection.

use super::extent::Extent;
use crate::memory::{Error, GuestRam, PAGE_BYTES, PageSet, Region, Snapshot};
use std::ops::Range;

/// RAM of a guest that stands still for as long as this is used, or as it was at one moment.
///
/// Which pages are holes is found out once, so that reading memory that was never touched does not
/// allocate it. Of a guest that runs, the snapshot says it ([`Snapshot::data_pages`]): what became
/// a hole since the moment has data, and what was one and is written reads as the snapshot's zeros.
pub(crate) struct Still {
    ram: GuestRam,
    snapshot: Option<Snapshot>,
    /// of the main block
    data: PageSet,
    /// of the main block, when this began
    losses: u64,
}

impl Still {
    /// Of a guest that stands still.
    pub(crate) fn stopped(ram: &GuestRam) -> Result<Still, Error> {
        let losses = unchanged(ram)?;
        Ok(Still { ram: ram.clone(), snapshot: None, data: ram.main().data_pages()?, losses })
    }

    /// Of a guest that runs: `snapshot` is of `ram` and fixed.
    pub(crate) fn frozen(ram: &GuestRam, snapshot: Snapshot) -> Result<Still, Error> {
        let losses = unchanged(ram)?;
        let data = snapshot.data_pages()?;
        Ok(Still { ram: ram.clone(), snapshot: Some(snapshot), data, losses })
    }

    /// Where the guest sees its memory. Blocks that it does not see are left out.
    pub(crate) fn regions(&self) -> &[Region] {
        self.ram.main().regions()
    }

    /// Copies memory at `gpa`, all of it RAM.
    pub(crate) fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Error> {
        match (&self.snapshot, self.ram.main().offset(gpa)) {
            (Some(snapshot), Some(offset)) => snapshot.read(offset, out),
            _ => self.ram.read(gpa, out),
        }
    }

    /// What is known about memory at `gpa` without reading it. The answer covers at most `len`
    /// bytes, which lie in one region.
    pub(crate) fn extent(&self, gpa: u64, len: u64) -> Extent {
        let Some(offset) = self.ram.main().offset(gpa) else { return Extent::Data(len) };
        let page = offset / PAGE_BYTES;
        let up_to = |end: u64| (end.saturating_mul(PAGE_BYTES) - offset).clamp(1, len);
        match self.data.next(page) {
            Some(next) if next == page => Extent::Data(up_to(self.data.next_absent(page))),
            Some(next) => Extent::Hole(up_to(next)),
            None => Extent::Hole(len),
        }
    }

    /// Fails if what was read so far need not be the guest's memory: see [`Snapshot::check`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.snapshot {
            Some(snapshot) => snapshot.check(),
            None => self.ram.main().check_still_whole(self.losses),
        }
    }

    /// What should be read next because a frozen guest waits for it: guest addresses of whole pages.
    pub(crate) fn urgent(&self) -> Option<Range<u64>> {
        let bytes = self.snapshot.as_ref()?.urgent()?;
        let start = self.ram.main().gpa(bytes.start)?;
        Some(start..start + (bytes.end - bytes.start))
    }

    /// Gives up what was read, and every page that it touches.
    pub(crate) fn release(&self, range: Range<u64>) {
        if let (Some(snapshot), Some(offset)) =
            (&self.snapshot, self.ram.main().offset(range.start))
        {
            snapshot.release(offset..offset + (range.end - range.start));
        }
    }
}

/// The losses so far. Memory that lost pages before can be looked at; memory that somebody else writes
/// to cannot.
fn unchanged(ram: &GuestRam) -> Result<u64, Error> {
    let losses = ram.main().losses();
    ram.main().check_still_whole(losses)?;
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::private_for_tests;
    use std::os::unix::fs::FileExt;

    #[test]
    fn memory_that_is_a_file_which_somebody_writes_to_is_no_image_stopped_or_frozen_with_userfaultfd()
     {
        for frozen in [false, true] {
            // A private mapping of other file systems' files cannot be protected.
            let file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.write_all_at(&[7; 8192], 0).unwrap();
            file.set_len(8 << 20).unwrap();
            // The kernel's time stamps are coarser than this test.
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            let ram = private_for_tests(8 << 20);
            ram.main().lay_over(file.try_clone().unwrap(), 0, || {}).unwrap();
            let begin = || {
                if !frozen {
                    return Still::stopped(&ram);
                }
                let snapshot = Snapshot::prepare(&ram).unwrap();
                snapshot.fix().unwrap();
                Still::frozen(&ram, snapshot)
            };
            let still = begin().unwrap();
            let mut bytes = [0; 4096];
            still.read(0, &mut bytes).unwrap();
            still.check().unwrap();
            file.write_all_at(&[8; 4096], 4096).unwrap();
            // Nobody was told yet, and the page is read as another wrote it.
            still.read(4096, &mut bytes).unwrap();
            let error = still.check().unwrap_err().to_string();
            assert!(error.contains("was written to"), "{error}");
            drop(still);
            assert!(begin().is_err());
        }
    }
}
