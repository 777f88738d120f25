//! The cache against plain models.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn filled(byte: u8) -> Page {
    [byte; PAGE_SIZE]
}

/// What the cache must do, told with a map: per set, the page used longest ago gives way.
struct Model {
    geometry: Geometry,
    held: HashMap<u64, (u8, u64)>,
    clock: u64,
}

impl Model {
    fn new(geometry: Geometry) -> Model {
        Model { geometry, held: HashMap::new(), clock: 0 }
    }

    fn get(&mut self, page: u64) -> Option<u8> {
        self.clock += 1;
        let (byte, used) = self.held.get_mut(&page)?;
        *used = self.clock;
        Some(*byte)
    }

    fn insert(&mut self, page: u64, byte: u8) {
        self.clock += 1;
        let rivals = self.rivals(page);
        if !self.held.contains_key(&page) && rivals.len() == self.geometry.ways() {
            self.held.remove(&rivals[0]);
        }
        self.held.insert(page, (byte, self.clock));
    }

    /// The pages in the set of `page`, oldest first.
    fn rivals(&self, page: u64) -> Vec<u64> {
        let place = self.geometry.place(page);
        let mut rivals: Vec<u64> = self
            .held
            .keys()
            .copied()
            .filter(|&other| self.geometry.place(other) == place)
            .collect();
        rivals.sort_by_key(|other| self.held[other].1);
        rivals
    }

    fn resize(&mut self, geometry: Geometry) {
        self.geometry = geometry;
        let pages: Vec<u64> = self.held.keys().copied().collect();
        for page in pages {
            let rivals = self.rivals(page);
            let too_many = rivals.len().saturating_sub(geometry.ways());
            rivals[..too_many].iter().for_each(|page| {
                self.held.remove(page);
            });
        }
    }

