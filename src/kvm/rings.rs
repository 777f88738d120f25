//! KVM's dirty rings, one for each vCPU.

use super::caps::Caps;
use super::error::Error;
use super::ioctl::{self, Ring};
use crate::memory::{GuestRam, PAGE_BYTES, PageSet};
use kvm_bindings::{kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The dirty rings of all vCPUs, and what was collected from them and not harvested yet.
pub(crate) struct Rings {
    entries: u32,
    /// KVM wrote past the end of one: pages are missing, and nobody knows which.
    overflowed: AtomicBool,
    inner: Mutex<Collected>,
}

struct Collected {
    rings: Vec<Ring>,
    /// Entries taken from each so far: how often its vCPU wrote a page that was clean.
    taken: Vec<u64>,
    pages: PageSet,
}

impl Rings {
    /// Enables rings of `entries` entries; before any vCPU is made.
    pub(super) fn enable(vm: &VmFd, caps: &Caps, entries: u32, pages: u64) -> Result<Rings, Error> {
        let entry_bytes = size_of::<kvm_dirty_gfn>() as u32;
        let ring = caps.dirty_ring.ok_or(Error::Missing("dirty rings (KVM_CAP_DIRTY_LOG_RING)"))?;
        let max = ring.bytes_max / entry_bytes;
        if !entries.is_power_of_two() || entries > max {
            return Err(Error::RingSize { wanted: entries, max });
        }
        let mut cap = kvm_enable_cap { cap: ring.cap, ..Default::default() };
        cap.args[0] = u64::from(entries * entry_bytes);
        vm.enable_cap(&cap).map_err(Error::call("KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)"))?;
        let collected =
            Collected { rings: Vec::new(), taken: Vec::new(), pages: PageSet::new(pages) };
        Ok(Rings { entries, overflowed: AtomicBool::new(false), inner: Mutex::new(collected) })
    }

    /// Adds the ring of a new vCPU.
    pub(super) fn add(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        let ring = Ring::map(vcpu.as_raw_fd(), self.entries)
            .map_err(Error::raw("mmap of a dirty ring"))?;
        let mut inner = self.lock();
        inner.rings.push(ring);
        inner.taken.push(0);
        Ok(())
    }

    /// Collects every ring, then resets: from here on a write to a collected page is logged again.
    /// Returns how many entries became free.
    pub(super) fn collect(&self, vm: &VmFd, ram: &GuestRam) -> Result<u32, Error> {
        let mut inner = self.lock();
        let Collected { rings, taken, pages } = &mut *inner;
        let regions = ram.main().regions();
        for (ring, taken) in rings.iter_mut().zip(taken) {
            let kept_free = ring.drain(|slot, page| {
                *taken += 1;
                // The address space id is in the upper half; there is only one without SMM.
                if let Some(region) = regions.get((slot & 0xffff) as usize) {
                    let page = region.offset / PAGE_BYTES + page;
                    if page < pages.bound() {
                        pages.insert(page);
                    }
                }
            });
            if !kept_free {
                self.give_up();
            }
        }
        ioctl::reset_dirty_rings(vm).map_err(Error::raw("KVM_RESET_DIRTY_RINGS"))
    }

    /// Entries of one ring.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// How many entries were taken from the ring of each vCPU since it was made.
    pub(super) fn taken(&self) -> Vec<u64> {
        self.lock().taken.clone()
    }

    /// The same of one vCPU.
    pub(super) fn taken_from(&self, vcpu: usize) -> u64 {
        self.lock().taken[vcpu]
    }

    /// Whether a ring has lost pages.
    pub(super) fn lost_pages(&self) -> bool {
        if self.lock().rings.iter().any(Ring::is_out_of_step) {
            self.give_up();
        }
        self.overflowed.load(Ordering::Acquire)
    }

    /// Pages are missing from here on.
    pub(super) fn give_up(&self) {
        self.overflowed.store(true, Ordering::Release);
    }

    /// Adds what was collected to `into`, and keeps none of it.
    pub(super) fn take(&self, into: &mut PageSet) {
        let mut inner = self.lock();
        into.union_with(&inner.pages);
        inner.pages.clear();
    }

    /// Begins anew: nothing was collected, nothing lost.
    pub(super) fn forget(&self) {
        self.lock().pages.clear();
        self.overflowed.store(false, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
