//! A model of the peer, QEMU 10, on a CPU with AVX-512BW: as [`peer`](crate::peer), except that it
//! compares 64 bytes at a time and walks over the mask of equal ones. Blocks that are all equal or
//! all different are stepped over whole; runs are maximal, and copied one by one. For orientation:
//! what is promised is measured against `peer`.
//!
//! Unsafe, for vector loads and for code that only some CPUs run.
#![allow(unsafe_code)]

use std::arch::x86_64::{_mm512_cmpeq_epi8_mask, _mm512_loadu_si512};

use xbzrle::{Outcome, PAGE_SIZE};

use crate::peer::{encode_with, put_length};
use crate::region::Page;

/// Proof that this CPU runs the model.
#[derive(Clone, Copy, Debug)]
pub struct Peer512(());

impl Peer512 {
    /// The proof, if the CPU gives it.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("bmi1"))
            .then_some(Self(()))
    }

    /// Encodes the page at `live` against `cached`, and brings `cached` up to date.
    pub fn encode(
        self,
        cached: &mut Page,
        live: &Page,
        scratch: &mut Page,
        out: &mut Page,
    ) -> Outcome {
        encode_with(|old, new, out| self.encode_still(old, new, out), cached, live, scratch, out)
    }

    fn encode_still(self, old: &Page, new: &Page, out: &mut Page) -> Outcome {
        // SAFETY: `self` exists, so the CPU has what the function is compiled for.
        let len = unsafe { encode_still(old, new, out) };
        match len {
            None => Outcome::TooLong,
            Some(0) => Outcome::Unchanged,
            Some(len) => Outcome::Delta(len),
        }
    }
}

/// The length of the delta; nothing if it does not fit.
#[target_feature(enable = "avx512bw,bmi1")]
fn encode_still(old: &Page, new: &Page, out: &mut Page) -> Option<usize> {
    let (mut len, mut gap, mut run) = (0, 0, 0);
    for (block, (old, bytes)) in
        old.as_chunks::<64>().0.iter().zip(new.as_chunks::<64>().0).enumerate()
    {
        // SAFETY: 64 bytes are read from each.
        let (old, bytes) = unsafe {
            (_mm512_loadu_si512(old.as_ptr().cast()), _mm512_loadu_si512(bytes.as_ptr().cast()))
        };
        let equal = _mm512_cmpeq_epi8_mask(old, bytes);
        let mut at = 0;
        while at < 64 {
            let position = block * 64 + at;
            let ahead = equal >> at;
            let same = ahead & 1 == 1;
            let count = (if same { ahead.trailing_ones() } else { ahead.trailing_zeros() }
                as usize)
                .min(64 - at);
            if same {
                if run > 0 {
                    len = put_run(new, position - run, run, out, len)?;
                    run = 0;
                }
                gap += count;
            } else {
                if run == 0 {
                    len = put_gap(gap, out, len)?;
                    gap = 0;
                }
                run += count;
            }
            at += count;
        }
    }
    if run > 0 { put_run(new, PAGE_SIZE - run, run, out, len) } else { Some(len) }
}

/// The length of the delta with a gap added; nothing if it does not fit.
fn put_gap(gap: usize, out: &mut Page, len: usize) -> Option<usize> {
    (len + 2 <= PAGE_SIZE).then(|| len + put_length(&mut out[len..], gap))
}

/// The length of the delta with a run added; nothing if it does not fit.
fn put_run(new: &Page, start: usize, run: usize, out: &mut Page, len: usize) -> Option<usize> {
    if len + 2 > PAGE_SIZE {
        return None;
    }
    let bytes_at = len + put_length(&mut out[len..], run);
    let to = out.get_mut(bytes_at..bytes_at + run)?;
    to.copy_from_slice(&new[start..start + run]);
    Some(bytes_at + run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::Pattern;

    #[test]
    fn the_model_writes_what_the_peer_does() {
        let Some(peer) = Peer512::detect() else {
            return eprintln!("not run: this CPU has no AVX-512BW");
        };
        for pattern in Pattern::ALL {
            let (mut old, mut new) = (vec![[0; PAGE_SIZE]; 20], vec![[0; PAGE_SIZE]; 20]);
            pattern.fill(&mut old, &mut new);
            for (old, new) in old.iter().zip(&new) {
                let (mut out, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
                let outcome = peer.encode_still(old, new, &mut out);
                assert_eq!(
                    outcome,
                    xbzrle::plain::encode(old, new, &mut expected),
                    "{}",
                    pattern.name()
                );
                if let Outcome::Delta(len) = outcome {
                    assert!(out[..len] == expected[..len], "{}", pattern.name());
                }
            }
        }
    }
}
