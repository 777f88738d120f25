//! `godwit dump`: writes a machine's memory to a file, and shows how.
//!
//! The file is opened here and its descriptor given to the machine, which may run as another user
//! or see other folders; `output` says what FILE may be. After a failure nothing is left.
//! Over TCP no descriptor can be given: there the machine gets the name, and writes it itself.

use super::error::{DumpError, Error};
use super::figures::{bytes, bytes_per_second, milliseconds};
use super::interrupt::Interrupts;
use super::qmp::{self, Address, Client};
use super::terminal::{say, show};
use crate::dump::Format;
use crate::output::{self, Destination, Input, NamedOutput, OutputFile};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct Dump {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT, on this host
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub qmp: Address,
    /// Where to: a file, which gets its name when it is whole; a device, a FIFO, /dev/fd/N, or - for
    /// standard output
    pub file: PathBuf,
    /// elf, kdump-zlib, kdump-lzo, kdump-snappy, kdump-zstd, or kdump-raw- and one of these
    #[arg(long, value_name = "FORMAT", default_value = "elf")]
    pub format: Format,
    /// ELF: one segment for each virtual mapping, for gdb
    #[arg(long)]
    pub paging: bool,
    /// ELF: only memory from this guest-physical address on
    #[arg(long, value_name = "ADDRESS", requires = "length", value_parser = number)]
    pub begin: Option<u64>,
    /// ELF: so many bytes of it
    #[arg(long, value_name = "BYTES", requires = "begin", value_parser = number)]
    pub length: Option<u64>,
    /// The guest as it is at one moment, written while it runs on (Godwit only)
    #[arg(long)]
    pub live: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const POLL_TIME: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const LINE_TIME: Duration = Duration::from_secs(1);

/// Runs the verb; what it prints is the result.
pub fn run(dump: &Dump) -> Result<(), Error> {
    let interrupts = Interrupts::count()?;
    let destination = Destination::look(&dump.file)?;
    let mut client = Client::connect_for(&dump.qmp, &interrupts)?;
    if let Some(process) = client.machine_process() {
        // Its memory, its disks, its log.
        destination.is_none_of(&Input::of_process(process))?;
    }
    let is_stdout = destination.is_stdout();
    let written = Written::begin(destination, &mut client, &interrupts)?;
    let began = Instant::now();
    let started = client.execute("dump-guest-memory", dump.arguments(&written.protocol));
    if let (Err(qmp::Error::Refused { .. }), true) = (&started, client.can_pass()) {
        // It may not have been taken; that it has is no error.
        let _ = client.execute("closefd", json!({"fdname": DESCRIPTOR}));
    }
    started?;
    let made = follow(&mut client, &interrupts)?;
    let took = began.elapsed();
    let size = written.finish()?;
    let words = if dump.json {
        format!("{:#}", dump.result(&made, size, took))
    } else {
        dump.summary(&made, size, took)
    };
    match is_stdout {
        true => {
            say(words);
            Ok(())
        }
        false => Ok(show(words + "\n")?),
    }
}

/// The descriptor's name at the machine.
const DESCRIPTOR: &str = "godwit-dump";

/// What the machine writes to.
struct Written {
    protocol: String,
    /// Nothing for what is written in place by name.
    output: Option<Output>,
}

enum Output {
    Passed(OutputFile),
    Named(NamedOutput),
}

impl Written {
    fn begin(
        destination: Destination,
        client: &mut Client,
        interrupts: &Interrupts,
    ) -> Result<Written, Error> {
        if client.can_pass() {
            let file = destination.open(MODE, &|| interrupts.pressed() == 0)?;
            client.pass(DESCRIPTOR, file.file().as_fd())?;
            let protocol = format!("fd:{DESCRIPTOR}");
            return Ok(Written { protocol, output: Some(Output::Passed(file)) });
        }
        let (name, output) = destination.open_elsewhere()?;
        Ok(Written { protocol: format!("file:{name}"), output: output.map(Output::Named) })
    }

    /// The file gets its name; its size in bytes, if it has one.
    fn finish(self) -> Result<Option<u64>, output::Error> {
        match self.output {
            Some(Output::Passed(file)) => Ok(file.finish()?),
            Some(Output::Named(file)) => Ok(file.finish()?),
            None => Ok(None),
        }
    }
}

/// Of a new file: it is all that a guest knows, and QEMU makes its dumps so.
const MODE: u32 = 0o400;

impl Dump {
    fn arguments(&self, protocol: &str) -> Value {
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

    /// A name that JSON cannot hold is left out.
    fn result(&self, made: &Made, size: Option<u64>, took: Duration) -> Value {
        let mut result = json!({"format": self.format.name(), "memory": made.total,
            "total-time": took.as_millis() as u64});
        if let Some(name) = self.file.to_str() {
            result["file"] = name.into();
        }
        if let Some(size) = size {
            result["size"] = size.into();
        }
        if let Some(downtime) = made.downtime {
            result["downtime-us"] = downtime.into();
        }
        result
    }

    fn summary(&self, made: &Made, size: Option<u64>, took: Duration) -> String {
        let rate = made.total as f64 / took.as_secs_f64().max(1e-3);
        let size = size.map_or(String::new(), |size| format!(" ({})", bytes(size)));
        let still = made.downtime.map_or(String::new(), |us| {
            format!("; the guest stood still for {:.1} ms", us as f64 / 1e3)
        });
        format!(
            "{}: {} of memory as {}{size} in {}, {}{still}",
            self.file.display(),
            bytes(made.total),
            self.format,
            milliseconds(took.as_millis() as u64),
            bytes_per_second(rate),
        )
    }
}

/// A decimal number, or a hexadecimal one after `0x`, that QMP can carry.
fn number(text: &str) -> Result<u64, String> {
    let value = match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let value = value.map_err(|error| error.to_string())?;
    u64::try_from(value).map_err(|_| "it is below zero".into())
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
                say(format_args!("dumping: {line}"));
            }
            None => {}
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
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
        assert_eq!(number("9223372036854775807"), Ok(i64::MAX as u64));
        for bad in ["-4096", "0x-1", "12k", "", "9223372036854775808"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
