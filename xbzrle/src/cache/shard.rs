//! One shard of the cache: the sets and pages that one thread may use while others use theirs.

use super::Page;
use super::geometry::Geometry;
use super::set::{Set, Stamp};

/// A shard, borrowed from the cache. Pages that are not of this shard must not be asked for (debug
/// builds check).
#[derive(Debug)]
pub(crate) struct Shard<'c> {
    geometry: Geometry,
    sets: &'c mut [Set],
    /// By way, then set.
    pages: &'c mut [Page],
    used: &'c mut usize,
}

impl<'c> Shard<'c> {
    pub(super) fn new(
        geometry: Geometry,
        sets: &'c mut [Set],
        pages: &'c mut [Page],
        used: &'c mut usize,
    ) -> Shard<'c> {
        debug_assert_eq!(pages.len(), sets.len() * geometry.ways());
        Shard { geometry, sets, pages, used }
    }

    /// The entry of `page`, which becomes the most recent one.
    pub(crate) fn hit(&mut self, page: u64, stamp: Stamp) -> Option<&mut Page> {
        let slot = self.touch(page, stamp)?;
        Some(&mut self.pages[slot])
    }

    /// The entry of `page`. Changes nothing.
    pub(crate) fn peek(&self, page: u64) -> Option<&Page> {
        let set = self.set_of(page);
        Some(&self.pages[self.slot(set, self.sets[set].find(page)?)])
    }

    /// An entry for `page`, which must not have one, if one can be spared for it. The bytes are
    /// arbitrary.
    pub(crate) fn admit(&mut self, page: u64, stamp: Stamp) -> Option<&mut Page> {
        let slot = self.claim_spare(page, stamp)?;
        Some(&mut self.pages[slot])
    }

    pub(crate) fn remove(&mut self, page: u64) -> bool {
        let set = self.set_of(page);
        let found = self.sets[set].find(page);
        if let Some(way) = found {
            self.sets[set].clear(way);
            *self.used -= 1;
        }
        found.is_some()
    }

    pub(super) fn into_hit(mut self, page: u64, stamp: Stamp) -> Option<&'c mut Page> {
        let slot = self.touch(page, stamp)?;
        Some(&mut self.pages[slot])
    }

    pub(super) fn into_admitted(mut self, page: u64, stamp: Stamp) -> Option<&'c mut Page> {
        let slot = self.touch(page, stamp).or_else(|| self.claim_spare(page, stamp))?;
        Some(&mut self.pages[slot])
    }

    pub(super) fn into_slot(mut self, page: u64, stamp: Stamp) -> &'c mut Page {
        let slot = self.touch(page, stamp).unwrap_or_else(|| self.claim(page, stamp));
        &mut self.pages[slot]
    }

    /// Enters `page` with its old stamp, unless its set is full of more recent ones. For resizing:
    /// its page is brought by [`Shard::fill`].
    pub(super) fn offer(&mut self, page: u64, stamp: Stamp) {
        let set = self.set_of(page);
        let (way, oldest) = self.sets[set].oldest(self.geometry.ways());
        if stamp > oldest {
            self.put(set, way, oldest, page, stamp);
        }
    }

    /// Copies the bytes of `page` in, if it was kept when it was offered.
    pub(super) fn fill(&mut self, page: u64, from: &Page) {
        let set = self.set_of(page);
        if let Some(way) = self.sets[set].find(page) {
            let slot = self.slot(set, way);
            self.pages[slot] = *from;
        }
    }

    fn touch(&mut self, page: u64, stamp: Stamp) -> Option<usize> {
        let set = self.set_of(page);
        let way = self.sets[set].find(page)?;
        self.sets[set].touch(way, stamp);
        Some(self.slot(set, way))
    }

    fn claim(&mut self, page: u64, stamp: Stamp) -> usize {
        let set = self.set_of(page);
        let (way, held) = self.sets[set].oldest(self.geometry.ways());
        self.put(set, way, held, page, stamp)
    }

    fn claim_spare(&mut self, page: u64, stamp: Stamp) -> Option<usize> {
        let set = self.set_of(page);
        let (way, held) = self.sets[set].spare(self.geometry.ways(), page, stamp)?;
        Some(self.put(set, way, held, page, stamp.entering(page)))
    }

    fn put(&mut self, set: usize, way: usize, held: Stamp, page: u64, stamp: Stamp) -> usize {
        debug_assert_eq!(self.sets[set].find(page), None, "page {page} twice in the cache");
        *self.used += usize::from(held == Stamp::NEVER);
        self.sets[set].put(way, page, stamp);
        self.slot(set, way)
    }

    fn set_of(&self, page: u64) -> usize {
        self.geometry.place(page).set
    }

    fn slot(&self, set: usize, way: usize) -> usize {
        way * self.sets.len() + set
    }
}
