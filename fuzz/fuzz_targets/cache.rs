//! Any steps: the page cache holds what a plain map says, whatever was inserted, dropped and
//! resized.
//!
//! The first byte chooses the size. Up to 8 pages it is one set, where every eviction is known
//! exactly; larger caches may drop what they like, but what they hold is right. Each three bytes
//! after it are a step: what, page, fill.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xbzrle::{Cache, PAGE_SIZE};

const SET_PAGES: usize = 8;

fuzz_target!(|data: &[u8]| {
    let Some((&size, steps)) = data.split_first() else { return };
    let mut cache = Cache::new(bytes(size)).unwrap();
    // Page and fill, the most recently used last.
    let mut model: Vec<(u64, u8)> = Vec::new();
    for step in steps.as_chunks::<3>().0 {
        // Pages close together, and far apart at a power of two.
        let page = u64::from(step[1] & 15) | u64::from(step[1] >> 4) << 11;
        let known = model.iter().position(|&(other, _)| other == page);
        match step[0] % 8 {
            0..3 => {
                *cache.insert(page) = [step[2]; PAGE_SIZE];
                known.map(|at| model.remove(at));
                model.push((page, step[2]));
                forget_oldest(&mut model, &cache);
            }
            3 | 4 => {
                let held = cache.get(page).copied();
                assert!(held.is_none() || known.is_some(), "page {page} came from nowhere");
                if held.is_some() {
                    let entry = model.remove(known.unwrap());
                    assert_eq!(held, Some([entry.1; PAGE_SIZE]));
                    model.push(entry);
                }
            }
            5 => {
                assert!(!cache.remove(page) || known.is_some());
                known.map(|at| model.remove(at));
            }
            6 => {
                cache.resize(bytes(step[2])).unwrap();
                forget_oldest(&mut model, &cache);
            }
            _ => {
                cache.begin_pass();
                if known.is_none()
                    && let Some(entry) = cache.admit(page)
                {
                    *entry = [step[2]; PAGE_SIZE];
                    // Which page gave way is the policy's affair; find out.
                    model.retain(|&(other, _)| cache.contains(other));
                    model.push((page, step[2]));
                }
            }
        }
        let one_set = cache.capacity_pages() <= SET_PAGES;
        for &(page, fill) in &model {
            match cache.peek(page) {
                Some(entry) => assert_eq!(entry, &[fill; PAGE_SIZE]),
                None => assert!(!one_set, "page {page} was lost"),
            }
        }
        model.retain(|&(page, _)| cache.contains(page));
        assert_eq!(cache.len(), model.len());
    }
});

/// 1 to 1024 pages, not always a power of two.
fn bytes(size: u8) -> u64 {
    let page = PAGE_SIZE as u64;
    (page << (size % 11)) + u64::from(size) * 3
}

/// In a cache of one set it is known what had to go.
fn forget_oldest(model: &mut Vec<(u64, u8)>, cache: &Cache) {
    if cache.capacity_pages() <= SET_PAGES {
        model.drain(..model.len().saturating_sub(cache.capacity_pages()));
    }
}
