//! The nearest known name to a mistyped one.

use std::cmp::Reverse;

/// The candidate that takes the fewest typing slips to reach `given`, if they are few for a word of
/// that length; else one that begins with all of `given`.
///
/// A slip is one character too many, missing or wrong, or two neighbours swapped. Of equals the one
/// that begins like it wins.
pub(crate) fn nearest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_lowercase();
    // Names here are short; anything far longer is no slip, and comparing it would take quadratic
    // time.
    if given.is_empty() || given.len() > GIVEN_BYTES_MAX {
        return None;
    }
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let letters = given.chars().count();
    let most = |name: &str| letters.max(name.len()).div_ceil(3).min(SLIPS_MAX);
    let slip = candidates
        .iter()
        // A slip changes the length by one at most.
        .filter(|name| letters.abs_diff(name.chars().count()) <= most(name))
        // Most names are nothing like it, which is sooner seen than counted.
        .filter(|name| slips_at_least(&given, name) <= most(name))
        .map(|name| (slips(&given, &name.to_lowercase()), *name))
        .filter(|(slips, name)| *slips <= most(name))
        .filter(|(slips, name)| *slips < name.len())
        .min_by_key(|(slips, name)| (*slips, Reverse(same_start(&given, name))))
        .map(|(_, name)| name);
    let longer = || {
        candidates
            .iter()
            .find(|name| given.len() >= BEGINNING_BYTES_MIN && name.starts_with(&given))
    };
    slip.or_else(|| longer().copied())
}

const GIVEN_BYTES_MAX: usize = 64;
/// A beginning shorter than this could be meant for anything.
const BEGINNING_BYTES_MIN: usize = 4;
const SLIPS_MAX: usize = 3;

fn same_start(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// No fewer slips lie between the two: a letter of the longer one that the other has not is one.
fn slips_at_least(a: &str, b: &str) -> usize {
    // All that is not ASCII counts as the same letter.
    let place = |letter: char| if letter.is_ascii() { letter as usize } else { 0 };
    let mut spare = [0u32; 128];
    a.chars().for_each(|letter| spare[place(letter.to_ascii_lowercase())] += 1);
    let (mut common, mut letters) = (0, 0);
    for letter in b.chars() {
        let spare = &mut spare[place(letter.to_ascii_lowercase())];
        common += usize::from(*spare > 0);
        *spare = spare.saturating_sub(1);
        letters += 1;
    }
    a.chars().count().max(letters) - common
}

/// Optimal string alignment distance.
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let (mut before, mut next) = (row.clone(), row.clone());
    for i in 1..=a.len() {
        next[0] = i;
        for j in 1..=b.len() {
            let changed = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            next[j] = changed.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        // The rows take turns: the oldest is written over.
        std::mem::swap(&mut before, &mut row);
        std::mem::swap(&mut row, &mut next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_strange_word_finds_none() {
        let names = ["kernel", "append", "initrd", "acpi", "serial", "smp"];
        for (given, found) in [
            ("kernal", Some("kernel")),
            ("apci", Some("acpi")),
            ("apend", Some("append")),
            ("SERIAL", Some("serial")),
            ("initramfs", None),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, names), found, "{given}");
        }
    }

    #[test]
    fn neighbours_swapped_are_one_slip() {
        assert_eq!(slips("apci", "acpi"), 1);
        assert_eq!(slips("", "abc"), 3);
        assert_eq!(slips("kitten", "sitting"), 3);
    }

    #[test]
    fn the_short_look_finds_no_more_slips_than_there_are() {
        let words = ["", "acpi", "apci", "kitten", "sitting", "Müller", "muller", "aab", "baa"];
        for (a, b) in words.iter().flat_map(|a| words.map(|b| (*a, b))) {
            let (a, b) = (a.to_lowercase(), b.to_lowercase());
            assert!(slips_at_least(&a, &b) <= slips(&a, &b), "{a} {b}");
        }
        assert_eq!(slips_at_least("kernel", "append"), 4);
    }
}
