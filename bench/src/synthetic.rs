//! Page traces from a rule: which pages a guest dirties in each round of a migration.
//!
//! A round is the set of pages dirtied since the last one, in ascending order, as the migration
//! thread meets them.

use crate::random::Random;

/// Pages of the guest: 1 GiB.
pub const GUEST_PAGES: u64 = 1 << 18;

/// Rounds of each trace.
const ROUNDS: u64 = 24;

/// The pages of each round, ascending.
pub type Rounds = Vec<Vec<u64>>;

/// Every synthetic trace with its name.
pub fn all() -> Vec<(&'static str, Rounds)> {
    vec![("sweep", sweep()), ("hot-set", hot_set()), ("zipf", zipf()), ("random", random())]
}

/// A guest that writes one range of 160 MiB from end to end again and again, 64 MiB a round.
pub fn sweep() -> Rounds {
    let (range, step) = (160 << 8, 64 << 8);
    (0..ROUNDS).map(|round| sorted((0..step).map(|page| (round * step + page) % range))).collect()
}

/// Nine of ten writes go to 48 MiB, in runs of 16 pages that lie anywhere; the others anywhere.
pub fn hot_set() -> Rounds {
    const RUN: u64 = 16;
    let mut random = Random::new(1);
    let runs: Vec<u64> =
        (0..(48 << 8) / RUN).map(|_| random.below(GUEST_PAGES / RUN) * RUN).collect();
    let mut page = || match random.below(10) {
        0 => random.below(GUEST_PAGES),
        _ => runs[random.below(runs.len() as u64) as usize] + random.below(RUN),
    };
    (0..ROUNDS).map(|_| sorted((0..20_000).map(|_| page()))).collect()
}

/// Page popularity by Zipf's law with exponent 0.99; the popular pages lie anywhere.
pub fn zipf() -> Rounds {
    let mut random = Random::new(2);
    let mut total = 0.0;
    let shares: Vec<f64> = (1..=GUEST_PAGES)
        .map(|rank| {
            total += (rank as f64).powf(-0.99);
            total
        })
        .collect();
    let mut page = || {
        let drawn = random.unit() * total;
        let rank = shares.partition_point(|&share| share < drawn) as u64;
        // An odd multiplier permutes the pages of a guest that has a power of two of them.
        rank.wrapping_mul(0x9e37_79b1) % GUEST_PAGES
    };
    (0..ROUNDS).map(|_| sorted((0..40_000).map(|_| page()))).collect()
}

/// Writes anywhere in 256 MiB.
pub fn random() -> Rounds {
    let mut random = Random::new(3);
    (0..ROUNDS).map(|_| sorted((0..16_000).map(|_| random.below(GUEST_PAGES / 4)))).collect()
}

fn sorted(pages: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut pages: Vec<u64> = pages.collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}
