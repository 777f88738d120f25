//! One set: eight tags with the stamps of their last use.

use super::geometry::WAYS;

/// When a way was last used, and how often: pass over memory (30 bits), lookup (32 bits), hits (2
/// bits). 0 = never. A larger stamp is more recent, over all sets of the cache. Lookups that do not
/// fit carry into the pass, which keeps that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Stamp(u64);

/// Two cache lines. All bytes zero is an empty set, so fresh memory needs no preparation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Set {
    /// Page numbers; meaningful where the stamp is not [`Stamp::NEVER`].
    tags: [u64; WAYS],
    stamps: [Stamp; WAYS],
}

impl Stamp {
    pub(crate) const NEVER: Stamp = Stamp(0);

    /// The first lookup of the first pass.
    pub(crate) const FIRST: Stamp = Stamp(1 << HITS_BITS);

    const HITS_MAX: u64 = (1 << HITS_BITS) - 1;

    /// The stamp `lookups` lookups later.
    pub(crate) fn later(self, lookups: u64) -> Stamp {
        Stamp(self.0 + (lookups << HITS_BITS))
    }

    /// The first stamp of the next pass. After 2^30 passes there is no next one.
    pub(crate) fn next_pass(self) -> Stamp {
        Stamp((self.pass() + 1).min(u64::MAX >> PASS_SHIFT) << PASS_SHIFT).max(self)
    }

    /// The stamp of a page that enters now. Every other page, by a hash of its number, is taken as
    /// found once before: these outlast a pass, so that a sweep that takes several passes finds
    /// part of itself.
    pub(crate) fn entering(self, page: u64) -> Stamp {
        Stamp(self.0 | (!page.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 63))
    }

    fn pass(self) -> u64 {
        self.0 >> PASS_SHIFT
    }

    fn hits(self) -> u64 {
        self.0 & Stamp::HITS_MAX
    }
}

const HITS_BITS: u32 = 2;
const PASS_SHIFT: u32 = 32 + HITS_BITS;

impl Set {
    /// The way that holds `page`.
    pub(super) fn find(&self, page: u64) -> Option<usize> {
        (0..WAYS).find(|&way| self.tags[way] == page && self.stamps[way] != Stamp::NEVER)
    }

    /// Counts a use.
    pub(super) fn touch(&mut self, way: usize, now: Stamp) {
        self.stamps[way] = Stamp(now.0 | (self.stamps[way].hits() + 1).min(Stamp::HITS_MAX));
    }

    /// The way to use next among the first `ways`: the first empty one, or else the least recently
    /// used; with the stamp of what it holds.
    pub(super) fn oldest(&self, ways: usize) -> (usize, Stamp) {
        let (mut way, mut stamp) = (0, self.stamps[0]);
        for other in 1..ways {
            if self.stamps[other] < stamp {
                (way, stamp) = (other, self.stamps[other]);
            }
        }
        (way, stamp)
    }

    /// The way to give to `page` now, if one can be spared: an empty one, or else the most overdue,
    /// the oldest of several. See [`overdue`](Set::overdue).
    pub(super) fn spare(&self, ways: usize, page: u64, now: Stamp) -> Option<(usize, Stamp)> {
        let (oldest, stamp) = self.oldest(ways);
        if stamp == Stamp::NEVER {
            return Some((oldest, stamp));
        }
        (0..ways)
            .map(|way| (self.overdue(way, page, now), way))
            .filter(|(overdue, _)| *overdue > 0)
            .max_by_key(|(overdue, way)| (*overdue, std::cmp::Reverse(self.stamps[*way])))
            .map(|(_, way)| (way, self.stamps[way]))
    }

    /// By how many passes the page in `way` has outstayed its welcome: passes over memory in which
    /// it was not found dirty, less the times it was found here (three at most).
    ///
    /// A page above `page` is still ahead of the scan: its turn in this pass has not come.
    fn overdue(&self, way: usize, page: u64, now: Stamp) -> i64 {
        let stamp = self.stamps[way];
        let missed = (now.pass() - stamp.pass()) as i64 - i64::from(self.tags[way] > page);
        missed - stamp.hits() as i64
    }

