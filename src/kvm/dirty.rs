//! Which pages the guest wrote: KVM's dirty log, as bitmaps or as rings, joined with this process's
//! own writes.
//!
//! ```text
//! start ──► harvest ──► clear(chunk) ──► read the chunk's pages ──► clear(next chunk) … ──► harvest ──► … ──► stop
//! ```
//!
//! The first [`DirtyLog::harvest`] after the start brings every page. A page must be cleared before
//! it is read:
//!
//! - **Bitmap with manual protection** (Linux 5.0): harvesting leaves the bits set,
//!   [`DirtyLog::clear`] clears them chunk by chunk and protects the pages again. With
//!   `KVM_DIRTY_LOG_INITIALLY_SET` (5.6) KVM starts with all bits set and protects nothing until a
//!   chunk is cleared: no storm of faults at the start.
//! - **Bitmap without it**: harvesting clears, [`DirtyLog::clear`] has nothing left to do.
//! - **Rings**: harvesting collects all rings and resets them, in this order; [`DirtyLog::clear`]
//!   has nothing left to do. A vCPU whose ring is full leaves the guest and does the same for all.
//!   KVM keeps some entries free for what happens until then; a software KVM that runs many
//!   instructions at a time can fill these, too, and go on over the first ones. The two sides are
//!   out of step then, pages are lost, and every harvest says so.
//!
//! What was harvested is a debt: pages that will not be handed over after all go back with
//! [`DirtyLog::give_back`].

