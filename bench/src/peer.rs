//! A model of the peer, QEMU 10, for comparison in the same run: what it does with a page on a CPU
//! without AVX-512, where its encoder is scalar ([`peer512`](crate::peer512) is the other one).
//! Written from a description of the method:
//!
//! 1. copy the guest page to a scratch page;
//! 2. encode scratch against the cached page, with maximal runs: eight bytes at a time while they
//!    are equal, or while all eight differ; byte by byte up to the end of a run;
//! 3. if it changed, copy scratch over the cached page.
//!
//! The decoder reads a length, a length, and copies the run, one after the other.

use xbzrle::{DecodeError, Outcome, PAGE_SIZE, plain};

use crate::region::Page;

/// Encodes the page at `live` against `cached`, and brings `cached` up to date.
pub fn encode(cached: &mut Page, live: &Page, scratch: &mut Page, out: &mut Page) -> Outcome {
    encode_with(encode_still, cached, live, scratch, out)
}

/// As [`encode`], with another encoder of two pages that stay as they are.
pub(crate) fn encode_with(
    encode_still: impl FnOnce(&Page, &Page, &mut Page) -> Outcome,
    cached: &mut Page,
    live: &Page,
    scratch: &mut Page,
    out: &mut Page,
) -> Outcome {
    scratch.copy_from_slice(std::hint::black_box(live));
    let outcome = encode_still(cached, scratch, out);
    if outcome != Outcome::Unchanged {
        cached.copy_from_slice(scratch);
    }
    outcome
}

fn encode_still(old: &Page, new: &Page, out: &mut Page) -> Outcome {
    let (mut position, mut len) = (0, 0);
    while position < PAGE_SIZE {
        if len + 2 > PAGE_SIZE {
            return Outcome::TooLong;
        }
        let start = equal_until(old, new, position);
        if start == PAGE_SIZE {
            break;
        }
        len += put_length(&mut out[len..], start - position);
        if len + 2 > PAGE_SIZE {
            return Outcome::TooLong;
        }
        let end = different_until(old, new, start);
        let run = end - start;
        len += put_length(&mut out[len..], run);
        if len + run > PAGE_SIZE {
            return Outcome::TooLong;
        }
        out[len..len + run].copy_from_slice(&new[start..end]);
        len += run;
        position = end;
    }
    if len == 0 { Outcome::Unchanged } else { Outcome::Delta(len) }
}

fn equal_until(old: &Page, new: &Page, from: usize) -> usize {
    let mut i = from;
    while !i.is_multiple_of(8) {
        if old[i] != new[i] {
            return i;
        }
        i += 1;
    }
    while i < PAGE_SIZE && word(old, i) == word(new, i) {
        i += 8;
    }
    while i < PAGE_SIZE && old[i] == new[i] {
        i += 1;
    }
    i
}

fn different_until(old: &Page, new: &Page, from: usize) -> usize {
    let mut i = from;
    while !i.is_multiple_of(8) {
        if old[i] == new[i] {
            return i;
        }
        i += 1;
    }
    while i < PAGE_SIZE && !has_zero_byte(word(old, i) ^ word(new, i)) {
        i += 8;
    }
    while i < PAGE_SIZE && old[i] != new[i] {
        i += 1;
    }
    i
}

fn word(page: &Page, at: usize) -> u64 {
    page[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn has_zero_byte(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    word.wrapping_sub(ONES) & !word & ONES << 7 != 0
}

pub(crate) fn put_length(out: &mut [u8], run: usize) -> usize {
    if run < 128 {
        out[0] = run as u8;
        1
    } else {
        out[0] = (run & 0x7f) as u8 | 0x80;
        out[1] = (run >> 7) as u8;
        2
    }
}

/// Applies `delta` to `page`.
pub fn decode(delta: &[u8], page: &mut Page) -> Result<(), DecodeError> {
    let (mut offset, mut position) = (0, 0);
    while offset < delta.len() {
        let (gap, gap_bytes) = length(delta, offset)?;
        if gap == 0 && offset != 0 {
            return Err(DecodeError::EmptyRun { offset });
        }
        position += gap;
        if position > PAGE_SIZE {
            return Err(DecodeError::RunPastPage {
                offset,
                run_bytes: gap,
                position,
                page_bytes: PAGE_SIZE,
            });
        }
        offset += gap_bytes;
        let (run, run_bytes) = length(delta, offset)?;
        if run == 0 {
            return Err(DecodeError::EmptyRun { offset });
        }
        offset += run_bytes;
        if position + run > PAGE_SIZE || offset + run > delta.len() {
            return Err(DecodeError::RunPastPage {
                offset,
                run_bytes: run,
                position,
                page_bytes: PAGE_SIZE,
            });
        }
        page[position..position + run].copy_from_slice(&delta[offset..offset + run]);
        position += run;
        offset += run;
    }
    Ok(())
}

fn length(delta: &[u8], offset: usize) -> Result<(usize, usize), DecodeError> {
    match delta.get(offset..offset + 2) {
        None => Err(DecodeError::Truncated { offset }),
        Some(&[low, _]) if low < 128 => Ok((low.into(), 1)),
        Some(&[low, high]) if high < 128 => {
            Ok((usize::from(low & 0x7f) | usize::from(high) << 7, 2))
        }
        Some(_) => Err(DecodeError::LengthPast14Bits { offset }),
    }
}

/// Whether the model writes what the plain encoder of the codec crate writes, which reproduces
/// recorded deltas.
pub fn agrees_with_plain(old: &Page, new: &Page) -> bool {
    let (mut model, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    let outcome = encode_still(old, new, &mut model);
    let same = outcome == plain::encode(old, new, &mut expected);
    match outcome {
        Outcome::Delta(len) => same && model[..len] == expected[..len],
        _ => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::Pattern;

    #[test]
    fn the_model_writes_and_reads_what_the_peer_does() {
        for pattern in Pattern::ALL {
            let (mut old, mut new) = (vec![[0; PAGE_SIZE]; 20], vec![[0; PAGE_SIZE]; 20]);
            pattern.fill(&mut old, &mut new);
            for (old, new) in old.iter().zip(&new) {
                assert!(agrees_with_plain(old, new), "{}", pattern.name());
                let mut out = [0; PAGE_SIZE];
                if let Outcome::Delta(len) = encode_still(old, new, &mut out) {
                    let mut page = *old;
                    decode(&out[..len], &mut page).unwrap();
                    assert!(page == *new, "{}", pattern.name());
                }
            }
        }
    }
}
