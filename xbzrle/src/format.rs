//! Run lengths on the wire, and the rule that joins two changed runs into one.

/// The longest run that a length of 14 bits can name.
pub(crate) const RUN_BYTES_MAX: usize = (1 << 14) - 1;

/// The longest page that can be encoded: one changed run may cover all of it, and it is even.
pub const PAGE_BYTES_MAX: usize = RUN_BYTES_MAX - 1;

/// Refuses, when the program is compiled, a page size that the format or the encoder cannot serve.
pub(crate) const fn check_page_size<const N: usize>() {
    assert!(
        N > 0 && N.is_multiple_of(2) && N <= PAGE_BYTES_MAX,
        "a page has an even size of 2 to 16382 bytes"
    );
}

/// Bytes that the length `run_bytes` takes on the wire: one below 128, else two.
pub(crate) const fn length_bytes(run_bytes: usize) -> usize {
    if run_bytes < 128 { 1 } else { 2 }
}

/// The length `run_bytes` as it stands on the wire, in the first [`length_bytes`] bytes.
pub(crate) const fn length(run_bytes: usize) -> [u8; 2] {
    debug_assert!(run_bytes <= RUN_BYTES_MAX);
    if run_bytes < 128 {
        [run_bytes as u8, 0]
    } else {
        [(run_bytes & 0x7f) as u8 | 0x80, (run_bytes >> 7) as u8]
    }
}

/// Whether a changed run of `so_far` bytes, a gap of `gap` equal bytes and a changed run of `next`
/// bytes cost no more as one changed run than as two.
///
/// One run carries the gap's bytes and one length; two runs carry the gap's length and two of their
/// own. Equal cost joins them, because fewer runs are decoded faster. Joining every gap of one or
/// two bytes would be simpler and can be longer: where the joined run reaches 128 bytes, its length
/// takes a second byte.
pub(crate) const fn join_pays(so_far: usize, gap: usize, next: usize) -> bool {
    gap + length_bytes(so_far + gap + next)
        <= length_bytes(gap) + length_bytes(so_far) + length_bytes(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_up_to_two_join_unless_the_length_grows() {
        for (so_far, gap, next, joins) in [
            (1, 1, 1, true),
            (1, 2, 1, true),
            (1, 3, 1, false),
            (63, 2, 62, true),
            (63, 2, 63, false),
            (63, 1, 64, true),
            (128, 2, 1, true),
            (1, 2, 128, true),
            (128, 3, 127, false),
            (127, 3, 128, false),
            (128, 3, 128, true),
            (128, 4, 128, false),
            (1000, 128, 1000, false),
        ] {
            assert_eq!(join_pays(so_far, gap, next), joins, "{so_far} {gap} {next}");
        }
    }

    #[test]
    fn no_gap_longer_than_three_ever_joins() {
        for so_far in [1, 126, 127, 128, 4000] {
            for next in [1, 126, 127, 128, 4000] {
                for gap in 4..300 {
                    assert!(!join_pays(so_far, gap, next));
                }
            }
        }
    }
}
