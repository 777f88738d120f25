//! `godwit dump`: writes a machine's memory to a file, and shows how.
//!
//! The machine writes to FILE.part; the file gets its name when it is whole. After a failure
//! nothing is left.

use super::Error;
use super::figures::{bytes, bytes_per_second, milliseconds};
use super::interrupt::Interrupts;
use super::qmp::{self, Address, Client};
use crate::dump::Format;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct Dump {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT, on this host
    #[arg(long, value_name = "ADDRESS")]
    pub qmp: Address,
    /// Where to; written as FILE.part and renamed when it is whole
    pub file: PathBuf,
    /// elf, kdump-zlib, kdump-lzo, kdump-snappy, kdump-zstd, or kdump-raw- and one of these
    #[arg(long, value_name = "FORMAT", default_value = "elf")]
    pub format: Format,
    /// ELF: one segment for each virtual mapping, for gdb
    #[arg(long)]
    pub paging: bool,
    /// ELF: only memory from this guest-physical address on
    #[arg(long, value_name = "ADDRESS", requires = "length", value_parser = number, allow_hyphen_values = true)]
    pub begin: Option<i64>,
    /// ELF: so many bytes of it
    #[arg(long, value_name = "BYTES", requires = "begin", value_parser = number, allow_hyphen_values = true)]
    pub length: Option<i64>,
    /// The guest as it is at one moment, written while it runs on (Godwit only)
    #[arg(long)]
    pub live: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("{0}")]
    Failed(String),
    #[error("the dump was cancelled; the guest goes on")]
    Cancelled,
    #[error("the dump is whole, but {part} cannot be renamed to {file}")]
    Rename { part: String, file: String, source: std::io::Error },
    #[error("cannot find the folder of {file}")]
    Folder { file: String, source: std::io::Error },
}

const POLL_TIME: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const LINE_TIME: Duration = Duration::from_secs(1);

/// Runs the verb; what it prints on stdout is the result.
pub fn run(dump: &Dump) -> Result<(), Error> {
    let interrupts = Interrupts::count()?;
    let mut client = Client::connect(&dump.qmp)?;
    let part = Part::of(&dump.file)?;
    let began = Instant::now();
    client.execute("dump-guest-memory", dump.arguments(&part))?;
    let Made { total, downtime } = follow(&mut client, &interrupts)?;
    let took = began.elapsed();
    let size = part.keep(&dump.file)?;
    if dump.json {
        let mut result = json!({"file": dump.file, "format": dump.format.name(), "memory": total, "size": size,
            "total-time": took.as_millis() as u64});
        if let Some(downtime) = downtime {
            result["downtime-us"] = downtime.into();
        }
        println!("{result:#}");
    } else {
        let rate = total as f64 / took.as_secs_f64().max(1e-3);
        println!(
            "{}: {} of memory as {} ({}) in {}, {}{}",
            dump.file.display(),
            bytes(total),
            dump.format,
            bytes(size),
            milliseconds(took.as_millis() as u64),
            bytes_per_second(rate),
            downtime.map_or(String::new(), |us| format!(
                "; the guest stood still for {:.1} ms",
                us as f64 / 1e3
            ))
        );
    }
    Ok(())
}

impl Dump {
    fn arguments(&self, part: &Part) -> Value {
        let protocol = format!("file:{}", part.path.display());
        let mut arguments = json!({"protocol": protocol, "paging": self.paging, "detach": true});
        if self.live {
            arguments["x-live"] = true.into();
        }
        if self.format != Format::Elf {
            arguments["format"] = self.format.name().into();
        }
        if let (Some(begin), Some(length)) = (self.begin, self.length) {
            arguments["begin"] = begin.into();
            arguments["length"] = length.into();
        }
        arguments
    }
}

/// A decimal number, or a hexadecimal one after `0x`.
fn number(text: &str) -> Result<i64, String> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let value = match digits.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    value.map(|value| sign * value).map_err(|error| error.to_string())
}

/// The unfinished file; removed unless it is kept.
struct Part {
    path: PathBuf,
    kept: bool,
}

