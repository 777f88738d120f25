//! Pages looked at twice.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::memory::{Error, GuestRam, PAGE_BYTES};
use crate::pages;

/// A random sample of pages, each with what it held.
pub(super) struct Sample(Vec<(u64, u64)>);

impl Sample {
    /// Looks at `per_gib` pages of each GiB, or part of one. One page of each of as many equal
    /// parts is looked at, so that no part of memory is missed by chance. Holes stay holes.
    pub(super) fn take(ram: &GuestRam, per_gib: u64) -> Result<Sample, Error> {
        let pages = ram.main().pages();
        let count = (per_gib * ram.bytes().div_ceil(1 << 30)).min(pages);
        let mut random = Random::new();
        let place = |part: u64| {
            let (start, end) = (pages * part / count, pages * (part + 1) / count);
            start + random.below(end - start)
        };
        let places: Vec<u64> = (0..count).map(place).collect();
        let look = |page| Ok((page, look_at(ram, page)?));
        places.into_iter().map(look).collect::<Result<_, Error>>().map(Sample)
    }

    /// The share of them that is not as it was, from 0 to 1.
    pub(super) fn changed(&self, ram: &GuestRam) -> Result<f64, Error> {
        let mut changed = 0;
        for &(page, before) in &self.0 {
            changed += u64::from(look_at(ram, page)? != before);
        }
        Ok(changed as f64 / self.0.len().max(1) as f64)
    }
}

/// A hash of what page `page` of the main block holds.
fn look_at(ram: &GuestRam, page: u64) -> Result<u64, Error> {
    let offset = page * PAGE_BYTES;
    let mut regions = ram.main().regions().iter();
    let region = regions.find(|r| (r.offset..r.offset + r.bytes).contains(&offset));
    let mut bytes = [0; PAGE_BYTES as usize];
    if let Some(region) = region {
        pages::read(ram, region.gpa + (offset - region.offset), &mut bytes)?;
    }
    Ok(pages::hash_page(page, &bytes))
}

/// xorshift64*: where it looks has to be no secret, but not the guest's to foresee.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let mut seed = [0; 8];
        // Without entropy any seed does.
        let _ = getrandom(&mut seed, GetRandomFlags::NONBLOCK);
        Random(u64::from_ne_bytes(seed) | 1)
    }

    /// `bound` is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(word) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::for_tests;

    #[test]
    fn what_differs_is_counted_and_holes_stay() {
        let ram = for_tests(8 << 20);
        ram.write(0, &vec![1; 1 << 20]).unwrap();
        let sample = Sample::take(&ram, 512).unwrap();
        assert_eq!(sample.0.len(), 512);
        assert!(sample.0.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(sample.changed(&ram).unwrap(), 0.0);
        let mut known = 0..0;
        let mut data = 0;
        ram.main().data_in(0..8 << 20, &mut known, |part| data += part.end - part.start).unwrap();
        assert_eq!(data, 1 << 20, "nothing was made by looking");
        // A quarter of all pages, in the middle.
        ram.write(3 << 20, &vec![2; 2 << 20]).unwrap();
        assert_eq!(sample.changed(&ram).unwrap(), 0.25);
    }
}
