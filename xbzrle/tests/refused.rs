//! What the decoder refuses, and what it takes though no encoder writes it: QEMU's rules, on every
//! path.

use xbzrle::{DecodeError, PAGE_SIZE, Path};

fn decode(path: Path, delta: &[u8]) -> Result<[u8; PAGE_SIZE], DecodeError> {
    let mut page = [0; PAGE_SIZE];
    path.decode(delta, &mut page).map(|()| page)
}

/// A gap, a run that fills the page to its end or `over` bytes past it, and its bytes.
fn to_the_end(gap: usize, over: usize) -> Vec<u8> {
    let run = PAGE_SIZE - gap + over;
    let mut delta = vec![
        (gap & 0x7f) as u8 | 0x80,
        (gap >> 7) as u8,
        (run & 0x7f) as u8 | 0x80,
        (run >> 7) as u8,
    ];
    delta.resize(4 + run, 7);
    delta
}

#[test]
fn what_qemu_refuses_is_refused_with_the_place() {
    use DecodeError::*;
    let page_bytes = PAGE_SIZE;
    let cases: Vec<(&str, Vec<u8>, DecodeError)> = vec![
        ("one byte", vec![5], Truncated { offset: 0 }),
        ("half a length", vec![0x85], Truncated { offset: 0 }),
        ("a gap alone", vec![5, 1], Truncated { offset: 1 }),
        ("a long gap alone", vec![0x85, 1], Truncated { offset: 2 }),
        ("a gap after the last run", vec![5, 1, 9, 4], Truncated { offset: 3 }),
        ("an empty run", vec![5, 0, 9, 9], EmptyRun { offset: 1 }),
        ("an empty run in two bytes", vec![5, 0x80, 0, 9], EmptyRun { offset: 1 }),
        ("an empty gap after a run", vec![5, 1, 9, 0, 1, 9], EmptyRun { offset: 3 }),
        ("an empty gap in two bytes", vec![5, 1, 9, 0x80, 0, 1, 9], EmptyRun { offset: 3 }),
        ("a gap of more than 14 bits", vec![0x80, 0x80, 1, 9], LengthPast14Bits { offset: 0 }),
        ("a run of more than 14 bits", vec![5, 0x81, 0x80, 9], LengthPast14Bits { offset: 1 }),
        (
            "a run past the delta",
            vec![5, 2, 9],
            RunPastDelta { offset: 1, run_bytes: 2, delta_bytes: 3 },
        ),
        (
            "a gap past the page",
            vec![0x81, 0x20, 1, 9],
            RunPastPage { offset: 0, run_bytes: 4097, position: 0, page_bytes },
        ),
        (
            "a gap of the page",
            vec![0x80, 0x20, 1, 9],
            RunPastPage { offset: 2, run_bytes: 1, position: 4096, page_bytes },
        ),
        (
            "a run past the page",
            to_the_end(4000, 1),
            RunPastPage { offset: 2, run_bytes: 97, position: 4000, page_bytes },
        ),
        ("too long", vec![0; 4097], TooLong { delta_bytes: 4097, page_bytes }),
    ];
    for (name, delta, error) in cases {
        for path in Path::available() {
            assert_eq!(decode(path, &delta), Err(error), "{path}: {name}");
            if let Some(filler) = 4000_usize.checked_sub(delta.len()) {
                // The same with more behind it, where a path may do without care for the end.
                let longer = [delta.as_slice(), &vec![1; filler]].concat();
                let found = decode(path, &longer);
                assert_eq!(found, decode(Path::Scalar, &longer), "{path}: {name}, and more");
            }
        }
    }
}

#[test]
fn what_qemu_takes_is_taken() {
    let cases: Vec<(&str, Vec<u8>, usize)> = vec![
        ("nothing", vec![], 0),
        ("a first gap of zero", vec![0, 1, 7], 1),
        ("a first gap of zero in two bytes", vec![0x80, 0, 1, 7], 1),
        ("short lengths in two bytes", vec![0x85, 0, 0x82, 0, 7, 7], 2),
        ("a run to the end", to_the_end(4000, 0), 96),
        ("as long as the page", to_the_end(4, 0), 4092),
        ("no gap to speak of", [[1, 1, 7]; 1000].concat(), 1000),
    ];
    for (name, delta, sevens) in cases {
        for path in Path::available() {
            let page =
                decode(path, &delta).unwrap_or_else(|error| panic!("{path}: {name}: {error}"));
            assert_eq!(page.iter().filter(|&&byte| byte == 7).count(), sevens, "{path}: {name}");
        }
    }
}

#[test]
fn errors_read_differently() {
    let texts = [
        decode(Path::Scalar, &[5]),
        decode(Path::Scalar, &[5, 0, 9]),
        decode(Path::Scalar, &[0x80, 0x80, 1]),
        decode(Path::Scalar, &[5, 2, 9]),
        decode(Path::Scalar, &to_the_end(4000, 1)),
        decode(Path::Scalar, &[0; 4097]),
    ]
    .map(|result| result.unwrap_err().to_string());
    for (i, text) in texts.iter().enumerate() {
        assert!(!texts[..i].contains(text), "{text}");
    }
    assert_eq!(texts[3], "changed run of 2 bytes at delta offset 1 ends past the 3-byte delta");
}
