//! One set: eight tags with the stamps of their last use.

use super::geometry::WAYS;

/// Two cache lines. All bytes zero is an empty set, so fresh memory needs no preparation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Set {
    /// Page numbers; meaningful where the stamp is not 0.
    tags: [u64; WAYS],
    /// When each way was last used; 0 = empty. A larger stamp is more recent, over all sets of the cache.
    stamps: [u64; WAYS],
}

impl Set {
    /// The way that holds `page`.
    pub fn find(&self, page: u64) -> Option<usize> {
        (0..WAYS).find(|&way| self.tags[way] == page && self.stamps[way] != 0)
    }

    pub fn touch(&mut self, way: usize, stamp: u64) {
        self.stamps[way] = stamp;
    }

    /// The way to use next among the first `ways`: the first empty one, or else the least recently used, with the
    /// stamp of what it holds.
    pub fn oldest(&self, ways: usize) -> (usize, u64) {
        let (mut way, mut stamp) = (0, self.stamps[0]);
        for other in 1..ways {
            if self.stamps[other] < stamp {
                (way, stamp) = (other, self.stamps[other]);
            }
        }
        (way, stamp)
    }

    pub fn put(&mut self, way: usize, page: u64, stamp: u64) {
        self.tags[way] = page;
        self.stamps[way] = stamp;
    }

    pub fn clear(&mut self, way: usize) {
        self.stamps[way] = 0;
    }

    /// Page number and stamp in `way`, if it is not empty.
    pub fn entry(&self, way: usize) -> Option<(u64, u64)> {
        (self.stamps[way] != 0).then_some((self.tags[way], self.stamps[way]))
    }

    /// Way, page number and stamp of everything held.
    pub fn entries(&self) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
        (0..WAYS).filter_map(|way| self.entry(way).map(|(page, stamp)| (way, page, stamp)))
    }
}