    pub(super) fn put(&mut self, way: usize, page: u64, stamp: Stamp) {
        self.tags[way] = page;
        self.stamps[way] = stamp;
    }

    pub(super) fn clear(&mut self, way: usize) {
        self.stamps[way] = Stamp::NEVER;
    }

    /// Page number and stamp in `way`, if it is not empty.
    pub(super) fn entry(&self, way: usize) -> Option<(u64, Stamp)> {
        (self.stamps[way] != Stamp::NEVER).then_some((self.tags[way], self.stamps[way]))
    }

    /// Page number and stamp of everything held.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, Stamp)> + '_ {
        (0..WAYS).filter_map(|way| self.entry(way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(stamp: Stamp) -> Set {
        let mut set = Set { tags: [0; WAYS], stamps: [Stamp::NEVER; WAYS] };
        (0..WAYS).for_each(|way| set.put(way, way as u64, stamp.later(way as u64)));
        set
    }

    fn pass(number: u64) -> Stamp {
        (0..number).fold(Stamp::FIRST, |stamp, _| stamp.next_pass())
    }

    #[test]
    fn stamps_grow_and_passes_are_counted() {
        assert!(Stamp::NEVER < Stamp::FIRST);
        assert!(Stamp::FIRST.later(5) < Stamp::FIRST.next_pass());
        assert_eq!((pass(3).pass(), pass(3).hits(), pass(3).later(1000).pass()), (3, 0, 3));
        assert_eq!(Stamp::FIRST.later(1 << 32).pass(), 1);
        let last = Stamp(!Stamp::HITS_MAX);
        assert_eq!(last.next_pass(), last);
    }

    #[test]
    fn an_empty_way_is_spared_first() {
        let mut set = full(pass(1));
        set.clear(5);
        assert_eq!(set.spare(WAYS, 100, pass(9)), Some((5, Stamp::NEVER)));
    }

    #[test]
    fn a_page_not_found_dirty_in_a_pass_can_be_spared() {
        let set = full(pass(1));
        assert_eq!(set.spare(WAYS, 100, pass(1).later(9)), None);
        assert_eq!(set.spare(WAYS, 100, pass(2)), Some((0, pass(1))));
    }

    #[test]
    fn a_page_ahead_of_the_scan_still_has_its_turn() {
        let mut set = full(pass(1));
        set.put(0, 50, pass(1));
        assert_eq!(set.spare(WAYS, 60, pass(2)), Some((0, pass(1))));
        assert_eq!(set.spare(WAYS, 40, pass(2)), Some((1, pass(1).later(1))));
    }

    #[test]
    fn each_hit_up_to_three_is_a_pass_more() {
        let mut set = full(pass(1));
        (0..WAYS).for_each(|way| set.touch(way, pass(2)));
        assert_eq!(set.spare(WAYS, 100, pass(3)), None);
        assert!(set.spare(WAYS, 100, pass(4)).is_some());
        (0..10).for_each(|_| (0..WAYS).for_each(|way| set.touch(way, pass(2).later(9))));
        assert_eq!(set.spare(WAYS, 100, pass(5)), None);
        assert!(set.spare(WAYS, 100, pass(6)).is_some());
    }

    #[test]
    fn the_most_overdue_goes_before_the_oldest() {
        let mut set = full(pass(1));
        set.touch(0, pass(1));
        assert_eq!(set.spare(WAYS, 100, pass(9)), Some((1, pass(1).later(1))));
    }

    #[test]
    fn every_other_page_starts_with_a_hit() {
        let started = (0..10_000).filter(|&page| Stamp::FIRST.entering(page).hits() == 1).count();
        assert!((4900..5100).contains(&started), "{started}");
    }
}