impl Part {
    /// The machine has a working folder of its own, so it gets an absolute path. What an earlier
    /// dump left is removed: it may belong to us and yet not be writable (the machine makes it with
    /// mode 0400).
    fn of(file: &Path) -> Result<Part, DumpError> {
        let absolute = std::path::absolute(file)
            .map_err(|source| DumpError::Folder { file: file.display().to_string(), source })?;
        let mut path = absolute.into_os_string();
        path.push(".part");
        let part = Part { path: path.into(), kept: false };
        let _ = std::fs::remove_file(&part.path);
        Ok(part)
    }

    /// Gives the file its name; its size in bytes.
    fn keep(mut self, file: &Path) -> Result<u64, DumpError> {
        let renamed = std::fs::rename(&self.path, file).and_then(|()| std::fs::metadata(file));
        let metadata = renamed.map_err(|source| DumpError::Rename {
            part: self.path.display().to_string(),
            file: file.display().to_string(),
            source,
        })?;
        self.kept = true;
        Ok(metadata.len())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What the machine said at the end.
struct Made {
    /// Bytes of memory in the dump.
    total: u64,
    /// Of a live dump: µs for which the guest stood still.
    downtime: Option<u64>,
}

/// Waits for the dump's end.
fn follow(client: &mut Client, interrupts: &Interrupts) -> Result<Made, Error> {
    let mut bar = Bar::new();
    let mut cancelled = false;
    loop {
        // The end cuts the wait short.
        if let Some(event) = client.event(POLL_TIME)?
            && event["event"] == "DUMP_COMPLETED"
        {
            bar.finish();
            let result = &event["data"]["result"];
            return match result["status"].as_str() {
                Some("completed") => Ok(Made {
                    total: result["total"].as_u64().unwrap_or(0),
                    downtime: result["x-downtime-us"].as_u64(),
                }),
                _ if cancelled => Err(DumpError::Cancelled.into()),
                _ => Err(DumpError::Failed(reason(&event)).into()),
            };
        }
        let now = client.execute("query-dump", json!({}))?;
        bar.show(&now);
        match interrupts.pressed() {
            0 => {}
            1 if !cancelled => {
                cancelled = true;
                cancel(client, &bar)?;
            }
            1 => {}
            _ => return Err(DumpError::Cancelled.into()),
        }
    }
}

fn reason(event: &Value) -> String {
    event["data"]["error"].as_str().unwrap_or("the machine gave no reason").to_owned()
}

/// QEMU has no such command: there a dump runs to its end.
fn cancel(client: &mut Client, bar: &Bar) -> Result<(), Error> {
    match client.execute("x-dump-cancel", json!({})) {
        Ok(_) => bar.say("cancelling"),
        Err(qmp::Error::Refused { class, .. }) if class == "CommandNotFound" => {
            bar.say(
                "this VMM cannot cancel a dump; once more to leave it alone and remove its file",
            );
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The bar, or the lines.
struct Bar {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
}

impl Bar {
    fn new() -> Bar {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
            let style =
                ProgressStyle::with_template("{prefix} {bar:30.cyan/dim} {percent:>3} %  {msg}");
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─"),
            );
            bar.set_prefix("dumping");
            bar
        });
        Bar { bar, began: Instant::now(), last_line: Instant::now() }
    }

    fn show(&mut self, now: &Value) {
        let (done, total) =
            (now["completed"].as_u64().unwrap_or(0), now["total"].as_u64().unwrap_or(0));
        let rate = bytes_per_second(done as f64 / self.began.elapsed().as_secs_f64().max(1e-3));
        let line = format!("{} of {}, {rate}", bytes(done), bytes(total));
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                // Nothing of nothing would be drawn as all of it.
                bar.set_length(total.max(1));
                bar.set_position(done);
            }
            None if self.last_line.elapsed() >= LINE_TIME => {
                self.last_line = Instant::now();
                eprintln!("dumping: {line}");
            }
            None => {}
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_both_bases() {
        assert_eq!(number("0x9f123"), Ok(0x9f123));
        assert_eq!(number("-4096"), Ok(-4096));
        assert!(number("12k").is_err() && number("").is_err());
    }

    #[test]
    fn an_unfinished_file_is_removed_and_a_whole_one_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("core");
        let unfinished = Part::of(&file).unwrap();
        std::fs::write(&unfinished.path, b"half").unwrap();
        drop(unfinished);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let whole = Part::of(&file).unwrap();
        std::fs::write(&whole.path, b"whole").unwrap();
        assert_eq!(whole.keep(&file).unwrap(), 5);
        assert_eq!(std::fs::read(&file).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
