//! Single values: switches, numbers, sizes, names, as QEMU writes them.

use super::error::Problem;
use crate::suggest::nearest;

/// `on`/`off` and their older spellings.
pub(crate) fn switch(text: &str) -> Result<bool, Problem> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(unknown(text, &["on", "off"])),
    }
}

/// `on`, `off` or `auto`; `auto` is `None`.
pub(crate) fn switch_or_auto(text: &str) -> Result<Option<bool>, Problem> {
    match text {
        "auto" => Ok(None),
        _ => switch(text).map(Some).map_err(|_| unknown(text, &["on", "off", "auto"])),
    }
}

/// A value that is none of the few there are.
pub(crate) fn unknown(given: &str, accepted: &[&'static str]) -> Problem {
    Problem::UnknownValue {
        accepted: accepted.to_vec(),
        nearest: nearest(given, accepted.iter().copied()).map(String::from),
    }
}

/// Without what C's `strtoull`, and so QEMU, skips in front of a number.
fn unsigned(text: &str) -> &str {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    text.strip_prefix('+').unwrap_or(text)
}

/// A number in decimal or, after `0x`, in hexadecimal.
pub(crate) fn number(text: &str, min: u64, max: u64) -> Result<u64, Problem> {
    let text = unsigned(text);
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16)
        }
        _ if text.bytes().all(|b| b.is_ascii_digit()) => text.parse(),
        _ => return Err(Problem::OutOfRange { min, max }),
    };
    parsed.ok().filter(|n| (min..=max).contains(n)).ok_or(Problem::OutOfRange { min, max })
}

pub(crate) fn power_of_two(text: &str, min: u64, max: u64) -> Result<u64, Problem> {
    number(text, min, max)
        .ok()
        .filter(|n| n.is_power_of_two())
        .ok_or(Problem::NotAPowerOfTwo { min, max })
}

/// A size in bytes: digits, a fraction if wanted, and a suffix (B K M G T P E, powers of 1024). A
/// number without a suffix counts units of `unit` bytes.
pub(crate) fn size(text: &str, unit: u64) -> Result<u64, Problem> {
    let text = unsigned(text);
    let bytes = if text.starts_with("0x") || text.starts_with("0X") {
        number(text, 0, u64::MAX).ok().and_then(|n| n.checked_mul(unit))
    } else {
        decimal_size(text, unit)
    };
    bytes.ok_or(Problem::NotASize)
}

fn decimal_size(text: &str, unit: u64) -> Option<u64> {
    let (digits, factor) = match text.char_indices().next_back()? {
        (_, '0'..='9') => (text, unit),
        (at, suffix) => (&text[..at], 1u64.checked_shl(suffix_shift(suffix)?)?),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !plain(whole) || !plain(fraction) {
        return None;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    // 18 digits of fraction fit a u64 and are finer than a byte of an exbibyte.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = match fraction.parse::<u128>() {
        Ok(n) => n * u128::from(factor) / 10u128.pow(fraction.len() as u32),
        Err(_) => 0,
    };
    whole.checked_add(u64::try_from(part).ok()?)
}

fn suffix_shift(suffix: char) -> Option<u32> {
    Some(match suffix.to_ascii_uppercase() {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return None,
    })
}

/// An identifier: a letter, then letters, digits, `-`, `.`, `_`.
pub(crate) fn id(text: &str) -> Result<String, Problem> {
    let rest = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest) {
        true => Ok(text.into()),
        false => Err(Problem::NotAnId),
    }
}

pub(crate) fn uuid(text: &str) -> Result<[u8; 16], Problem> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    if groups != [8, 4, 4, 4, 12] || !text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(Problem::NotAUuid);
    }
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let nibble = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, bytes) in [
            ("2048", Some(2048 * MIB)),
            ("2G", Some(2 << 30)),
            ("1.5g", Some(3 << 29)),
            ("0.5K", Some(512)),
            ("0x10", Some(16 * MIB)),
            ("7B", Some(7)),
            ("16E", None),
            ("1.M", Some(MIB)),
            (".5G", Some(512 * MIB)),
            (" 2048", Some(2048 * MIB)),
            ("\t+2G", Some(2 << 30)),
            (".", None),
            (".G", None),
            ("2G ", None),
            ("+ 1", None),
            ("++1", None),
            ("-1", None),
            ("1GG", None),
            ("G", None),
            ("", None),
            ("12é", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(size(text, MIB).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn numbers_keep_their_bounds() {
        assert_eq!(number("12", 1, 12), Ok(12));
        assert_eq!(number("0x0c", 1, 12), Ok(12));
        assert_eq!(number(" \t+12", 1, 12), Ok(12));
        for text in ["0", "13", "", " ", "-1", "+", "1 ", "0x", "0x+1", "99999999999999999999"] {
            assert_eq!(number(text, 1, 12), Err(Problem::OutOfRange { min: 1, max: 12 }), "{text}");
        }
    }

    #[test]
    fn a_uuid_has_its_five_groups() {
        let bytes = uuid("01234567-89ab-cdef-0123-456789ABCDEF").unwrap();
        assert_eq!(
            bytes,
            [
                1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd,
                0xef
            ]
        );
        for text in ["", "0123456789abcdef0123456789abcdef", "g1234567-89ab-cdef-0123-456789abcdef"]
        {
            assert_eq!(uuid(text), Err(Problem::NotAUuid), "{text}");
        }
    }
}
