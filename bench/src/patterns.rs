//! How a page changes between two sendings, in the ways that the codec is measured with.

use std::sync::OnceLock;

use crate::random::Random;
use crate::region::Page;

/// The seed of all patterns; page `i` has its own, made from this one and `i`.
pub const SEED: u64 = 0x676f_6477_6974;

/// Pages of a busy guest before and after some 0.7 s, recorded by `tools/lab/run pages`: pairs of
/// 4096 bytes each, as one zstd frame.
const GUEST_PAGES: &[u8] = include_bytes!("../traces/debian-6.12.pages");

/// What happens to a page of random bytes, or to pages of a guest. Each page changes independently
/// of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    Unchanged,
    /// One bit of one random byte flips.
    OneByte,
    /// One aligned `u64` is incremented.
    OneCounter,
    /// 16 random aligned `u64` get random values.
    SixteenWords,
    /// 64 random bytes get other values; a byte may be chosen twice.
    SixtyFourBytes,
    /// One aligned run of 1 KiB gets random values, some of which are the old ones.
    OneKibBlock,
    EveryOtherByte,
    AllChanged,
    /// Pages of a Debian guest whose files, processes and pipes are busy, 320 in turn.
    GuestPages,
}

impl Pattern {
    pub const ALL: [Pattern; 9] = [
        Pattern::Unchanged,
        Pattern::OneByte,
        Pattern::OneCounter,
        Pattern::SixteenWords,
        Pattern::SixtyFourBytes,
        Pattern::OneKibBlock,
        Pattern::EveryOtherByte,
        Pattern::AllChanged,
        Pattern::GuestPages,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Pattern::Unchanged => "unchanged",
            Pattern::OneByte => "one-byte",
            Pattern::OneCounter => "one-counter",
            Pattern::SixteenWords => "16-words",
            Pattern::SixtyFourBytes => "64-bytes",
            Pattern::OneKibBlock => "1KiB-block",
            Pattern::EveryOtherByte => "every-other-byte",
            Pattern::AllChanged => "all-changed",
            Pattern::GuestPages => "guest-pages",
        }
    }

    /// Fills `old` with pages, random ones but for the guest's, and `new` with the same pages after
    /// the change.
    pub fn fill(self, old: &mut [Page], new: &mut [Page]) {
        if self == Pattern::GuestPages {
            for ((old, new), pair) in old.iter_mut().zip(new).zip(guest_pages().iter().cycle()) {
                (*old, *new) = *pair;
            }
            return;
        }
        for (i, (old, new)) in old.iter_mut().zip(new).enumerate() {
            let mut random = Random::new(SEED ^ (i as u64) << 32);
            fill(old, &mut random);
            new.copy_from_slice(old);
            self.change(new, &mut random);
        }
    }

    fn change(self, page: &mut Page, random: &mut Random) {
        match self {
            Pattern::Unchanged | Pattern::GuestPages => {}
            Pattern::OneByte => page[below(random, 4096)] ^= 1 << below(random, 8),
            Pattern::OneCounter => {
                let word = &mut page.as_chunks_mut::<8>().0[below(random, 512)];
                *word = u64::from_le_bytes(*word).wrapping_add(1).to_le_bytes();
            }
            Pattern::SixteenWords => {
                for _ in 0..16 {
                    page.as_chunks_mut::<8>().0[below(random, 512)] = random.next().to_le_bytes();
                }
            }
            Pattern::SixtyFourBytes => {
                for _ in 0..64 {
                    page[below(random, 4096)] ^= 1 + below(random, 255) as u8;
                }
            }
            Pattern::OneKibBlock => {
                let first = below(random, 4) * 1024;
                fill(&mut page[first..first + 1024], random);
            }
            Pattern::EveryOtherByte => page.iter_mut().step_by(2).for_each(|byte| *byte ^= 0xff),
            Pattern::AllChanged => {
                page.iter_mut().for_each(|byte| *byte ^= 1 + below(random, 255) as u8)
            }
        }
    }
}

/// The recorded pages, before and after.
fn guest_pages() -> &'static [(Page, Page)] {
    static PAIRS: OnceLock<Vec<(Page, Page)>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let bytes = zstd::decode_all(GUEST_PAGES).expect("the file is part of the crate");
        bytes.as_chunks().0.as_chunks::<2>().0.iter().map(|[old, new]| (*old, *new)).collect()
    })
}

/// Fills `bytes`, whose number is a multiple of eight.
fn fill(bytes: &mut [u8], random: &mut Random) {
    bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = random.next().to_le_bytes());
}

fn below(random: &mut Random, limit: usize) -> usize {
    random.below(limit as u64) as usize
}
