//! The plain encoder: every run as long as it can be. It writes the bytes that QEMU's encoder
//! writes, and is kept as a reference for tests and benchmarks.

use crate::format::{length, length_bytes};
use crate::outcome::Outcome;

/// The delta from `old` to `new` with maximal runs, byte for byte as QEMU 10's scalar encoder
/// writes it.
///
/// `out` has room for at least `N` bytes, of which at most `N` are used. QEMU gives up a little
/// before the room is used up: when a run starts with less than two bytes of room left. So does
/// this function, which is why a delta that would fit exactly can come out as [`Outcome::TooLong`].
///
/// # Panics
///
/// If `out` is shorter than the page.
pub fn encode<const N: usize>(old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
    const { crate::format::check_page_size::<N>() };
    let out = &mut out[..N];
    let (mut position, mut len) = (0, 0);
    while position < N {
        if len + 2 > N {
            return Outcome::TooLong;
        }
        let start = find(position, N, |i| old[i] != new[i]);
        if start == N {
            break;
        }
        len += put_length(&mut out[len..], start - position);
        if len + 2 > N {
            return Outcome::TooLong;
        }
        let end = find(start, N, |i| old[i] == new[i]);
        len += put_length(&mut out[len..], end - start);
        if len + (end - start) > N {
            return Outcome::TooLong;
        }
        out[len..len + end - start].copy_from_slice(&new[start..end]);
        len += end - start;
        position = end;
    }
    if len == 0 { Outcome::Unchanged } else { Outcome::Delta(len) }
}

fn find(from: usize, to: usize, wanted: impl Fn(usize) -> bool) -> usize {
    (from..to).find(|&i| wanted(i)).unwrap_or(to)
}

fn put_length(out: &mut [u8], run_bytes: usize) -> usize {
    let bytes = length_bytes(run_bytes);
    out[..bytes].copy_from_slice(&length(run_bytes)[..bytes]);
    bytes
}
