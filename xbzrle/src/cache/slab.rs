//! Zeroed memory that costs nothing until it is touched.
//!
//! Unsafe because memory that came as bytes is seen as sets, and because giving memory back is a
//! raw `madvise`.
#![allow(unsafe_code)]

use std::ops::Range;

use memmap2::{Advice, MmapMut, UncheckedAdvice};

use super::CacheError;
use super::set::Set;

/// How much memory is given back at a time while a slab is emptied: a few huge pages.
pub(super) const RELEASE_BYTES: usize = 8 << 20;

/// One anonymous mapping.
#[derive(Debug)]
pub(super) struct Slab(MmapMut);

impl Slab {
    pub(super) fn new(bytes: u64) -> Result<Slab, CacheError> {
        let refused = |source| CacheError::Memory { bytes, source };
        let len =
            usize::try_from(bytes).map_err(|_| refused(std::io::ErrorKind::OutOfMemory.into()))?;
        MmapMut::map_anon(len).map(Slab).map_err(refused)
    }

    /// With huge pages where the kernel has them: half the cost of an encode is address translation
    /// without.
    pub(super) fn new_huge(bytes: u64) -> Result<Slab, CacheError> {
        let slab = Slab::new(bytes)?;
        // Advice: a kernel without huge pages answers EINVAL, and all works with small ones.
        let _ = slab.0.advise(Advice::HugePage);
        Ok(slab)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The memory as sets. Its size must be a multiple of a set's.
    pub(super) fn sets(&self) -> &[Set] {
        // SAFETY: a Set is plain u64s without padding, so any bytes make one; align_to itself sees
        // to alignment.
        let (before, sets, after) = unsafe { self.0.align_to::<Set>() };
        debug_assert!(before.is_empty() && after.is_empty());
        sets
    }

    /// As [`Slab::sets`], to be changed.
    pub(super) fn sets_mut(&mut self) -> &mut [Set] {
        // SAFETY: as in `sets`; and any Set is valid bytes, so what is written leaves the mapping
        // valid.
        let (before, sets, after) = unsafe { self.0.align_to_mut::<Set>() };
        debug_assert!(before.is_empty() && after.is_empty());
        sets
    }

    /// Gives all memory back to the kernel. It reads as zeros afterwards.
    pub(super) fn discard(&mut self) {
        self.discard_range(0..self.len());
    }

    /// Gives a range of whole pages back.
    pub(super) fn discard_range(&mut self, range: Range<usize>) {
        // SAFETY: `&mut self` says that nothing else refers to these bytes; a private anonymous
        // mapping reads as zeros after MADV_DONTNEED, which are valid bytes.
        let discarded = unsafe {
            self.0.unchecked_advise_range(
                UncheckedAdvice::DontNeed,
                range.start,
                range.end - range.start,
            )
        };
        // It can only fail for a range outside the mapping or for locked memory (mlockall): then
        // zero by hand.
        if discarded.is_err() {
            self.0[range].fill(0);
        }
    }
}
