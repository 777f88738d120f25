//! A hash of all RAM, for comparing source and target. Zero pages count nothing, so that holes need
//! not be touched.

use super::mask::{CHUNK_PAGES, and_not, chunk_of, mask_ranges};
use super::source::sources;
use crate::memory::{Error, GuestRam, PAGE_BYTES, PageSet};

/// Odd, with bits well spread (the golden ratio's).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sum over all pages that are not zero of a hash of their place and content. The guest must
/// stand still. Pages of the main block that are `free` count as zero, whatever they hold.
pub(crate) fn hash_ram(ram: &GuestRam, free: &PageSet) -> Result<u64, Error> {
    let mut sum = 0u64;
    let mut bytes = [0; PAGE_BYTES as usize];
    for mut source in sources(ram) {
        for chunk in 0..source.pages().div_ceil(CHUNK_PAGES) {
            let mut data = source.data_mask(chunk)?;
            if source.index() == 0 {
                data = and_not(&data, &chunk_of(free, chunk));
            }
            for page in mask_ranges(data).flatten().map(|page| chunk * CHUNK_PAGES + page) {
                source.copy(page, &mut bytes);
                if !xbzrle::is_zero(&bytes) {
                    sum = sum.wrapping_add(hash_page(source.number(page), &bytes));
                }
            }
            source.check()?;
        }
    }
    Ok(sum)
}

/// A hash of a page's place and content.
pub(crate) fn hash_page(number: u64, bytes: &[u8; PAGE_BYTES as usize]) -> u64 {
    // Four lanes, so that the multiplications overlap.
    let mut lanes =
        [number ^ 1, number ^ 2, number ^ 3, number ^ 4].map(|seed| seed.wrapping_mul(MULTIPLIER));
    for line in bytes.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(line.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            *lane = fold(*lane ^ word);
        }
    }
    lanes.into_iter().fold(number, |hash, lane| fold(hash ^ lane))
}

fn fold(word: u64) -> u64 {
    let product = u128::from(word ^ MULTIPLIER) * u128::from(MULTIPLIER);
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Memory, MemoryBackend};

    #[test]
    fn one_bit_and_one_place_make_a_difference_and_holes_equal_zeros() {
        let make = || {
            let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
            let memory = Memory {
                bytes: 1 << 20,
                block: "ram".into(),
                backend,
                prealloc: false,
                merge: false,
                dump: true,
            };
            GuestRam::new(&memory).unwrap()
        };
        let hash = |ram: &GuestRam| hash_ram(ram, &PageSet::default());
        let (a, b) = (make(), make());
        assert_eq!(hash(&a).unwrap(), 0);
        b.write(7 * 4096, &[0; 100]).unwrap();
        assert_eq!(hash(&b).unwrap(), 0);
        a.write(5000, &[1]).unwrap();
        b.write(5000, &[1]).unwrap();
        assert_eq!(hash(&a).unwrap(), hash(&b).unwrap());
        b.write(5000, &[3]).unwrap();
        assert_ne!(hash(&a).unwrap(), hash(&b).unwrap());
        b.write(5000, &[0]).unwrap();
        b.write(5000 + 4096, &[1]).unwrap();
        assert_ne!(hash(&a).unwrap(), hash(&b).unwrap());
        let mut free = PageSet::new(256);
        free.insert_range(1..3);
        assert_eq!((hash_ram(&a, &free).unwrap(), hash_ram(&b, &free).unwrap()), (0, 0));
    }
}