    fn check(&self, cache: &Cache) {
        assert_eq!(cache.len(), self.held.len());
        assert_eq!(cache.is_empty(), self.held.is_empty());
        for (&page, &(byte, _)) in &self.held {
            assert_eq!(cache.peek(page), Some(&filled(byte)), "page {page:#x}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Get(u64),
    Insert(u64, u8),
    Remove(u64),
    Resize(u64),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page =
        prop_oneof![0_u64..40, (0_u64..12, 0_u64..12).prop_map(|(far, near)| (far << 9) + near)];
    let step = prop_oneof![
        4 => page.clone().prop_map(Step::Get),
        8 => (page.clone(), any::<u8>()).prop_map(|(page, byte)| Step::Insert(page, byte)),
        2 => page.prop_map(Step::Remove),
        1 => (PAGE_SIZE as u64..MIB).prop_map(Step::Resize),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn behaves_as_the_map_model(bytes in 4 * KIB..256 * KIB, steps in steps()) {
        let mut cache = Cache::new(bytes).unwrap();
        let mut model = Model::new(cache.geometry);
        for step in steps {
            match step {
                Step::Get(page) => {
                    prop_assert_eq!(cache.get(page).copied(), model.get(page).map(filled));
                }
                Step::Insert(page, byte) => {
                    *cache.insert(page) = filled(byte);
                    model.insert(page, byte);
                }
                Step::Remove(page) => {
                    prop_assert_eq!(cache.remove(page), model.held.remove(&page).is_some());
                }
                Step::Resize(bytes) => {
                    cache.resize(bytes).unwrap();
                    model.resize(cache.geometry);
                }
                Step::Clear => {
                    cache.clear();
                    model.held.clear();
                }
            }
        }
        model.check(&cache);
    }
}

#[test]
fn the_page_used_longest_ago_gives_way() {
    let mut cache = Cache::new(32 * KIB).unwrap();
    for page in 0..8 {
        *cache.insert(page) = filled(page as u8);
    }
    assert!(cache.get(0).is_some());
    *cache.insert(8) = filled(8);
    assert!(!cache.contains(1), "page 1 was the oldest after page 0 was used");
    assert!([0, 2, 3, 4, 5, 6, 7, 8].into_iter().all(|page| cache.contains(page)));
}

#[test]
fn page_number_zero_is_not_found_in_an_empty_cache() {
    let mut cache = Cache::new(MIB).unwrap();
    assert!(!cache.contains(0) && cache.get(0).is_none() && !cache.remove(0));
    assert!(cache.is_empty());
}

#[test]
fn every_page_number_is_a_key() {
    let mut cache = Cache::new(MIB).unwrap();
    for page in [0, 1, u64::MAX, u64::MAX - 1, 1 << 63] {
        *cache.insert(page) = filled(9);
        assert_eq!(cache.get(page), Some(&mut filled(9)));
    }
    assert_eq!(cache.len(), 5);
}

#[test]
fn a_hot_range_that_fits_stays() {
    let mut cache = Cache::new(16 * MIB).unwrap();
    for sweep in 0..3 {
        for page in 0..4096 {
            assert_eq!(cache.get(page).is_some(), sweep > 0);
            cache.insert(page);
        }
    }
}

#[test]
fn a_sweep_larger_than_the_cache_finds_what_fits() {
    let mut cache = Cache::new(MIB).unwrap();
    for pass in 0..6 {
        cache.begin_pass();
        let found = (0..1024).filter(|&page| {
            cache.get(page).is_some() || {
                cache.admit(page);
                false
            }
        });
        assert_eq!(found.count(), if pass == 0 { 0 } else { 256 });
    }
}

#[test]
fn a_hot_set_that_moves_is_followed() {
    let mut cache = Cache::new(MIB).unwrap();
    for pass in 0..12 {
        cache.begin_pass();
        let first = if pass < 6 { 0 } else { 5120 };
        let found = (first..first + 256).filter(|&page| {
            cache.get(page).is_some() || {
                cache.admit(page);
                false
            }
        });
        let found = found.count();
        // A page found three times or more is given up in the fourth pass without it.
        assert_eq!(found, if matches!(pass, 0 | 6..=9) { 0 } else { 256 }, "pass {pass}");
    }
}

#[test]
fn metadata_is_at_most_half_a_percent_of_the_slab() {
    for mib in [1, 2, 8, 64, 512, 4096] {
        let cache = Cache::new(mib * MIB).unwrap();
        let share = cache.metadata_bytes() as f64 / cache.size_bytes() as f64;
        assert!(share <= 0.005, "{mib} MiB: {share}");
        assert!(cache.metadata_bytes() <= 20 * cache.capacity_pages(), "{mib} MiB");
    }
}

#[test]
fn a_large_cache_costs_its_memory_only_when_used() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident_kib();
    let mut cache = Cache::new(4096 * MIB).unwrap();
    (0..64).for_each(|page| *cache.insert(page) = filled(1));
    // Other tests run beside this one; 256 MiB is far above what they hold and far below 4 GiB.
    assert!(resident_kib() < before + (256 << 10), "{} KiB more", resident_kib() - before);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    for bytes in [1 << 46, 1 << 52, 1 << 60, u64::MAX] {
        match Cache::new(bytes) {
            Err(CacheError::Memory { .. }) => {}
            other => panic!("{bytes} bytes: {other:?}"),
        }
    }
    let mut cache = Cache::new(MIB).unwrap();
    *cache.insert(3) = filled(3);
    assert!(cache.resize(1 << 60).is_err() && cache.resize(100).is_err());
    assert_eq!(cache.capacity_pages(), 256);
    assert_eq!(cache.peek(3), Some(&filled(3)));
}

#[test]
fn growing_keeps_everything_and_shrinking_keeps_the_most_recent() {
    let mut cache = Cache::new(16 * MIB).unwrap();
    for page in 0..4096_u64 {
        *cache.insert(page) = filled(page as u8);
    }
    cache.resize(64 * MIB).unwrap();
    assert_eq!((cache.len(), cache.size_bytes()), (4096, 64 * MIB));
    assert!((0..4096).all(|page| cache.peek(page) == Some(&filled(page as u8))));

    (0..500).for_each(|page| assert!(cache.get(page).is_some()));
    cache.resize(8 * MIB + 5).unwrap();
    assert_eq!((cache.len(), cache.capacity_pages()), (2048, 2048));
    assert!((0..500).chain(3072..4096).all(|page| cache.peek(page) == Some(&filled(page as u8))));

    // Recency goes on as it was.
    cache.resize(32 * KIB).unwrap();
    assert_eq!(cache.len(), 8);
    assert!((492..500).all(|page| cache.contains(page)));
}

#[test]
fn shards_together_are_the_whole_cache() {
    let mut cache = Cache::new(64 * MIB).unwrap();
    assert_eq!(cache.shards(), 8);
    let page = 5 * CHUNK_PAGES + 17;
    let (shard, stamp) = (cache.shard_index(page), cache.tick(1));
    let mut shards: Vec<Shard> = cache.shards_mut().collect();
    assert!(shards[shard].hit(page, stamp).is_none());
    *shards[shard].admit(page, stamp).unwrap() = filled(5);
    assert_eq!(cache.get(page), Some(&mut filled(5)));
    cache.forget([page, page + 1]);
    assert!(cache.is_empty());
}

#[test]
fn errors_tell_what_was_wanted() {
    let texts =
        [Cache::new(17).unwrap_err().to_string(), Cache::new(1 << 60).unwrap_err().to_string()];
    assert_eq!(texts[0], "a page cache of 17 bytes does not hold one page of 4096 bytes");
    assert_eq!(texts[1], "no memory for a page cache of 1152921504606846976 bytes");
}
