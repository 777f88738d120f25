//! Migration parameters: QEMU's names, defaults, ranges and messages, and some of our own
//! (`x-godwit-…`), in one table.
//!
//! A row of the table is all there is to a parameter: parsing, QMP's schema, the checks,
//! `query-migrate-parameters` and the clients' help are made from it. A change is checked on the
//! merged result and made whole or not at all.

mod kind;
mod row;

use serde_json::{Map, Value};

pub(crate) use kind::{Kind, ParameterError};
use row::{Acts, Limits, Row, row};

/// Bytes of a page, the least xbzrle cache.
const PAGE_BYTES: u64 = 4096;

/// Defines [`Parameters`], its defaults and [`TABLE`] from rows of field, type and default, and of
/// name, limits, when it acts, and what it does.
macro_rules! parameters {
    ($($field:ident: $type:ty = $default:expr, $name:literal, $limits:expr, $acts:ident, $does:literal;)+) => {
        /// All parameters. Units as in QMP.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Parameters {
            $(#[doc = $does] pub $field: $type,)+
        }

        impl Default for Parameters {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        /// In the order in which they are listed.
        pub(crate) const TABLE: &[Row] = &[$(
            row::<$type>($name, $limits, Acts::$acts, $does, |parameters| {
                kind::Field::slot(&mut parameters.$field)
            }),
        )+];
    };
}

const PERCENT: Limits =
    Limits::Range { min: 1, max: 99, says: "expects an integer in the range of 1 to 99" };

const fn between(min: u64, max: u64, says: &'static str) -> Limits {
    Limits::Range { min, max, says }
}

parameters! {
    announce_initial: u64 = 50, "announce-initial",
        between(0, 100_000, "expects a value between 0 and 100000"), Never,
        "Milliseconds until network cards are announced a second time.";
    announce_max: u64 = 550, "announce-max",
        between(0, 100_000, "expects a value between 0 and 100000"), Never,
        "Milliseconds between announcements at most.";
    announce_rounds: u64 = 5, "announce-rounds",
        between(0, 1000, "expects a value between 0 and 1000"), Never,
        "How many announcements there are.";
    // The text says 0, QEMU refuses it all the same.
    announce_step: u64 = 100, "announce-step",
        between(1, 10_000, "expects a value between 0 and 10000"), Never,
        "Milliseconds that each pause between announcements is longer.";
    throttle_trigger_threshold: u8 = 50, "throttle-trigger-threshold",
        between(1, 100, "expects an integer in the range of 1 to 100"), Now,
        "auto-converge: per cent of what was sent that may be dirty again before the guest is slowed.";
    cpu_throttle_initial: u8 = 20, "cpu-throttle-initial", PERCENT, Now,
        "auto-converge: per cent of its time that the guest loses first.";
    cpu_throttle_increment: u8 = 10, "cpu-throttle-increment", PERCENT, Now,
        "auto-converge: per cent that it loses more each time.";
    cpu_throttle_tailslow: bool = false, "cpu-throttle-tailslow", Limits::None, Now,
        "auto-converge: slow down by no more than is needed, near the end.";
    max_cpu_throttle: u8 = 99, "max-cpu-throttle",
        Limits::Rule {
            holds: |p| (p.cpu_throttle_initial..=99).contains(&p.max_cpu_throttle),
            says: "expects an integer in the range of cpu_throttle_initial to 99",
        }, Now,
        "auto-converge: per cent of its time that the guest loses at most.";
    tls_creds: String = String::new(), "tls-creds", Limits::None, Start,
        "Credentials for TLS, which is not built in: with any, no migration starts.";
    tls_hostname: String = String::new(), "tls-hostname", Limits::None, Never,
        "The name to be found in the target's certificate.";
    tls_authz: String = String::new(), "tls-authz", Limits::None, Never,
        "Who may be the source.";
    max_bandwidth: u64 = 128 << 20, "max-bandwidth", Limits::None, Now,
        "Bytes sent per second at most; 0 is as much as the network takes.";
    avail_switchover_bandwidth: u64 = 0, "avail-switchover-bandwidth", Limits::None, Now,
        "Bytes per second to count on for the last pages; 0 is what was measured.";
    downtime_limit: u64 = 300, "downtime-limit",
        between(0, 2_000_000, "expects an integer in the range of 0 to (2000 * 1000) ms"), Now,
        "Milliseconds that the guest may stand still for the last pages and its state.";
    x_checkpoint_delay: u32 = 20000, "x-checkpoint-delay", Limits::None, Never,
        "Milliseconds between checkpoints of COLO, which is not built in.";
    multifd_channels: u8 = 2, "multifd-channels",
        between(1, 255, "expects a value between 1 and 255"), Start,
        "Connections that pages travel on, with capability multifd; the same on both sides.";
    multifd_compression: &'static str = "none", "multifd-compression",
        Limits::Choice(&["none", "zlib", "zstd"]), Start,
        "How pages are compressed with capability multifd; the same on both sides.";
    multifd_zlib_level: u8 = 1, "multifd-zlib-level",
        between(0, 9, "expects a value between 0 and 9"), Now,
        "From 0, no compression, to 9, the smallest and slowest.";
    multifd_qatzip_level: u8 = 1, "multifd-qatzip-level",
        between(1, 9, "expects a value between 1 and 9"), Never,
        "The level of a compressor that is not built in.";
    multifd_zstd_level: u8 = 1, "multifd-zstd-level",
        between(0, 20, "expects a value between 0 and 20"), Now,
        "From 0, a default, and 1, the fastest, to 20, the smallest and slowest.";
    xbzrle_cache_size: u64 = 64 << 20, "xbzrle-cache-size",
        Limits::Rule {
            holds: |p| p.xbzrle_cache_size >= PAGE_BYTES && p.xbzrle_cache_size.is_power_of_two(),
            says: "expects a power of two no less than the target page size",
        }, Now,
        "Bytes of old pages that are kept for deltas, with capability xbzrle: a power of two.";
    max_postcopy_bandwidth: u64 = 0, "max-postcopy-bandwidth", Limits::None, Never,
        "Bytes per second during postcopy, which is not built in.";
    block_bitmap_mapping: Option<Vec<Value>> = None, "block-bitmap-mapping", Limits::None, Never,
        "Other names for dirty bitmaps, whose migration is not built in.";
    x_vcpu_dirty_limit_period: u64 = 1000, "x-vcpu-dirty-limit-period",
        between(1, 1000, "expects a value between 1 and 1000"), Now,
        "dirty-limit: milliseconds between measurements of how fast vCPUs dirty memory.";
    vcpu_dirty_limit: u64 = 1, "vcpu-dirty-limit",
        between(1, u64::MAX, "must be greater than 1 MB/s"), Now,
        "dirty-limit: MiB per second that a vCPU may dirty once the guest is too fast.";
    mode: &'static str = "normal", "mode",
        Limits::Choice(&["normal", "cpr-reboot", "cpr-transfer"]), Start,
        "Only normal is built in: in another mode no migration starts.";
    zero_page_detection: &'static str = "multifd", "zero-page-detection",
        Limits::Choice(&["none", "legacy", "multifd"]), Start,
        "Who looks for pages of zeros: nobody, the main thread, or each channel's.";
    direct_io: bool = false, "direct-io", Limits::None, Never,
        "Write around the page cache, for mapped-ram, which is not built in.";
    x_godwit_stream: &'static str = "auto", "x-godwit-stream",
        Limits::Choice(&["auto", "qemu"]), Start,
        "auto: Godwit's extensions with a peer that has them. qemu: QEMU's stream only.";
    x_godwit_restore: &'static str = "eager", "x-godwit-restore",
        Limits::Choice(&["eager", "mapped"]), Start,
        "A mapped-ram file is read before the guest runs (eager), or mapped and read as it runs.";
    x_godwit_base: String = String::new(), "x-godwit-base", Limits::None, Start,
        "A snapshot: migrate file:PATH writes only what differs from it, as an increment.";
    x_godwit_verify: bool = false, "x-godwit-verify", Limits::None, Start,
        "Compare a hash of all RAM before the hand-over; between two Godwits; costs downtime.";
    x_godwit_encoder_threads: u8 = 0, "x-godwit-encoder-threads",
        between(0, 64, "expects a value between 0 and 64"), Start,
        "Threads of the source that look for zeros and make deltas; 0: one a processor, at most 8.";
    x_godwit_peer_timeout: u64 = 60_000, "x-godwit-peer-timeout", Limits::None, Start,
        "Milliseconds of silence after which a TCP connection counts as broken.";
    x_godwit_commit_timeout: u64 = 0, "x-godwit-commit-timeout", Limits::None, Now,
        "Milliseconds that the target may take to load the guest; 0: 5 s, or 4 times downtime-limit.";
}

impl Parameters {
    /// With the members of `changes` set.
    pub fn with(&self, changes: &Map<String, Value>) -> Result<Self, ParameterError> {
        let mut result = self.clone();
        for row in TABLE {
            if let Some(value) = changes.get(row.name) {
                (row.slot)(&mut result).set(row.name, row.kind, value)?;
            }
        }
        if let Some(name) = changes.keys().find(|name| row::find(name).is_none()) {
            return Err(ParameterError::Unexpected(name.clone()));
        }
        match TABLE.iter().find(|row| !row.holds(&result)) {
            Some(row) => Err(row.out_of_range()),
            None => Ok(result),
        }
    }

    /// Whether a migration with these can be made here. They may be set all the same, as in QEMU.
    pub(crate) fn check_built(&self) -> Result<(), ParameterError> {
        let refused =
            |name, value: &str| ParameterError::NotBuilt { name, value: value.to_owned() };
        if !self.tls_creds.is_empty() {
            return Err(refused("tls-creds", &self.tls_creds));
        }
        match self.mode {
            "normal" => Ok(()),
            mode => Err(refused("mode", mode)),
        }
    }

    /// As `query-migrate-parameters` shows them.
    pub(crate) fn to_json(&self) -> Value {
        let mut copy = self.clone();
        let shown = TABLE.iter().filter_map(|row| {
            let value = (row.slot)(&mut copy).get()?;
            Some((row.name.to_owned(), value))
        });
        Value::Object(shown.collect())
    }
}

/// What each parameter does, for people: a line each, with its default and when a change acts.
pub(crate) fn help() -> String {
    let defaults = Parameters::default().to_json();
    let lines = TABLE.iter().map(|row| {
        let default = match &defaults[row.name] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        format!("  {:<28}{default:<11}{:<7}{}\n", row.name, row.acts.name(), row.does)
    });
    lines.collect()
}

#[cfg(test)]
mod tests;
