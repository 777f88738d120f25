//! How far a migration is, and how that is shown.

use super::figures::{bytes, bytes_per_second, milliseconds, per_cent};
use super::terminal::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One answer of `query-migrate`, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MigrationInfo {
    pub status: String,
    pub error: Option<String>,
    /// Harvests of the dirty log so far; the first round is 1.
    pub round: u64,
    pub total: u64,
    pub remaining: u64,
    pub transferred: u64,
    pub pages_zero: u64,
    pub pages_whole: u64,
    /// Bytes per second.
    pub throughput: f64,
    /// Bytes per second that the guest dirties, in whole pages.
    pub dirty_rate: f64,
    pub xbzrle: Option<Xbzrle>,
    pub expected_downtime_ms: Option<u64>,
    pub downtime_ms: Option<u64>,
    pub total_ms: Option<u64>,
    pub setup_ms: Option<u64>,
    pub throttle_per_cent: Option<u64>,
    /// What a Godwit says would help a migration that cannot end.
    pub advice: Option<String>,
    /// What it takes the time to the end to be.
    pub predicted_end_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Xbzrle {
    pub cache_bytes: u64,
    pub bytes: u64,
    pub pages: u64,
    pub misses: u64,
    /// Of late, 0 to 1.
    pub miss_rate: f64,
}

impl MigrationInfo {
    pub(crate) fn read(answer: &Value) -> MigrationInfo {
        let ram = &answer["ram"];
        let count = |key: &str| ram[key].as_u64().unwrap_or(0);
        let page = match count("page-size") {
            0 => 4096,
            bytes => bytes,
        };
        let cache = &answer["xbzrle-cache"];
        MigrationInfo {
            status: answer["status"].as_str().unwrap_or("none").into(),
            error: answer["error-desc"].as_str().map(String::from),
            round: count("dirty-sync-count"),
            total: count("total"),
            remaining: count("remaining"),
            transferred: count("transferred"),
            pages_zero: count("duplicate"),
            pages_whole: count("normal"),
            throughput: ram["mbps"].as_f64().unwrap_or(0.0) * 1e6 / 8.0,
            dirty_rate: count("dirty-pages-rate") as f64 * page as f64,
            xbzrle: cache.is_object().then(|| Xbzrle {
                cache_bytes: cache["cache-size"].as_u64().unwrap_or(0),
                bytes: cache["bytes"].as_u64().unwrap_or(0),
                pages: cache["pages"].as_u64().unwrap_or(0),
                misses: cache["cache-miss"].as_u64().unwrap_or(0),
                miss_rate: cache["cache-miss-rate"].as_f64().unwrap_or(0.0),
            }),
            expected_downtime_ms: answer["x-godwit"]["predicted-downtime"]
                .as_u64()
                .or(answer["expected-downtime"].as_u64()),
            downtime_ms: answer["downtime"].as_u64(),
            total_ms: answer["total-time"].as_u64(),
            setup_ms: answer["setup-time"].as_u64(),
            throttle_per_cent: answer["cpu-throttle-percentage"].as_u64(),
            advice: answer["x-godwit"]["advice"].as_str().map(String::from),
            predicted_end_ms: answer["x-godwit"]["predicted-end"].as_u64(),
        }
    }

    /// No further change is to come.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }

    /// A migration that did not succeed ends without figures; those of `last`, then.
    pub(crate) fn or_figures_of(self, last: MigrationInfo) -> MigrationInfo {
        match self.total {
            0 => MigrationInfo { status: self.status, error: self.error, ..last },
            _ => self,
        }
    }

    /// What of RAM needs not be sent any more, 0 to 1.
    pub(crate) fn done(&self) -> f64 {
        match (self.status.as_str(), self.total) {
            ("completed", _) => 1.0,
            (_, 0) => 0.0,
            (_, total) => 1.0 - self.remaining.min(total) as f64 / total as f64,
        }
    }

    /// `round 3, 118 MiB/s, dirtied 32 MiB/s, …`
    pub(crate) fn line(&self) -> String {
        let mut parts = vec![match self.round {
            0 => self.status.clone(),
            round => format!("round {round}"),
        }];
        if self.throughput > 0.0 {
            parts.push(bytes_per_second(self.throughput));
        }
        if self.dirty_rate > 0.0 {
            parts.push(format!("dirtied {}", bytes_per_second(self.dirty_rate)));
        }
        if let Some(xbzrle) = self.xbzrle.filter(|_| self.round > 1) {
            parts.push(format!("cache hits {}", per_cent(1.0 - xbzrle.miss_rate)));
        }
        if let Some(per_cent) = self.throttle_per_cent.filter(|per_cent| *per_cent > 0) {
            parts.push(format!("guest slowed by {per_cent} %"));
        }
        if let Some(ms) = self.expected_downtime_ms.filter(|_| self.round > 1) {
            parts.push(format!("downtime about {}", milliseconds(ms)));
        }
        if let Some(ms) = self.predicted_end_ms {
            parts.push(format!("done in {}", milliseconds(ms)));
        }
        parts.join(", ")
    }
}

/// The bar, or the lines, of one migration.
pub(crate) struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

/// Between two lines where there is no terminal.
const LINE_TIME: Duration = Duration::from_secs(1);

impl Progress {
    /// `label` stands in front: what moves.
    pub(crate) fn new(label: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(10));
            let style =
                ProgressStyle::with_template("{prefix} {bar:30.cyan/dim} {percent:>3} %  {msg}");
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─"),
            );
            bar.set_prefix(label.to_string());
            bar
        });
        let past = Instant::now().checked_sub(LINE_TIME).unwrap_or_else(Instant::now);
        Progress { label: label.into(), bar, last_line: past }
    }

    pub(crate) fn show(&mut self, now: &MigrationInfo) {
        match &self.bar {
            _ if now.round == 0 => {}
            Some(bar) => {
                bar.set_position((now.done() * 1000.0) as u64);
                bar.set_message(now.line());
            }
            None if self.last_line.elapsed() >= LINE_TIME => {
                self.last_line = Instant::now();
                let left = bytes(now.remaining);
                let (done, line) = (per_cent(now.done()), now.line());
                say(format_args!("{}: {done}, {left} left, {line}", self.label));
            }
            None => {}
        }
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_is_read_and_told_in_one_line() {
        let answer = json!({
            "status": "active", "total-time": 12345, "setup-time": 1, "expected-downtime": 120,
            "ram": {"total": 1000, "remaining": 250, "transferred": 800, "mbps": 1000.0, "dirty-pages-rate": 8192,
                    "page-size": 4096, "dirty-sync-count": 3, "duplicate": 7, "normal": 9},
            "xbzrle-cache": {"cache-size": 64, "bytes": 10, "pages": 98, "cache-miss": 2, "cache-miss-rate": 0.02}
        });
        let now = MigrationInfo::read(&answer);
        assert_eq!(now.done(), 0.75);
        assert!(!now.is_over());
        assert_eq!(
            now.line(),
            "round 3, 119 MiB/s, dirtied 32 MiB/s, cache hits 98 %, downtime about 120 ms"
        );
        assert_eq!(MigrationInfo::read(&json!({})).line(), "none");
    }
}