use super::error::Error;
use super::ioctl;
use super::vm::Vm;
use crate::memory::{GuestRam, PageSet};
use kvm_bindings::KVM_DIRTY_LOG_INITIALLY_SET;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Ranges given to [`DirtyLog::clear`] start on multiples of this (KVM's rule: whole 64-bit words).
pub(crate) const CLEAR_ALIGN_PAGES: u64 = 64;

/// A dirty log that is switched on. Dropping it switches it off.
pub struct DirtyLog {
    vm: Arc<Vm>,
    kind: Kind,
    /// Pages to be harvested whatever KVM says: all of them at first where KVM does not do that,
    /// and those given back.
    owed: PageSet,
    /// Scratch for one slot's bits.
    words: Vec<u64>,
    on: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ManualBitmap,
    PlainBitmap,
    Ring,
}

impl DirtyLog {
    /// Switches logging on. One log at a time: a second one would clear bits that the first still
    /// needs. So this waits until the one there is has ended, which [`DirtyLog::wanted_within`]
    /// tells.
    pub(crate) fn start(vm: Arc<Vm>) -> Result<DirtyLog, Error> {
        vm.turn().take();
        DirtyLog::start_in_turn(vm)
    }

    /// The same for who would not wait; `None` while there is another log.
    pub(crate) fn try_start(vm: Arc<Vm>) -> Result<Option<DirtyLog>, Error> {
        if !vm.turn().try_take() {
            return Ok(None);
        }
        DirtyLog::start_in_turn(vm).map(Some)
    }

    fn start_in_turn(vm: Arc<Vm>) -> Result<DirtyLog, Error> {
        // From here on it ends with its turn, whatever fails.
        let mut log = DirtyLog::off(vm);
        if let Some(rings) = log.vm.rings() {
            // Entries from before are part of the first round anyway.
            rings.collect(log.vm.fd(), log.vm.ram())?;
            rings.forget();
        }
        log.vm.begin_logging()?;
        log.on = true;
        Ok(log)
    }

    fn off(vm: Arc<Vm>) -> DirtyLog {
        let pages = vm.ram().main().pages();
        let protect = vm.caps().manual_dirty_protect;
        let kind = match vm.rings() {
            Some(_) => Kind::Ring,
            None if protect != 0 => Kind::ManualBitmap,
            None => Kind::PlainBitmap,
        };
        let kvm_starts_full =
            kind == Kind::ManualBitmap && protect & u64::from(KVM_DIRTY_LOG_INITIALLY_SET) != 0;
        let owed = if kvm_starts_full { PageSet::new(pages) } else { PageSet::full(pages) };
        DirtyLog { vm, kind, owed, words: Vec::new(), on: false }
    }

    /// Waits for `time`, or until somebody else wants a log, which is true: who only measures ends
    /// its own then.
    pub(crate) fn wanted_within(&self, time: Duration) -> bool {
        self.vm.turn().wanted_within(time)
    }

    /// Adds to `into` every page written since it was last cleared (or, without manual protection,
    /// harvested).
    ///
    /// # Errors
    /// [`Error::RingOverflow`] from then on, once a ring has lost pages: what was collected is not
    /// all.
    ///
    /// # Panics
    /// If `into` is not bounded by the pages of the main block.
    pub fn harvest(&mut self, into: &mut PageSet) -> Result<(), Error> {
        let ram = self.vm.ram().clone();
        assert_eq!(into.bound(), ram.main().pages(), "a set of another block");
        match self.kind {
            Kind::Ring => {
                let rings = self.vm.rings().expect("kind says so");
                rings.collect(self.vm.fd(), &ram)?;
                rings.take(into);
                if rings.lost_pages() {
                    return Err(Error::RingOverflow);
                }
            }
            Kind::ManualBitmap | Kind::PlainBitmap => self.read_bitmaps(&ram, into)?,
        }
        // After KVM's log: a page that both wrote is one page.
        ram.take_vmm_dirty(into);
        into.union_with(&self.owed);
        self.owed.clear();
        Ok(())
    }

    /// Clears the dirty bits of the members of `set` in `pages`, which must happen before these
    /// pages are read. Pages outside `set` keep their bits.
    ///
    /// # Panics
    /// If `pages.start` is not a multiple of [`CLEAR_ALIGN_PAGES`], or `pages.end` is neither that
    /// nor the block's end.
    pub fn clear(&mut self, set: &PageSet, pages: Range<u64>) -> Result<(), Error> {
        let aligned = |p: u64| p.is_multiple_of(CLEAR_ALIGN_PAGES);
        assert!(
            aligned(pages.start) && (aligned(pages.end) || pages.end == set.bound()),
            "{pages:?}"
        );
        if self.kind != Kind::ManualBitmap {
            return Ok(());
        }
        let ram = self.vm.ram();
        for (slot, region) in ram.main().regions().iter().enumerate() {
            let base = region.offset / crate::memory::PAGE_BYTES;
            let end = base + region.bytes / crate::memory::PAGE_BYTES;
            let (start, stop) = (pages.start.max(base), pages.end.min(end));
            if start >= stop {
                continue;
            }
            let words = &set.words()[(start / 64) as usize..stop.div_ceil(64) as usize];
            if words.iter().all(|&w| w == 0) {
                continue;
            }
            let count = u32::try_from(stop - start).unwrap_or(u32::MAX);
            ioctl::clear_dirty_log(self.vm.fd(), slot as u32, start - base, count, words)
                .map_err(Error::raw("KVM_CLEAR_DIRTY_LOG"))?;
        }
        Ok(())
    }

    /// Returns harvested pages that were not handed over: the next harvest brings them again.
    pub fn give_back(&mut self, pages: &PageSet) {
        self.owed.union_with(pages);
    }

    /// Switches logging off.
    pub fn stop(mut self) -> Result<(), Error> {
        self.on = false;
        self.vm.end_logging()
    }

    fn read_bitmaps(&mut self, ram: &GuestRam, into: &mut PageSet) -> Result<(), Error> {
        for (slot, region) in ram.main().regions().iter().enumerate() {
            let pages = region.bytes / crate::memory::PAGE_BYTES;
            let base = (region.offset / crate::memory::PAGE_BYTES / 64) as usize;
            self.words.clear();
            self.words.resize(pages.div_ceil(64) as usize, 0);
            ioctl::get_dirty_log(self.vm.fd(), slot as u32, pages, &mut self.words)
                .map_err(Error::raw("KVM_GET_DIRTY_LOG"))?;
            for (i, &word) in self.words.iter().enumerate().filter(|(_, w)| **w != 0) {
                into.union_word(base + i, word);
            }
        }
        Ok(())
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if self.on {
            let _ = self.vm.end_logging();
        }
        self.vm.turn().give();
    }
}

/// How many pages each vCPU dirties, counted by its ring. Goes beside a [`DirtyLog`] and others of
/// its kind: what it collects stays there for the log. While there is one, KVM logs.
pub(crate) struct RingCounts {
    vm: Arc<Vm>,
}

impl RingCounts {
    /// Switches logging on, if it is not.
    ///
    /// # Errors
    /// [`Error::Missing`] on a machine without rings.
    pub(crate) fn start(vm: Arc<Vm>) -> Result<RingCounts, Error> {
        if vm.rings().is_none() {
            return Err(Error::Missing(
                "dirty rings of this machine (-accel kvm,dirty-ring-size=)",
            ));
        }
        vm.begin_logging()?;
        Ok(RingCounts { vm })
    }

    /// Collects the rings, and tells how many pages each vCPU has dirtied since it was made, by
    /// their number. A page counts again when it is written after it was collected.
    pub(crate) fn dirtied(&self) -> Result<Vec<u64>, Error> {
        self.vm.drain_rings()?;
        Ok(self.vm.rings().map_or_else(Vec::new, super::rings::Rings::taken))
    }
}

impl Drop for RingCounts {
    fn drop(&mut self) {
        let _ = self.vm.end_logging();
    }
}
