//! Which set a page belongs to.
//!
//! ```text
//! page number    … block number …  | chunk in block        | page in chunk (8 bits)
//! set number                         chunk ^ hash(block)     page ^ hash(block)
//!                                    └ low bits: the shard
//! ```
//!
//! A block is an aligned range of as many pages as the cache holds. Inside one block every set has
//! exactly its 8 pages, so a sweep or a hot range that fits in the cache stays in it. Blocks are
//! laid over each other in an order that is hashed by block number, so that hot pages at the same
//! place in many blocks (a power-of-two stride) do not meet in one set.
//!
//! Neighbouring chunks go to different shards: a run of dirty memory keeps all threads busy. A
//! shard has at least 256 sets, so a chunk puts at most one page into each of its sets, and one
//! chunk all hot does not push others out. The price is that a cache below 16 MiB has one shard and
//! is used by one thread.

use super::CacheError;
use crate::PAGE_SIZE;

/// Pages in the aligned range that always belongs to one shard.
pub const CHUNK_PAGES: u64 = 1 << CHUNK_BITS;

const CHUNK_BITS: u32 = 8;

/// Ways of a set in a cache of at least that many pages.
pub(super) const WAYS: usize = 8;

/// Enough for any number of threads that encodes for one connection.
pub(crate) const SHARDS_MAX: usize = 64;

const SHARD_BITS_MAX: u32 = SHARDS_MAX.ilog2();

/// A set, by its shard and its number in the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub shard: usize,
    pub set: usize,
}

/// The shape of a cache: numbers of ways, sets and shards, all powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    way_bits: u32,
    set_bits: u32,
    shard_bits: u32,
}

impl Geometry {
    /// The largest power of two of pages within `bytes`.
    pub(super) fn for_bytes(bytes: u64) -> Result<Geometry, CacheError> {
        let page_bits =
            (bytes / PAGE_SIZE as u64).checked_ilog2().ok_or(CacheError::TooSmall { bytes })?;
        let way_bits = page_bits.min(WAYS.ilog2());
        let set_bits = page_bits - way_bits;
        let shard_bits = set_bits.saturating_sub(CHUNK_BITS).min(SHARD_BITS_MAX);
        Ok(Geometry { way_bits, set_bits, shard_bits })
    }

    pub(super) fn ways(self) -> usize {
        1 << self.way_bits
    }

    pub(super) fn sets(self) -> usize {
        1 << self.set_bits
    }

    pub(super) fn pages(self) -> usize {
        1 << (self.set_bits + self.way_bits)
    }

    pub(super) fn shards(self) -> usize {
        1 << self.shard_bits
    }

    pub(super) fn shard_sets(self) -> usize {
        1 << (self.set_bits - self.shard_bits)
    }

    pub(super) fn shard_pages(self) -> usize {
        1 << (self.set_bits + self.way_bits - self.shard_bits)
    }

    pub(super) fn place(self, page: u64) -> Place {
        let block = page >> (self.set_bits + self.way_bits);
        let number = (page ^ self.spread(block)) & (self.sets() as u64 - 1);
        let in_chunk = number & (CHUNK_PAGES - 1);
        let chunk = number >> CHUNK_BITS;
        Place {
            shard: (chunk & (self.shards() as u64 - 1)) as usize,
            set: (((chunk >> self.shard_bits) << CHUNK_BITS) | in_chunk) as usize,
        }
    }

    /// The set (counted over all shards) and the way that slot `slot` of the slab belongs to. Slots
    /// are laid out by shard, then way, then set: a shard fills from its front, so huge pages
    /// behind stay untouched until needed.
    pub(super) fn slot_owner(self, slot: usize) -> (usize, usize) {
        let (shard, in_shard) = (slot / self.shard_pages(), slot % self.shard_pages());
        let (way, set) = (in_shard / self.shard_sets(), in_shard % self.shard_sets());
        (shard * self.shard_sets() + set, way)
    }

    /// Fibonacci hashing: the top bits of a multiple of 2^64 divided by the golden ratio. Block 0
    /// stays in place.
    fn spread(self, block: u64) -> u64 {
        let hash = block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if self.set_bits == 0 { 0 } else { hash >> (64 - self.set_bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> impl Iterator<Item = Geometry> {
        (0..20).map(|bits| Geometry::for_bytes((PAGE_SIZE as u64) << bits).unwrap())
    }

    #[test]
    fn sizes_are_rounded_down_to_a_power_of_two() {
        for (bytes, pages) in [(4096, 1), (8191, 1), (8192, 2), (12 << 20, 2048), (64 << 20, 16384)]
        {
            assert_eq!(Geometry::for_bytes(bytes).unwrap().pages(), pages, "{bytes} bytes");
        }
        assert!(matches!(Geometry::for_bytes(4095), Err(CacheError::TooSmall { bytes: 4095 })));
    }

    #[test]
    fn every_aligned_block_fills_every_set_exactly() {
        for shape in shapes() {
            for block in [0, 1, 2, 77, u64::MAX >> 40] {
                let mut count = vec![0; shape.sets()];
                for page in 0..shape.pages() as u64 {
                    let place = shape.place(block * shape.pages() as u64 + page);
                    count[place.shard * shape.shard_sets() + place.set] += 1;
                }
                assert!(count.iter().all(|&n| n == shape.ways()), "{shape:?}, block {block}");
            }
        }
    }

    #[test]
    fn a_chunk_belongs_to_one_shard_and_its_neighbour_to_another() {
        for shape in shapes() {
            for chunk in 0..1000 {
                let shard = |page| shape.place(page).shard;
                let first = chunk * CHUNK_PAGES;
                assert!((first..first + CHUNK_PAGES).all(|page| shard(page) == shard(first)));
                if !(chunk + 1).is_multiple_of(shape.shards() as u64) {
                    assert!(shape.shards() == 1 || shard(first) != shard(first + CHUNK_PAGES));
                }
            }
        }
    }

    #[test]
    fn pages_at_a_power_of_two_stride_spread_over_the_sets() {
        let shape = Geometry::for_bytes(64 << 20).unwrap();
        let mut count = vec![0; shape.sets()];
        for n in 0..4096_u64 {
            let place = shape.place(n << 14);
            count[place.shard * shape.shard_sets() + place.set] += 1;
        }
        assert!(count.iter().all(|&n| n <= 8));
    }

    #[test]
    fn slots_are_owned_once() {
        for shape in shapes().take(14) {
            let mut seen = vec![false; shape.pages()];
            for slot in 0..shape.pages() {
                let (set, way) = shape.slot_owner(slot);
                assert!(!std::mem::replace(&mut seen[set * shape.ways() + way], true));
            }
        }
    }
}
