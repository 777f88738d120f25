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

use super::caps::Caps;
use super::ioctl::{self, Ring};
use super::{Error, Vm};
use crate::memory::{GuestRam, PageSet};
use kvm_bindings::{KVM_DIRTY_LOG_INITIALLY_SET, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Ranges given to [`DirtyLog::clear`] start on multiples of this (KVM's rule: whole 64-bit words).
pub const CLEAR_ALIGN_PAGES: u64 = 64;

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
    /// needs.
    pub fn start(vm: Arc<Vm>) -> Result<DirtyLog, Error> {
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
        if let Some(rings) = vm.rings() {
            // Entries from before are part of the first round anyway.
            rings.collect(&vm)?;
            rings.take(&mut PageSet::new(pages));
            rings.overflowed.store(false, Ordering::Release);
        }
        vm.log_dirty(true)?;
        Ok(DirtyLog { vm, kind, owed, words: Vec::new(), on: true })
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
                rings.collect(&self.vm)?;
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
        self.vm.log_dirty(false)
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
            let _ = self.vm.log_dirty(false);
        }
    }
}

/// The dirty rings of all vCPUs, and what was collected from them and not harvested yet.
pub struct Rings {
    entries: u32,
    /// KVM wrote past the end of one: pages are missing, and nobody knows which.
    overflowed: AtomicBool,
    inner: Mutex<Collected>,
}

struct Collected {
    rings: Vec<Ring>,
    pages: PageSet,
}

impl Rings {
    /// Enables rings of `entries` entries; before any vCPU is made.
    pub(super) fn enable(vm: &VmFd, caps: &Caps, entries: u32, pages: u64) -> Result<Rings, Error> {
        let entry_bytes = size_of::<kvm_bindings::kvm_dirty_gfn>() as u32;
        let ring = caps.dirty_ring.ok_or(Error::Missing("dirty rings (KVM_CAP_DIRTY_LOG_RING)"))?;
        let max = ring.bytes_max / entry_bytes;
        if !entries.is_power_of_two() || entries > max {
            return Err(Error::RingSize { wanted: entries, max });
        }
        let mut cap = kvm_enable_cap { cap: ring.cap, ..Default::default() };
        cap.args[0] = u64::from(entries * entry_bytes);
        vm.enable_cap(&cap).map_err(Error::call("KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)"))?;
        let collected = Collected { rings: Vec::new(), pages: PageSet::new(pages) };
        Ok(Rings { entries, overflowed: AtomicBool::new(false), inner: Mutex::new(collected) })
    }

    /// Adds the ring of a new vCPU.
    pub(super) fn add(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        let ring = Ring::map(vcpu.as_raw_fd(), self.entries)
            .map_err(Error::raw("mmap of a dirty ring"))?;
        self.lock().rings.push(ring);
        Ok(())
    }

    /// Collects every ring, then resets: from here on a write to a collected page is logged again.
    /// Returns how many entries became free.
    pub(super) fn collect(&self, vm: &Vm) -> Result<u32, Error> {
        let mut inner = self.lock();
        let Collected { rings, pages } = &mut *inner;
        let regions = vm.ram().main().regions();
        for ring in rings {
            let kept_free = ring.drain(|slot, page| {
                // The address space id is in the upper half; there is only one without SMM.
                if let Some(region) = regions.get((slot & 0xffff) as usize) {
                    let page = region.offset / crate::memory::PAGE_BYTES + page;
                    if page < pages.bound() {
                        pages.insert(page);
                    }
                }
            });
            if !kept_free {
                self.give_up();
            }
        }
        ioctl::reset_dirty_rings(vm.fd()).map_err(Error::raw("KVM_RESET_DIRTY_RINGS"))
    }

    /// Whether a ring has lost pages.
    fn lost_pages(&self) -> bool {
        if self.lock().rings.iter().any(Ring::is_out_of_step) {
            self.give_up();
        }
        self.overflowed.load(Ordering::Acquire)
    }

    fn give_up(&self) {
        self.overflowed.store(true, Ordering::Release);
    }

    fn take(&self, into: &mut PageSet) {
        let mut inner = self.lock();
        into.union_with(&inner.pages);
        inner.pages.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Collected> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm {
    /// Makes room in the dirty rings, for a vCPU that left the guest because its ring is full;
    /// returns how many entries became free.
    pub fn drain_rings(&self) -> Result<u32, Error> {
        match self.rings() {
            Some(rings) => rings.collect(self),
            None => Ok(0),
        }
    }

    /// A ring is full and stays full although nothing in it can be taken: KVM and we have lost each
    /// other. Every harvest fails from here on.
    pub fn give_up_rings(&self) {
        if let Some(rings) = self.rings() {
            rings.give_up();
        }
    }
}
