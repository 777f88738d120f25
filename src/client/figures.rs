//! Figures as people read and write them.

use crate::args;
use std::time::Duration;

/// `1.5 GiB`, `12 MiB`, `640 KiB`, `12 B`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| count >= *unit) {
        Some((name, unit)) => {
            let value = count as f64 / *unit as f64;
            if value < 9.95 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
        }
        None => format!("{count} B"),
    }
}

pub(crate) fn bytes_per_second(rate: f64) -> String {
    format!("{}/s", bytes(rate.max(0.0) as u64))
}

/// `1.24 s`, `870 ms`.
pub(crate) fn milliseconds(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{:.2} s", ms as f64 / 1000.0) }
}

pub(crate) fn per_cent(part: f64) -> String {
    format!("{:.0} %", (part * 100.0).clamp(0.0, 100.0))
}

/// A size such as `512M`; a number alone counts bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    args::size(text, 1).map_err(|problem| problem.to_string())
}

/// A rate: bytes per second (`125M`), or bits per second as networks are sold (`1Gbit`,
/// `100mbit/s`).
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    let plain = text.strip_suffix("/s").unwrap_or(text);
    let lower = plain.to_lowercase();
    let Some(bits) = lower.strip_suffix("bit") else {
        return parse_bytes(
            plain
                .strip_suffix('B')
                .filter(|rest| rest.ends_with(|c: char| !c.is_ascii_digit()))
                .unwrap_or(plain),
        );
    };
    let (digits, factor) = match bits.chars().last() {
        Some('k') => (&bits[..bits.len() - 1], 1e3),
        Some('m') => (&bits[..bits.len() - 1], 1e6),
        Some('g') => (&bits[..bits.len() - 1], 1e9),
        _ => (bits, 1.0),
    };
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number = digits.parse::<f64>().ok().filter(|n| plain && *n <= 1e9);
    number
        .map(|n| (n * factor / 8.0) as u64)
        .ok_or_else(|| "expected a rate such as 125M or 1Gbit".into())
}

/// A time such as `300ms` or `0.5s`; a number alone counts milliseconds.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1e-3),
        (None, Some(digits)) => (digits, 1.0),
        (None, None) => (text, 1e-3),
    };
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let seconds =
        digits.parse::<f64>().ok().filter(|n| plain && n * unit <= 2000.0).map(|n| n * unit);
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected a time such as 300ms or 0.5s, at most 2000s".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(milliseconds(87), "87 ms");
        assert_eq!(milliseconds(1240), "1.24 s");
        assert_eq!(per_cent(0.974), "97 %");
    }

    #[test]
    fn rates_and_times_are_read_as_people_write_them() {
        for (text, rate) in [
            ("125M", Some(125 << 20)),
            ("1Gbit", Some(125_000_000)),
            ("100mbit/s", Some(12_500_000)),
            ("2GB/s", Some(2 << 30)),
            ("5000", Some(5000)),
            ("0", Some(0)),
            ("fast", None),
            ("gbit", None),
            ("-1gbit", None),
            ("", None),
        ] {
            assert_eq!(parse_rate(text).ok(), rate, "{text}");
        }
        for (text, ms) in [
            ("300", Some(300)),
            ("300ms", Some(300)),
            ("0.5s", Some(500)),
            ("1h", None),
            ("s", None),
            ("9999s", None),
        ] {
            assert_eq!(parse_time(text).ok().map(|t| t.as_millis()), ms, "{text}");
        }
    }
}
