//! `godwit demo`: the main job, shown with nothing but this binary and `/dev/kvm`.
//!
//! A guest that dirties memory and checks it moves from one machine to another over TCP on this
//! host, once with whole pages and once with XBZRLE; what counts is that it goes on counting and
//! finds nothing corrupted.

pub(super) mod error;
mod guest;
mod running;

use super::error::Error as ClientError;
use super::figures::{bytes, bytes_per_second, milliseconds, parse_bytes, parse_rate, parse_time};
use super::interrupt::Interrupts;
use super::migrate::{self, How};
use super::progress::{MigrationInfo, Progress};
use super::qmp::{Address, Client};
use super::table::Table;
use super::terminal::{say, show};
use clap::Args;
pub(crate) use error::Error;
use guest::{Evidence, SerialLog};
use running::Running;
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct Demo {
    /// Guest RAM
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_bytes)]
    pub memory: u64,
    /// How much of it the guest dirties, over and over
    #[arg(long, value_name = "SIZE", default_value = "48M", value_parser = parse_working_set)]
    pub working_set: u64,
    /// Pages it dirties in a second; 0 is as many as it can
    #[arg(long, value_name = "N", default_value_t = 24_000)]
    pub rate: u32,
    /// In which order: seq, random, hot or zipf
    #[arg(long, value_name = "PATTERN", default_value = "seq")]
    pub pattern: String,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub processors: u8,
    /// The link: 1Gbit, 125M
    #[arg(long, value_name = "RATE", default_value = "1Gbit", value_parser = parse_rate)]
    pub bandwidth: u64,
    /// Let the guest stand still no longer than this
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_time)]
    pub downtime_limit: Duration,
    /// Cancel a migration that does not end within this
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub patience: Duration,
    /// Another VMM with QEMU's options, to see the same with it
    #[arg(long, value_name = "COMMAND")]
    pub vmm: Option<String>,
}

const START_TIME: Duration = Duration::from_secs(10);

pub fn run(demo: &Demo) -> Result<(), ClientError> {
    check_kvm()?;
    let interrupts = Interrupts::count()?;
    // Sockets and logs; removed at the end.
    let folder =
        tempfile::Builder::new().prefix("godwit-demo-").tempdir().map_err(Error::Folder)?;
    let folder = folder.path();
    show(format_args!("{}\n", demo.introduction()))?;
    let plain = How {
        max_bandwidth: demo.bandwidth,
        downtime_limit: Some(demo.downtime_limit),
        ..How::default()
    };
    let cache = demo.memory.next_power_of_two().min(1 << 40);
    let xbzrle = How { xbzrle: Some(Some(cache)), ..plain.clone() };
    let first = demo.once("whole pages", &plain, folder, &interrupts)?;
    let second = demo.once("XBZRLE", &xbzrle, folder, &interrupts)?;
    Ok(show(format_args!("\n{}", comparison(&first, &second)))?)
}

/// The guest counts in MiB.
fn parse_working_set(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < 1 << 20 { Err("less than 1M; write 64M for 64 MiB".into()) } else { Ok(bytes) }
}

fn check_kvm() -> Result<(), Error> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoKvm,
            std::io::ErrorKind::PermissionDenied => Error::NotYours,
            _ => Error::Kvm(error),
        }),
    }
}

/// One migration, and what the guest had to say about it.
struct Outcome {
    end: MigrationInfo,
    /// The last sweep seen at the source, and one at the target that began after the migration.
    sweeps: (u64, u64),
}

impl Demo {
    fn introduction(&self) -> String {
        let rate = match self.rate {
            0 => "as many pages as it can".into(),
            rate => {
                format!("{rate} pages a second ({})", bytes_per_second(f64::from(rate) * 4096.0))
            }
        };
        format!(
            "A guest with {} of RAM dirties {rate} in a working set of {}, and checks each one.\nIt moves over TCP on \
             this host, at {} Mbit/s.\n",
            bytes(self.memory),
            bytes(self.working_set),
            self.bandwidth * 8 / 1_000_000
        )
    }

    fn once(
        &self,
        label: &str,
        how: &How,
        folder: &Path,
        interrupts: &Interrupts,
    ) -> Result<Outcome, ClientError> {
        let mut target = self.start("target", folder, &["-incoming", "defer"], interrupts)?;
        let mut source = self.start("source", folder, &[], interrupts)?;
        source.wait_for(interrupts, |log| log.least_sweep() >= 1)?;
        how.prepare(&mut source.qmp)?;
        how.prepare(&mut target.qmp)?;
        let uri = listen(&mut target.qmp)?;

        let mut progress = Progress::new(&format!("{label:>11}"));
        let end =
            migrate::start(&mut source.qmp, &uri, &mut progress, interrupts, Some(self.patience));
        progress.finish();
        let (_, end) = end?;
        let before = source.log.read();
        before.check()?;
        let sweeps = match end.status.as_str() {
            "completed" => {
                // The sweep under way may have begun before; the second line after it is of pages
                // checked here only.
                let goal = before.least_sweep() + 2;
                let after = target.wait_for(interrupts, |log| log.least_sweep() >= goal)?;
                before.goes_on_in(&after)?;
                (before.least_sweep(), after.least_sweep())
            }
            "cancelled" if interrupts.pressed() > 0 => return Err(ClientError::Cancelled),
            "cancelled" => {
                let goal = before.least_sweep() + 2;
                let after = source.wait_for(interrupts, |log| log.least_sweep() >= goal)?;
                (before.least_sweep(), after.least_sweep())
            }
            _ => return Err(ClientError::Failed(end.error.unwrap_or_default())),
        };
        say(format_args!(
            "{label:>11}: {}, the guest counted on from sweep {} to {}",
            end.status, sweeps.0, sweeps.1
        ));
        Ok(Outcome { end, sweeps })
    }

