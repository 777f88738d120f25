//! Limits on what a drive may do: each by its key behind `throttling.`, and by an older name.

use crate::args::error::Problem;
use crate::args::value;
use crate::config::Throttle;

/// Keys of limits, behind `throttling.`; each also with `-max` and `-max-length`.
const LIMITS: [&str; 6] =
    ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];

/// Every key that is about limits.
#[rustfmt::skip]
pub(crate) const THROTTLING: [&str; 19] = [
    "throttling.bps-total", "throttling.bps-total-max", "throttling.bps-total-max-length",
    "throttling.bps-read", "throttling.bps-read-max", "throttling.bps-read-max-length",
    "throttling.bps-write", "throttling.bps-write-max", "throttling.bps-write-max-length",
    "throttling.iops-total", "throttling.iops-total-max", "throttling.iops-total-max-length",
    "throttling.iops-read", "throttling.iops-read-max", "throttling.iops-read-max-length",
    "throttling.iops-write", "throttling.iops-write-max", "throttling.iops-write-max-length",
    "throttling.iops-size",
];

/// Sets a limit, by its key or by the older name of it (`bps_rd_max`). `None`: it is none.
pub(super) fn limit(throttle: &mut Throttle, key: &str, text: &str) -> Option<Result<(), Problem>> {
    let number = || value::number(text, 0, i64::MAX as u64);
    if matches!(key, "iops_size" | "throttling.iops-size") {
        return Some(number().map(|size| throttle.iops_size = size));
    }
    let (key, names, max, length) = match key.strip_prefix("throttling.") {
        Some(key) => (key, LIMITS, "-max", "-max-length"),
        None => (key, Throttle::NAMES, "_max", "_max_length"),
    };
    let (name, what) = match (key.strip_suffix(length), key.strip_suffix(max)) {
        (Some(name), _) => (name, "length"),
        (None, Some(name)) => (name, "max"),
        (None, None) => (key, "rate"),
    };
    let at = names.iter().position(|known| *known == name)?;
    let limit = &mut *throttle.all_mut()[at];
    Some(match what {
        "length" => value::number(text, 1, u32::MAX.into()).map(|s| limit.seconds = s as u32),
        "max" => number().map(|max| limit.max = max),
        _ => number().map(|rate| limit.rate = rate),
    })
}
