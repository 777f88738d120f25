//! The definition: what a delta of two pages is. The vector paths are faster spellings of this
//! file, and are compared with it byte for byte.
//!
//! ```text
//! changed runs are taken from left to right;
//! a run takes in the gap and the run after it as long as join_pays(run so far, gap, next run);
//! each run is written as the length of the gap before it, its own length, its bytes;
//! the delta is too long when it would be longer than the page.
//! ```

use crate::format::{join_pays, length, length_bytes};
use crate::mask::Mask;
use crate::outcome::Outcome;

pub(crate) fn encode<const N: usize>(old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
    encode_changed(&compare(old, new), new, out)
}

/// Writes the delta that brings the bytes marked in `changed` to what they are in `new`.
pub(crate) fn encode_changed<const N: usize>(
    changed: &Mask<N>,
    new: &[u8; N],
    out: &mut [u8],
) -> Outcome {
    let Some(mut start) = changed.next_changed(0) else { return Outcome::Unchanged };
    let mut delta = Delta { out: &mut out[..N], len: 0 };
    let mut gap_from = 0;
    loop {
        let mut end = changed.run_end(start);
        let next = loop {
            let Some(next) = changed.next_changed(end) else { break None };
            let next_end = changed.run_end(next);
            if !join_pays(end - start, next - end, next_end - next) {
                break Some(next);
            }
            end = next_end;
        };
        if delta.push(start - gap_from, &new[start..end]).is_none() {
            return Outcome::TooLong;
        }
        gap_from = end;
        match next {
            Some(next) => start = next,
            None => return Outcome::Delta(delta.len),
        }
    }
}

fn compare<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Mask<N> {
    let mut changed = Mask::unchanged();
    let (old, old_tail) = old.as_chunks::<8>();
    let (new, new_tail) = new.as_chunks::<8>();
    for (i, (old, new)) in old.iter().zip(new).enumerate() {
        changed.mark_nonzero(i * 8, u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new));
    }
    for (i, (old, new)) in old_tail.iter().zip(new_tail).enumerate() {
        changed.mark_nonzero(N / 8 * 8 + i, u64::from(old ^ new));
    }
    changed
}

/// A delta being written, never longer than `out`.
pub(crate) struct Delta<'a> {
    pub(crate) out: &'a mut [u8],
    pub(crate) len: usize,
}

impl Delta<'_> {
    /// Adds a gap of `gap` unchanged bytes and a run of changed bytes, or nothing if they do not
    /// fit.
    pub(crate) fn push(&mut self, gap: usize, run: &[u8]) -> Option<()> {
        let end = self.len + length_bytes(gap) + length_bytes(run.len()) + run.len();
        if end > self.out.len() {
            return None;
        }
        self.push_length(gap);
        self.push_length(run.len());
        self.out[self.len..end].copy_from_slice(run);
        self.len = end;
        Some(())
    }

    fn push_length(&mut self, run_bytes: usize) {
        let bytes = length_bytes(run_bytes);
        self.out[self.len..self.len + bytes].copy_from_slice(&length(run_bytes)[..bytes]);
        self.len += bytes;
    }
}