    fn start(
        &self,
        side: &'static str,
        folder: &Path,
        extra: &[&str],
        interrupts: &Interrupts,
    ) -> Result<Side, ClientError> {
        let path = |what: &str| folder.join(format!("{side}.{what}"));
        let (serial, qmp, errors) = (path("serial"), path("qmp"), path("errors"));
        let stderr = File::create(&errors).map_err(Error::Folder)?;
        // What the first migration left behind is not what this one says.
        File::create(&serial).map_err(Error::Folder)?;
        let _ = std::fs::remove_file(&qmp);
        let mut words = self.program(folder)?;
        let text = |path: &Path| {
            path.to_str().map(String::from).ok_or_else(|| Error::FolderName(folder.to_owned()))
        };
        // In a list of options a comma of a name is two.
        let option = |path: &Path| text(path).map(|text| text.replace(',', ",,"));
        let ws = self.working_set >> 20;
        words.extend(
            [
                "-accel".to_string(),
                "kvm".into(),
                "-M".into(),
                "microvm,acpi=off".into(),
                "-m".into(),
                format!("{}K", self.memory >> 10),
                "-smp".into(),
                self.processors.to_string(),
                "-display".into(),
                "none".into(),
                "-nodefaults".into(),
                "-chardev".into(),
                format!("file,id=serial,path={}", option(&serial)?),
                "-serial".into(),
                "chardev:serial".into(),
                "-append".into(),
                format!("ws={ws} rate={} pattern={} bytes=8", self.rate, self.pattern),
                "-qmp".into(),
                format!("unix:{},server=on,wait=off", option(&qmp)?),
            ]
            .map(OsString::from),
        );
        words.extend(extra.iter().map(OsString::from));
        let failed = |source| Error::Start { program: words[0].to_string_lossy().into(), source };
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            // Ctrl-C is for us alone.
            .process_group(0)
            .spawn()
            .map(Running)
            .map_err(failed)?;
        let address = Address::unix(&qmp);
        let begin = Instant::now();
        let qmp = loop {
            match Client::connect_for(&address, interrupts) {
                Ok(client) => break client,
                Err(error) => {
                    child.ended(side, &errors)?;
                    if interrupts.pressed() > 0 {
                        return Err(Error::Interrupted.into());
                    }
                    if begin.elapsed() > START_TIME {
                        return Err(error.into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        Ok(Side { name: side, child, qmp, log: SerialLog::new(serial, errors) })
    }

    /// The command and the kernel: this binary with the guest inside, or the other VMM with the
    /// guest in a file.
    fn program(&self, folder: &Path) -> Result<Vec<OsString>, Error> {
        let kernel = folder.join("guest.elf");
        match &self.vmm {
            Some(command) => {
                std::fs::write(&kernel, crate::builtin::elf()).map_err(Error::Folder)?;
                let mut words: Vec<OsString> =
                    command.split_whitespace().map(OsString::from).collect();
                words.extend(["-kernel".into(), kernel.into_os_string()]);
                Ok(words)
            }
            None => {
                let own = std::env::current_exe()
                    .map_err(|source| Error::Start { program: "this program".into(), source })?;
                Ok(vec![own.into_os_string(), "run".into(), "-kernel".into(), "builtin".into()])
            }
        }
    }
}

/// Makes the target listen on a free port, and says which.
fn listen(target: &mut Client) -> Result<String, ClientError> {
    target.execute("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"}))?;
    let answer = target.execute("query-migrate", json!({}))?;
    let port = answer["socket-address"][0]["port"].as_str().ok_or(Error::NoPort)?;
    Ok(format!("tcp:127.0.0.1:{port}"))
}

fn comparison(plain: &Outcome, xbzrle: &Outcome) -> Table {
    let mut table = Table::new(["", "whole pages", "XBZRLE"]);
    let mut row = |name: &str, cell: &dyn Fn(&Outcome) -> String| {
        table.row([name.to_string(), cell(plain), cell(xbzrle)]);
    };
    let time = |ms: Option<u64>| ms.map_or("–".into(), milliseconds);
    row("outcome", &|o| o.end.status.clone());
    row("total time", &|o| time(o.end.total_ms));
    row("downtime", &|o| time(o.end.downtime_ms));
    row("rounds", &|o| o.end.round.to_string());
    row("sent", &|o| bytes(o.end.transferred));
    row("pages sent whole", &|o| o.end.pages_whole.to_string());
    row("pages sent as changes", &|o| o.end.xbzrle.map_or("–".into(), |x| x.pages.to_string()));
    row("cache hits", &|o| o.end.xbzrle.map_or("–".into(), |x| migrate::hits(&x)));
    row("guest counted on", &|o| format!("{} → {}", o.sweeps.0, o.sweeps.1));
    row("corrupted pages", &|_| "none".into());
    table
}

struct Side {
    name: &'static str,
    child: Running,
    qmp: Client,
    log: SerialLog,
}

impl Side {
    /// Waits until the guest has said enough.
    fn wait_for(
        &mut self,
        interrupts: &Interrupts,
        enough: impl Fn(&Evidence) -> bool,
    ) -> Result<Evidence, Error> {
        self.log.wait_for(&mut self.child, self.name, interrupts, enough)
    }
}
