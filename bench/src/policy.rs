//! Which pages stay in a cache: ours, the peer's, and the one that needs to be told nothing.

use std::collections::{BTreeMap, HashMap};

use xbzrle::{Cache, PAGE_SIZE};

/// A page cache without pages.
pub trait Policy {
    /// A new round begins.
    fn begin_round(&mut self);

    /// Looks `page` up, and enters it if it is missing and may enter. Whether it was there.
    fn visit(&mut self, page: u64) -> bool;
}

/// Hits of a policy, and visits, over all rounds.
pub fn play(policy: &mut dyn Policy, rounds: &[Vec<u64>]) -> (usize, usize) {
    let (mut hits, mut visits) = (0, 0);
    for round in rounds {
        policy.begin_round();
        hits += round.iter().filter(|&&page| policy.visit(page)).count();
        visits += round.len();
    }
    (hits, visits)
}

/// [`xbzrle::Cache`] as a migration uses it. Its pages are never touched.
pub struct Ours(Cache);

impl Ours {
    /// # Panics
    /// If there is no address space for it.
    pub fn new(pages: usize) -> Ours {
        Ours(Cache::new((pages * PAGE_SIZE) as u64).expect("address space for a cache"))
    }
}

impl Policy for Ours {
    fn begin_round(&mut self) {
        self.0.begin_pass();
    }

    fn visit(&mut self, page: u64) -> bool {
        let hit = self.0.get(page).is_some();
        if !hit {
            self.0.admit(page);
        }
        hit
    }
}

/// The peer (QEMU 10): direct-mapped. A page of another address gives way only if it was not found
/// for two rounds.
pub struct Peer {
    /// Page and the round in which it was last found or entered; round 0 = empty.
    slots: Vec<(u64, u64)>,
    round: u64,
}

impl Peer {
    pub fn new(pages: usize) -> Peer {
        Peer { slots: vec![(0, 0); pages], round: 0 }
    }
}

impl Policy for Peer {
    fn begin_round(&mut self) {
        self.round += 1;
    }

    fn visit(&mut self, page: u64) -> bool {
        let slot = (page % self.slots.len() as u64) as usize;
        let (held, age) = &mut self.slots[slot];
        let (empty, hit) = (*age == 0, *held == page && *age != 0);
        if hit {
            *age = self.round;
        } else if empty || *age + 2 <= self.round {
            (*held, *age) = (page, self.round);
        }
        hit
    }
}

/// Least recently used over the whole cache.
pub struct Lru {
    pages: usize,
    now: u64,
    used: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
}

impl Lru {
    pub fn new(pages: usize) -> Lru {
        Lru { pages, now: 0, used: HashMap::new(), by_use: BTreeMap::new() }
    }
}

impl Policy for Lru {
    fn begin_round(&mut self) {}

    fn visit(&mut self, page: u64) -> bool {
        self.now += 1;
        let before = self.used.insert(page, self.now);
        if let Some(before) = before {
            self.by_use.remove(&before);
        } else if self.by_use.len() == self.pages
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used.remove(&oldest);
        }
        self.by_use.insert(self.now, page);
        before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{synthetic, trace::Trace};

    fn rate(policy: &mut dyn Policy, rounds: &[Vec<u64>]) -> f64 {
        let (hits, visits) = play(policy, rounds);
        hits as f64 * 100.0 / visits as f64
    }

    /// The promises of the cache, at every second size.
    #[test]
    fn no_trace_is_two_points_below_lru_and_skewed_ones_are_above_the_peer() {
        let mut traces: Vec<(String, Vec<Vec<u64>>)> =
            synthetic::all().into_iter().map(|(name, rounds)| (name.to_string(), rounds)).collect();
        traces.extend(
            Trace::kept().unwrap().into_iter().map(|(name, trace)| (name, trace.numbers())),
        );
        for (name, rounds) in traces {
            for mib in [1, 4, 16, 64, 256] {
                let pages = mib << 8;
                let (ours, lru) =
                    (rate(&mut Ours::new(pages), &rounds), rate(&mut Lru::new(pages), &rounds));
                assert!(ours > lru - 2.0, "{name}, {mib} MiB: {ours:.1} % against {lru:.1} %");
                if !matches!(&*name, "sweep" | "hot-set" | "random") {
                    let peer = rate(&mut Peer::new(pages), &rounds);
                    assert!(
                        ours > peer || ours == lru,
                        "{name}, {mib} MiB: {ours:.1} % against {peer:.1} %"
                    );
                }
            }
        }
    }

    #[test]
    fn the_peer_keeps_a_page_for_two_rounds() {
        let mut peer = Peer::new(4);
        let rounds = [vec![1], vec![5], vec![1, 5], vec![5], vec![5], vec![5]].map(|round| {
            peer.begin_round();
            round.into_iter().map(|page| peer.visit(page)).collect::<Vec<_>>()
        });
        assert_eq!(
            rounds,
            [vec![false], vec![false], vec![true, false], vec![false], vec![false], vec![true]]
        );
    }

    #[test]
    fn lru_drops_the_oldest() {
        let mut lru = Lru::new(2);
        let hits: Vec<bool> = [1, 2, 1, 3, 2, 1].into_iter().map(|page| lru.visit(page)).collect();
        assert_eq!(hits, [false, false, true, false, false, false]);
    }
}
