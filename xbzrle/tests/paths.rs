//! Every path against the scalar one and the plain encoder, over random pages of several sizes.
#![allow(unsafe_code)] // live memory is reached through pointers

use proptest::prelude::*;
use xbzrle::{DecodeError, Outcome, Path, plain};

/// Changes to a page: (first byte, bytes, step, exclusive or).
type Edits = Vec<(u16, u16, u8, u8)>;

fn edits() -> impl Strategy<Value = Edits> {
    let bytes = prop_oneof![4 => Just(1_u16), 2 => 1..9_u16, 2 => 60..70_u16, 2 => 120..135_u16, 1 => 0..4096_u16];
    let step = prop_oneof![3 => Just(1_u8), 1 => 2..6_u8];
    let few = prop::collection::vec((0..4096_u16, bytes.clone(), step.clone(), 1..=255_u8), 0..8);
    let many = prop::collection::vec((0..4096_u16, bytes, step, 1..=255_u8), 0..200);
    prop_oneof![few, many]
}

fn pages<const N: usize>(edits: &Edits, fill: u8) -> ([u8; N], [u8; N]) {
    let old: [u8; N] = std::array::from_fn(|i| (i as u8).wrapping_mul(fill));
    let mut new = old;
    for &(first, bytes, step, change) in edits {
        let first = usize::from(first) % N;
        for byte in new[first..N.min(first + usize::from(bytes))].iter_mut().step_by(step.into()) {
            *byte ^= change;
        }
    }
    (old, new)
}

/// The page at an address that every path reads by vectors.
#[repr(align(64))]
struct Aligned<const N: usize>([u8; N]);

fn all_agree<const N: usize>(edits: &Edits, fill: u8) {
    let (old, new) = pages::<N>(edits, fill);
    let new = Aligned(new);
    let mut expected = [0; N];
    let outcome = Path::Scalar.encode(&old, &new.0, &mut expected);
    let mut plain_out = [0; N];
    let len = |outcome| match outcome {
        Outcome::Unchanged => 0,
        Outcome::Delta(len) => len,
        Outcome::TooLong => N,
    };
    assert!(len(outcome) <= len(plain::encode(&old, &new.0, &mut plain_out)));
    for path in Path::available() {
        let check = |found: Outcome, out: &[u8]| {
            assert_eq!(found, outcome, "{path} {N}");
            if let Outcome::Delta(len) = found {
                assert_eq!(out[..len], expected[..len], "{path} {N}");
                let mut page = old;
                path.decode(&out[..len], &mut page).unwrap();
                assert!(page == new.0, "{path} {N}");
            }
        };
        for room in [N, N + 40, 2 * N] {
            let mut out = vec![0; room];
            check(path.encode(&old, &new.0, &mut out), &out);
            let mut cached = old;
            // SAFETY: `new` is a page that nobody writes.
            check(unsafe { path.encode_live(&mut cached, new.0.as_ptr(), &mut out) }, &out);
            assert!(cached == new.0, "{path} {N}");
        }
        let mut copy = [0xaa; N];
        // SAFETY: `new` is a page that nobody writes.
        unsafe { path.copy_live(&mut copy, new.0.as_ptr()) };
        assert!(copy == new.0, "{path} {N}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn all_paths_write_what_the_scalar_path_writes(edits in edits(), fill in any::<u8>()) {
        all_agree::<4096>(&edits, fill);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pages_of_any_even_size_work(edits in edits(), fill in any::<u8>()) {
        all_agree::<2>(&edits, fill);
        all_agree::<62>(&edits, fill);
        all_agree::<64>(&edits, fill);
        all_agree::<130>(&edits, fill);
        all_agree::<1024>(&edits, fill);
        all_agree::<4098>(&edits, fill);
        all_agree::<8192>(&edits, fill);
        all_agree::<16382>(&edits, fill);
    }

    #[test]
    fn any_bytes_decode_alike_or_not_at_all(delta in prop::collection::vec(any::<u8>(), 0..300)) {
        let decode = |path: Path| -> (Result<(), DecodeError>, [u8; 4096]) {
            let mut page = [0x5a; 4096];
            (path.decode(&delta, &mut page), page)
        };
        let expected = decode(Path::Scalar);
        for path in Path::available() {
            let found = decode(path);
            prop_assert_eq!(found.0, expected.0);
            prop_assert!(found.0.is_err() || found.1 == expected.1);
        }
    }

    #[test]
    fn one_byte_is_enough_not_to_be_zero(len in 0..300_usize, skip in 0..64_usize, at in any::<prop::sample::Index>()) {
        let mut bytes = vec![0; skip + len];
        for path in Path::available() {
            prop_assert!(path.is_zero(&bytes[skip..]));
        }
        if len > 0 {
            bytes[skip + at.index(len)] = 0x80;
            for path in Path::available() {
                prop_assert!(!path.is_zero(&bytes[skip..]));
            }
        }
    }
}
