//! Migration parameters: QEMU's names, defaults, ranges and messages, and five of our own
//! (`x-godwit-…`).
//!
//! A change is checked on the merged result and made whole or not at all.

use serde_json::{Map, Value, json};

/// Bytes of a page, the least xbzrle cache.
const PAGE_BYTES: u64 = 4096;

/// All parameters. Units as in QMP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub announce_initial: u64,
    pub announce_max: u64,
    pub announce_rounds: u64,
    pub announce_step: u64,
    pub throttle_trigger_threshold: u8,
    pub cpu_throttle_initial: u8,
    pub cpu_throttle_increment: u8,
    pub cpu_throttle_tailslow: bool,
    pub max_cpu_throttle: u8,
    pub tls_creds: String,
    pub tls_hostname: String,
    pub tls_authz: String,
    /// Bytes per second, 0 for no limit.
    pub max_bandwidth: u64,
    pub avail_switchover_bandwidth: u64,
    pub max_postcopy_bandwidth: u64,
    /// Milliseconds.
    pub downtime_limit: u64,
    pub x_checkpoint_delay: u32,
    pub multifd_channels: u8,
    pub multifd_compression: &'static str,
    pub multifd_zlib_level: u8,
    pub multifd_qatzip_level: u8,
    pub multifd_zstd_level: u8,
    pub xbzrle_cache_size: u64,
    pub x_vcpu_dirty_limit_period: u64,
    pub vcpu_dirty_limit: u64,
    pub mode: &'static str,
    pub zero_page_detection: &'static str,
    pub direct_io: bool,
    pub block_bitmap_mapping: Option<Vec<Value>>,
    /// `auto`: Godwit's extensions with a peer that has them. `qemu`: QEMU's framing only.
    pub x_godwit_stream: &'static str,
    /// Compare a hash of all RAM before the hand-over. Needs a Godwit on the other side; costs
    /// downtime.
    pub x_godwit_verify: bool,
    /// Milliseconds without an acknowledgement after which a TCP connection counts as broken
    /// (`TCP_USER_TIMEOUT`).
    pub x_godwit_peer_timeout: u64,
    /// Milliseconds the source waits for the target's LOADED; 0: the larger of 5 s and four times
    /// downtime-limit.
    pub x_godwit_commit_timeout: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            announce_initial: 50,
            announce_max: 550,
            announce_rounds: 5,
            announce_step: 100,
            throttle_trigger_threshold: 50,
            cpu_throttle_initial: 20,
            cpu_throttle_increment: 10,
            cpu_throttle_tailslow: false,
            max_cpu_throttle: 99,
            tls_creds: String::new(),
            tls_hostname: String::new(),
            tls_authz: String::new(),
            max_bandwidth: 128 << 20,
            avail_switchover_bandwidth: 0,
            max_postcopy_bandwidth: 0,
            downtime_limit: 300,
            x_checkpoint_delay: 20000,
            multifd_channels: 2,
            multifd_compression: "none",
            multifd_zlib_level: 1,
            multifd_qatzip_level: 1,
            multifd_zstd_level: 1,
            xbzrle_cache_size: 64 << 20,
            x_vcpu_dirty_limit_period: 1000,
            vcpu_dirty_limit: 1,
            mode: "normal",
            zero_page_detection: "multifd",
            direct_io: false,
            block_bitmap_mapping: None,
            x_godwit_stream: "auto",
            x_godwit_verify: false,
            x_godwit_peer_timeout: 60_000,
            x_godwit_commit_timeout: 0,
        }
    }
}

