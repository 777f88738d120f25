//! One table of cases, run by name on every path.

use xbzrle::{Outcome, PAGE_SIZE, Path, plain};

type Page = [u8; PAGE_SIZE];

struct Case {
    name: &'static str,
    /// Runs of changed bytes, as (first, count).
    changed: Vec<(usize, usize)>,
    /// The outcome on every path, and of the plain encoder.
    outcome: Outcome,
    plain: Outcome,
}

fn cases() -> Vec<Case> {
    use Outcome::{Delta, TooLong, Unchanged};
    let case = |name, changed: &[(usize, usize)], outcome, plain| Case {
        name,
        changed: changed.to_vec(),
        outcome,
        plain,
    };
    let every = |step: usize| (0..PAGE_SIZE).step_by(step).map(|i| (i, 1)).collect::<Vec<_>>();
    let runs = |count: usize, first: usize, step: usize, bytes| {
        (0..count).map(|i| (first + i * step, bytes)).collect::<Vec<_>>()
    };
    let mut tenth_longer = runs(20, 0, 100, 32);
    tenth_longer[9].1 = 33;
    let to_the_end = [runs(100, 96, 40, 1), vec![(4095, 1)]].concat();
    vec![
        case("nothing", &[], Unchanged, Unchanged),
        case("first byte", &[(0, 1)], Delta(3), Delta(3)),
        case("last byte", &[(4095, 1)], Delta(4), Delta(4)),
        case("first and last byte", &[(0, 1), (4095, 1)], Delta(7), Delta(7)),
        case("gap of one joins", &[(10, 1), (12, 1)], Delta(5), Delta(6)),
        case("gap of two joins at equal cost", &[(10, 1), (13, 1)], Delta(6), Delta(6)),
        case("gap of three stays", &[(10, 1), (14, 1)], Delta(6), Delta(6)),
        case(
            "gap of two before byte 128 of a run stays",
            &[(0, 63), (65, 63)],
            Delta(130),
            Delta(130),
        ),
        case("gap of two that ends at 127 joins", &[(0, 63), (65, 62)], Delta(129), Delta(129)),
        case(
            "gap of three between long runs joins",
            &[(0, 128), (131, 128)],
            Delta(262),
            Delta(262),
        ),
        case("gap of 127", &[(127, 1)], Delta(3), Delta(3)),
        case("gap of 128", &[(128, 1)], Delta(4), Delta(4)),
        case("run of 127", &[(1, 127)], Delta(129), Delta(129)),
        case("run of 128", &[(1, 128)], Delta(131), Delta(131)),
        case("run across words", &[(63, 2)], Delta(4), Delta(4)),
        case("whole words", &[(64, 64), (192, 64)], Delta(132), Delta(132)),
        case("longest that fits", &[(3, 4093)], Delta(4096), Delta(4096)),
        case("longest that fits, before an equal end", &[(0, 4093)], Delta(4096), TooLong),
        case("one too many", &[(0, 4094)], TooLong, TooLong),
        case("one byte of room left, before an equal end", &[(0, 4092)], Delta(4095), TooLong),
        case("everything", &[(0, 4096)], TooLong, TooLong),
        case("every other byte", &every(2), TooLong, TooLong),
        case("every third byte", &every(3), TooLong, TooLong),
        case("twenty runs of 32 bytes", &runs(20, 0, 100, 32), Delta(680), Delta(680)),
        case("twenty runs, the tenth of 33 bytes", &tenth_longer, Delta(681), Delta(681)),
        case("a hundred runs, and the last byte", &to_the_end, Delta(303), Delta(303)),
        case("every fourth byte", &every(4), Delta(3072), Delta(3072)),
    ]
}

fn pages(changed: &[(usize, usize)]) -> (Page, Page) {
    let old: Page = std::array::from_fn(|i| (i * 7 + i / 256) as u8);
    let mut new = old;
    for &(first, count) in changed {
        new[first..first + count].iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
    }
    (old, new)
}

#[test]
fn every_path_gives_the_outcome_of_the_table() {
    for case in cases() {
        let (old, new) = pages(&case.changed);
        let mut expected = [0; PAGE_SIZE];
        assert_eq!(plain::encode(&old, &new, &mut expected), case.plain, "plain: {}", case.name);
        for path in Path::available() {
            let mut out = [0; PAGE_SIZE];
            let outcome = path.encode(&old, &new, &mut out);
            assert_eq!(outcome, case.outcome, "{path}: {}", case.name);
            if let Outcome::Delta(len) = outcome {
                let mut page = old;
                path.decode(&out[..len], &mut page).unwrap();
                assert!(page == new, "{path}: {} does not decode", case.name);
            }
        }
    }
}

#[test]
fn every_path_is_found_by_its_name_and_no_other_is() {
    for path in Path::available() {
        assert_eq!(Path::named(path.name()), Some(path));
    }
    assert_eq!(Path::named("avx1024"), None);
}