/// Why a change was refused. The texts are QEMU's, which names parameters with underscores in
/// ranges.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(String),
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    Type { name: String, expected: &'static str },
    #[error("Parameter '{name}' expects {width}")]
    Width { name: String, width: &'static str },
    #[error("Parameter '{name}' does not accept value '{value}'")]
    Choice { name: String, value: String },
    #[error("Parameter '{name}' {rule}")]
    Range { name: &'static str, rule: &'static str },
    #[error("{0} is not built in")]
    NotBuilt(&'static str),
}

/// A parameter's place, with its type.
enum Slot<'a> {
    Bool(&'a mut bool),
    U8(&'a mut u8),
    U32(&'a mut u32),
    U64(&'a mut u64),
    /// Text, or null for "".
    Text(&'a mut String),
    Choice(&'a mut &'static str, &'static [&'static str]),
    List(&'a mut Option<Vec<Value>>),
}

/// Names in the order they are listed.
pub const NAMES: [&str; 33] = [
    "announce-initial",
    "announce-max",
    "announce-rounds",
    "announce-step",
    "throttle-trigger-threshold",
    "cpu-throttle-initial",
    "cpu-throttle-increment",
    "cpu-throttle-tailslow",
    "max-cpu-throttle",
    "tls-creds",
    "tls-hostname",
    "tls-authz",
    "max-bandwidth",
    "avail-switchover-bandwidth",
    "downtime-limit",
    "x-checkpoint-delay",
    "multifd-channels",
    "multifd-compression",
    "multifd-zlib-level",
    "multifd-qatzip-level",
    "multifd-zstd-level",
    "xbzrle-cache-size",
    "max-postcopy-bandwidth",
    "block-bitmap-mapping",
    "x-vcpu-dirty-limit-period",
    "vcpu-dirty-limit",
    "mode",
    "zero-page-detection",
    "direct-io",
    "x-godwit-stream",
    "x-godwit-verify",
    "x-godwit-peer-timeout",
    "x-godwit-commit-timeout",
];

impl Parameters {
    /// With the members of `changes` set.
    pub fn with(&self, changes: &Map<String, Value>) -> Result<Self, ParameterError> {
        let mut result = self.clone();
        for name in NAMES {
            if let (Some(value), Some(slot)) = (changes.get(name), result.slot(name)) {
                set(name, slot, value)?;
            }
        }
        if let Some(name) = changes.keys().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(ParameterError::Unexpected(name.clone()));
        }
        result.check()?;
        Ok(result)
    }

    /// As `query-migrate-parameters` shows them.
    pub fn to_json(&self) -> Value {
        let mut copy = self.clone();
        let mut members = Map::new();
        for name in NAMES {
            let value = match copy.slot(name) {
                Some(Slot::Bool(value)) => json!(value),
                Some(Slot::U8(value)) => json!(value),
                Some(Slot::U32(value)) => json!(value),
                Some(Slot::U64(value)) => json!(value),
                Some(Slot::Text(value)) => json!(value),
                Some(Slot::Choice(value, _)) => json!(value),
                Some(Slot::List(Some(value))) => json!(value),
                Some(Slot::List(None)) | None => continue,
            };
            members.insert(name.to_owned(), value);
        }
        Value::Object(members)
    }

    fn slot(&mut self, name: &str) -> Option<Slot<'_>> {
        Some(match name {
            "announce-initial" => Slot::U64(&mut self.announce_initial),
            "announce-max" => Slot::U64(&mut self.announce_max),
            "announce-rounds" => Slot::U64(&mut self.announce_rounds),
            "announce-step" => Slot::U64(&mut self.announce_step),
            "throttle-trigger-threshold" => Slot::U8(&mut self.throttle_trigger_threshold),
            "cpu-throttle-initial" => Slot::U8(&mut self.cpu_throttle_initial),
            "cpu-throttle-increment" => Slot::U8(&mut self.cpu_throttle_increment),
            "cpu-throttle-tailslow" => Slot::Bool(&mut self.cpu_throttle_tailslow),
            "max-cpu-throttle" => Slot::U8(&mut self.max_cpu_throttle),
            "tls-creds" => Slot::Text(&mut self.tls_creds),
            "tls-hostname" => Slot::Text(&mut self.tls_hostname),
            "tls-authz" => Slot::Text(&mut self.tls_authz),
            "max-bandwidth" => Slot::U64(&mut self.max_bandwidth),
            "avail-switchover-bandwidth" => Slot::U64(&mut self.avail_switchover_bandwidth),
            "downtime-limit" => Slot::U64(&mut self.downtime_limit),
            "x-checkpoint-delay" => Slot::U32(&mut self.x_checkpoint_delay),
            "multifd-channels" => Slot::U8(&mut self.multifd_channels),
            "multifd-compression" => {
                Slot::Choice(&mut self.multifd_compression, &["none", "zlib", "zstd"])
            }
            "multifd-zlib-level" => Slot::U8(&mut self.multifd_zlib_level),
            "multifd-qatzip-level" => Slot::U8(&mut self.multifd_qatzip_level),
            "multifd-zstd-level" => Slot::U8(&mut self.multifd_zstd_level),
            "xbzrle-cache-size" => Slot::U64(&mut self.xbzrle_cache_size),
            "max-postcopy-bandwidth" => Slot::U64(&mut self.max_postcopy_bandwidth),
            "block-bitmap-mapping" => Slot::List(&mut self.block_bitmap_mapping),
            "x-vcpu-dirty-limit-period" => Slot::U64(&mut self.x_vcpu_dirty_limit_period),
            "vcpu-dirty-limit" => Slot::U64(&mut self.vcpu_dirty_limit),
            "mode" => Slot::Choice(&mut self.mode, &["normal", "cpr-reboot", "cpr-transfer"]),
            "zero-page-detection" => {
                Slot::Choice(&mut self.zero_page_detection, &["none", "legacy", "multifd"])
            }
            "direct-io" => Slot::Bool(&mut self.direct_io),
            "x-godwit-stream" => Slot::Choice(&mut self.x_godwit_stream, &["auto", "qemu"]),
            "x-godwit-verify" => Slot::Bool(&mut self.x_godwit_verify),
            "x-godwit-peer-timeout" => Slot::U64(&mut self.x_godwit_peer_timeout),
            "x-godwit-commit-timeout" => Slot::U64(&mut self.x_godwit_commit_timeout),
            _ => return None,
        })
    }

    fn check(&self) -> Result<(), ParameterError> {
        const PERCENT: &str = "expects an integer in the range of 1 to 99";
        let rules: [(bool, &'static str, &'static str); 16] = [
            (
                (1..=100).contains(&self.throttle_trigger_threshold),
                "throttle_trigger_threshold",
                "expects an integer in the range of 1 to 100",
            ),
            ((1..=99).contains(&self.cpu_throttle_initial), "cpu_throttle_initial", PERCENT),
            ((1..=99).contains(&self.cpu_throttle_increment), "cpu_throttle_increment", PERCENT),
            (
                (self.cpu_throttle_initial..=99).contains(&self.max_cpu_throttle),
                "max_cpu_throttle",
                "expects an integer in the range of cpu_throttle_initial to 99",
            ),
            (
                self.downtime_limit <= 2_000_000,
                "downtime_limit",
                "expects an integer in the range of 0 to (2000 * 1000) ms",
            ),
            (self.multifd_channels >= 1, "multifd_channels", "expects a value between 1 and 255"),
            (self.multifd_zlib_level <= 9, "multifd_zlib_level", "expects a value between 0 and 9"),
            (
                (1..=9).contains(&self.multifd_qatzip_level),
                "multifd_qatzip_level",
                "expects a value between 1 and 9",
            ),
            (
                self.multifd_zstd_level <= 20,
                "multifd_zstd_level",
                "expects a value between 0 and 20",
            ),
            (
                self.xbzrle_cache_size >= PAGE_BYTES && self.xbzrle_cache_size.is_power_of_two(),
                "xbzrle_cache_size",
                "expects a power of two no less than the target page size",
            ),
            (
                self.announce_initial <= 100_000,
                "announce_initial",
                "expects a value between 0 and 100000",
            ),
            (self.announce_max <= 100_000, "announce_max", "expects a value between 0 and 100000"),
            (self.announce_rounds <= 1000, "announce_rounds", "expects a value between 0 and 1000"),
            // The text says 0, QEMU refuses it all the same.
            (
                (1..=10_000).contains(&self.announce_step),
                "announce_step",
                "expects a value between 0 and 10000",
            ),
            (
                (1..=1000).contains(&self.x_vcpu_dirty_limit_period),
                "x-vcpu-dirty-limit-period",
                "expects a value between 1 and 1000",
            ),
            (self.vcpu_dirty_limit >= 1, "vcpu_dirty_limit", "must be greater than 1 MB/s"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, name, rule)) => Err(ParameterError::Range { name, rule }),
            None => Ok(()),
        }
    }
}

fn set(name: &str, slot: Slot<'_>, value: &Value) -> Result<(), ParameterError> {
    let wrong = |expected| ParameterError::Type { name: name.to_owned(), expected };
    match slot {
        Slot::Bool(place) => *place = value.as_bool().ok_or_else(|| wrong("boolean"))?,
        Slot::U8(place) => {
            *place = u8::try_from(integer(name, value)?).map_err(|_| width(name, "uint8_t"))?
        }
        Slot::U32(place) => {
            *place = u32::try_from(integer(name, value)?).map_err(|_| width(name, "uint32_t"))?
        }
        Slot::U64(place) => *place = integer(name, value)?,
        Slot::Text(place) if value.is_null() => place.clear(),
        Slot::Text(place) => *place = value.as_str().ok_or_else(|| wrong("StrOrNull"))?.to_owned(),
        Slot::Choice(place, choices) => {
            let text = value.as_str().ok_or_else(|| wrong("string"))?;
            let refused =
                || ParameterError::Choice { name: name.to_owned(), value: text.to_owned() };
            *place = choices.iter().find(|choice| **choice == text).ok_or_else(refused)?;
        }
        Slot::List(place) => *place = Some(value.as_array().ok_or_else(|| wrong("array"))?.clone()),
    }
    Ok(())
}

/// An unsigned integer; negative ones wrap, as in QEMU.
fn integer(name: &str, value: &Value) -> Result<u64, ParameterError> {
    if value.is_string() {
        return Err(width(name, "uint64"));
    }
    let number = value.as_u64().or_else(|| value.as_i64().map(|number| number as u64));
    number.ok_or_else(|| ParameterError::Type { name: name.to_owned(), expected: "integer" })
}

fn width(name: &str, width: &'static str) -> ParameterError {
    ParameterError::Width { name: name.to_owned(), width }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(value: Value) -> Result<Parameters, String> {
        Parameters::default().with(value.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_default_passes_its_own_rules_and_reads_back() {
        let defaults = Parameters::default();
        let json = defaults.to_json();
        assert_eq!(change(json.clone()).unwrap(), defaults);
        assert_eq!(json["max-bandwidth"], 134217728);
        assert_eq!(json.get("block-bitmap-mapping"), None);
    }

    #[test]
    fn refusals_have_qemus_texts() {
        for (arguments, text) in [
            (
                json!({"max-cpu-throttle": 10}),
                "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99",
            ),
            (
                json!({"cpu-throttle-increment": 0}),
                "Parameter 'cpu_throttle_increment' expects an integer in the range of 1 to 99",
            ),
            (
                json!({"announce-step": 0}),
                "Parameter 'announce_step' expects a value between 0 and 10000",
            ),
            (
                json!({"multifd-channels": 0}),
                "Parameter 'multifd_channels' expects a value between 1 and 255",
            ),
            (json!({"multifd-channels": 256}), "Parameter 'multifd-channels' expects uint8_t"),
            (
                json!({"downtime-limit": 2000001}),
                "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
            ),
            (
                json!({"x-vcpu-dirty-limit-period": 0}),
                "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000",
            ),
            (
                json!({"vcpu-dirty-limit": 0}),
                "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s",
            ),
            (
                json!({"xbzrle-cache-size": 3 << 20}),
                "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
            ),
            (json!({"mode": "cpr-exec"}), "Parameter 'mode' does not accept value 'cpr-exec'"),
            (
                json!({"max-bandwidth": 1.5}),
                "Invalid parameter type for 'max-bandwidth', expected: integer",
            ),
            (json!({"max-bandwidth": "1G"}), "Parameter 'max-bandwidth' expects uint64"),
            (json!({"direct-io": 1}), "Invalid parameter type for 'direct-io', expected: boolean"),
            (json!({"nope": 1}), "Parameter 'nope' is unexpected"),
        ] {
            assert_eq!(change(arguments).unwrap_err(), text);
        }
    }

    #[test]
    fn negative_sizes_wrap_and_null_text_is_empty() {
        let changed = change(json!({"max-bandwidth": -1, "tls-hostname": null})).unwrap();
        assert_eq!(changed.max_bandwidth, u64::MAX);
        assert_eq!(changed.tls_hostname, "");
        assert_eq!(
            change(json!({"xbzrle-cache-size": 9223372036854775808u64})).unwrap().xbzrle_cache_size,
            1 << 63
        );
    }
}
