//! `godwit save`: keeps a guest in a file, with a place for each page (capability `mapped-ram`).
//!
//! The file is made here, under a temporary name beside FILE, and its descriptor given to the
//! machine; it becomes FILE when it is whole and on disk. Until then, and after a failure, FILE is
//! what it was. Over TCP the machine gets the temporary name. What was set for migrations at the
//! machine is set as before afterwards.

use super::error::{Error, SaveError};
use super::figures::{bytes, milliseconds};
use super::interrupt::Interrupts;
use super::migrate::disks_left_out;
use super::progress::{MigrationInfo, Progress};
use super::qmp::{self, Address, Client};
use super::terminal::{say, show};
use crate::output::{self, Destination, Input, NamedOutput, OutputFile};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct Save {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT, on this host
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub qmp: Address,
    /// The snapshot; a file that has this name stays as it is until the new one is whole
    pub file: PathBuf,
    /// The guest as it is now, written while it runs on; it stands still for milliseconds
    #[arg(long, conflicts_with_all = ["channels", "stop", "quit"])]
    pub background: bool,
    /// Write with N threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub channels: Option<u8>,
    /// Leave the guest standing still afterwards
    #[arg(long, conflicts_with = "quit")]
    pub stop: bool,
    /// End the machine once the snapshot is whole
    #[arg(long)]
    pub quit: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

const POLL_TIME: Duration = Duration::from_millis(100);

/// Of a new file: it is all that a guest knows.
const MODE: u32 = 0o600;

/// Rounds after which a guest that dirties memory as fast as the file takes it is stopped.
const ROUNDS_MAX: u64 = 4;

/// The longest stop that can be allowed, in ms: as long as the rest takes.
const ANY_STOP: u64 = 2_000_000;

/// Runs the verb; what it prints is the result.
pub fn run(save: &Save) -> Result<(), Error> {
    let interrupts = Interrupts::count()?;
    let destination = Destination::look(&save.file)?;
    let mut client = Client::connect_for(&save.qmp, &interrupts)?;
    if let Some(process) = client.machine_process()
        && !is_snapshot(&save.file)
    {
        // An image of a disk, a log. A snapshot that the guest came from may be replaced: the machine keeps it.
        destination.is_none_of(&Input::of_process(process))?;
    }
    let state = client.execute("query-status", json!({}))?;
    if state["status"] == "postmigrate" {
        return Err(SaveError::StandsSince.into());
    }
    let ran = state["running"] == true;
    let before = Settings::ask(&mut client)?;
    let written = Written::begin(save, destination, &mut client)?;
    let began = Instant::now();
    let end = save.write(&mut client, &before, &written.uri, ran, &interrupts);
    // The guest waits.
    let stopped = Instant::now();
    let mut goes_on = match ran && !save.background && !save.stop && !save.quit && end.is_ok() {
        true => go_on(&mut client),
        false => Ok(()),
    };
    let stood = stopped.elapsed();
    before.put_back(&mut client);
    written.forget(&mut client);
    let mut end = end?;
    if !save.background {
        end.downtime_ms = end.downtime_ms.map(|ms| ms + stood.as_millis() as u64);
    }
    let finished = written.finish(&save.file);
    if finished.is_err() && ran && (save.stop || save.quit) {
        goes_on = go_on(&mut client);
    }
    let on_disk = finished?;
    let made = Made { end, on_disk, took: began.elapsed(), guest: save.guest(ran) };
    goes_on.map_err(|error| SaveError::Stands(save.file.clone(), error.to_string()))?;
    if save.quit {
        match client.execute("quit", json!({})) {
            Ok(_) | Err(qmp::Error::Closed { .. } | qmp::Error::Lost { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match save.json {
        true => show(format_args!("{:#}\n", save.result(&made)))?,
        false => show(save.summary(&made) + "\n")?,
    }
    Ok(())
}

/// A QEMU winds up for a moment before its guest may go on.
const WIND_UP: Duration = Duration::from_secs(10);

fn go_on(client: &mut Client) -> Result<(), qmp::Error> {
    let end = Instant::now() + WIND_UP;
    loop {
        match client.execute("cont", json!({})) {
            Err(qmp::Error::Refused { description, .. })
                if description.contains("not finalized") && Instant::now() < end =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            answer => return answer.map(drop),
        }
    }
}

/// What came of it.
struct Made {
    end: MigrationInfo,
    /// Bytes that the file takes.
    on_disk: Option<u64>,
    took: Duration,
    guest: Guest,
}

/// What the guest does afterwards.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    GoesOn,
    Stands,
    StoodBefore,
    Ended,
}

impl Save {
    fn guest(&self, ran: bool) -> Guest {
        match (self.quit, ran) {
            (true, _) => Guest::Ended,
            (_, false) => Guest::StoodBefore,
            _ if self.stop => Guest::Stands,
            _ => Guest::GoesOn,
        }
    }

    /// From the settings to the migration's end. Anything but its success is an error.
    fn write(
        &self,
        client: &mut Client,
        before: &Settings,
        uri: &str,
        ran: bool,
        interrupts: &Interrupts,
    ) -> Result<MigrationInfo, Error> {
        self.set(client, before)?;
        if ran
            && !self.stop
            && !self.quit
            && let Some(warning) = disks_left_out(client)?
        {
            say(format_args!("godwit: warning: {warning}"));
        }
        let mut progress = Progress::new("saving");
        let end = self.follow(client, uri, &mut progress, interrupts);
        progress.finish();
        let end = end?;
        let why = || end.error.clone().unwrap_or_else(|| "the machine gave no reason".into());
        match end.status.as_str() {
            "completed" => Ok(end),
            "cancelled" => Err(SaveError::Cancelled(self.file.clone()).into()),
            _ => Err(SaveError::Failed(self.file.clone(), why()).into()),
        }
    }

    fn set(&self, client: &mut Client, before: &Settings) -> Result<(), Error> {
        let mut wanted = vec!["events", "mapped-ram"];
        if self.background {
            wanted.push("background-snapshot");
        }
        if self.channels.is_some() {
            wanted.push("multifd");
        }
        if let Some(name) = wanted.iter().find(|name| !before.capabilities.contains_key(**name)) {
            return Err(SaveError::NotThere(name).into());
        }
        let list: Vec<Value> = before
            .capabilities
            .iter()
            .map(|(name, was)| (name, *was, wanted.contains(&name.as_str())))
            .filter(|(_, was, is)| was != is)
            .map(|(name, _, is)| json!({"capability": name, "state": is}))
            .collect();
        client.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
        let mut parameters = json!({"max-bandwidth": 0, "multifd-compression": "none"});
        if self.stop || self.quit {
            // Nobody gains by pages that are written twice.
            parameters["downtime-limit"] = ANY_STOP.into();
        }
        if let Some(channels) = self.channels {
            parameters["multifd-channels"] = channels.into();
        }
        for (name, value) in UNDONE {
            if before.parameters.contains_key(name) {
                parameters[name] = value.into();
            }
        }
        client.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }

    fn follow(
        &self,
        client: &mut Client,
        uri: &str,
        progress: &mut Progress,
        interrupts: &Interrupts,
    ) -> Result<MigrationInfo, Error> {
        client.execute("migrate", json!({"uri": uri}))?;
        let (mut cancelled, mut hurried) = (false, false);
        let mut last = MigrationInfo::default();
        loop {
            // An event (the next round, the end) cuts the wait short.
            client.event(POLL_TIME)?;
            let now = MigrationInfo::read(&client.execute("query-migrate", json!({}))?);
            progress.show(&now);
            if now.is_over() {
                return Ok(now.or_figures_of(last));
            }
            if now.round > ROUNDS_MAX && !hurried {
                hurried = true;
                progress.say(
                    "the guest dirties memory as fast as it is written; it is stopped for the rest",
                );
                client.execute("migrate-set-parameters", json!({"downtime-limit": ANY_STOP}))?;
            }
            last = now;
            match interrupts.pressed() {
                0 => {}
                1 if cancelled => {}
                1 => {
                    progress.say("cancelling");
                    client.execute("migrate_cancel", json!({}))?;
                    cancelled = true;
                }
                _ => return Err(SaveError::Cancelled(self.file.clone()).into()),
            }
        }
    }

    /// A name that JSON cannot hold is left out.
    fn result(&self, made: &Made) -> Value {
        let guest = match made.guest {
            Guest::GoesOn => "running",
            Guest::Stands | Guest::StoodBefore => "stopped",
            Guest::Ended => "ended",
        };
        let mut result = json!({"memory": made.end.total, "guest": guest,
            "total-time": made.took.as_millis() as u64});
        if let Some(name) = self.file.to_str() {
            result["file"] = name.into();
        }
        for (name, value) in [("on-disk", made.on_disk), ("downtime", made.end.downtime_ms)] {
            if let Some(value) = value {
                result[name] = value.into();
            }
        }
        result
    }

    fn summary(&self, made: &Made) -> String {
        let on_disk =
            made.on_disk.map_or(String::new(), |size| format!(", {} on disk", bytes(size)));
        let stood = match made.end.downtime_ms {
            Some(ms) => format!("stood still for {} and ", milliseconds(ms)),
            None => String::new(),
        };
        let guest = match made.guest {
            Guest::GoesOn => format!("the guest {stood}goes on"),
            Guest::Stands => "the guest stands still (cont lets it go on)".into(),
            Guest::StoodBefore => "the guest stands still, as it did before".into(),
            Guest::Ended => "the machine has ended".into(),
        };
        format!(
            "{}: {} of memory{on_disk}, in {}; {guest}",
            self.file.display(),
            bytes(made.end.total),
            milliseconds(made.took.as_millis() as u64),
        )
    }
}

/// Is there a snapshot that has this name? One that is being used may be replaced.
fn is_snapshot(path: &Path) -> bool {
    let mut first = [0; 4];
    path.metadata().is_ok_and(|is| is.is_file())
        && File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok()
        && u32::from_be_bytes(first) == crate::stream::MAGIC
}

/// What the machine writes to.
struct Written {
    uri: String,
    output: Output,
}

enum Output {
    /// The machine has the descriptor, in this set.
    Passed(OutputFile, i64),
    Named(NamedOutput),
}

impl Written {
    fn begin(save: &Save, destination: Destination, client: &mut Client) -> Result<Self, Error> {
        let not_beside = || SaveError::NotBeside(save.file.clone());
        if !client.can_pass() {
            let (name, output) = destination.open_elsewhere()?;
            let output = Output::Named(output.ok_or_else(not_beside)?);
            return Ok(Self { uri: format!("file:{name}"), output });
        }
        let output = destination.open_temporary(MODE)?.ok_or_else(not_beside)?;
        // A set gives out what is open in just the way that is asked for.
        let path = format!("/proc/self/fd/{}", output.file().as_raw_fd());
        let to_write = File::options().write(true).open(path);
        let to_write = to_write.map_err(|error| SaveError::Temporary(save.file.clone(), error))?;
        let set = client.add_fd(to_write.as_fd())?;
        Ok(Self { uri: format!("file:/dev/fdset/{set}"), output: Output::Passed(output, set) })
    }

    /// The machine needs the descriptor no more.
    fn forget(&self, client: &mut Client) {
        if let Output::Passed(_, set) = &self.output {
            // A machine that has ended has forgotten it.
            let _ = client.execute("remove-fd", json!({"fdset-id": set}));
        }
    }

    /// The file is on disk and gets its name; the bytes that it takes.
    fn finish(self, file: &Path) -> Result<Option<u64>, output::Error> {
        match self.output {
            Output::Passed(output, _) => output.finish().map(drop)?,
            Output::Named(output) => output.finish().map(drop)?,
        }
        Ok(file.metadata().ok().map(|is| is.blocks() * 512))
    }
}

/// What was set at the machine for migrations.
struct Settings {
    capabilities: std::collections::BTreeMap<String, bool>,
    parameters: Map<String, Value>,
}

/// The parameters that this verb may set, beside those of [`UNDONE`].
const BORROWED: [&str; 4] =
    ["max-bandwidth", "multifd-compression", "downtime-limit", "multifd-channels"];

/// What does not go with a snapshot or with its descriptor, and how it is off, where it is known. A set
/// with one descriptor and `direct-io` ends a QEMU that writes by several threads, and its guest.
const UNDONE: [(&str, Off); 4] = [
    ("direct-io", Off::False),
    ("tls-creds", Off::Empty),
    ("x-godwit-base", Off::Empty),
    ("x-godwit-verify", Off::False),
];

#[derive(Clone, Copy)]
enum Off {
    False,
    Empty,
}

impl From<Off> for Value {
    fn from(off: Off) -> Value {
        match off {
            Off::False => false.into(),
            Off::Empty => "".into(),
        }
    }
}

impl Settings {
    fn ask(client: &mut Client) -> Result<Self, Error> {
        let list = client.execute("query-migrate-capabilities", json!({}))?;
        let capabilities = list.as_array().into_iter().flatten().filter_map(|entry| {
            Some((entry["capability"].as_str()?.to_owned(), entry["state"].as_bool()?))
        });
        let capabilities = capabilities.collect();
        let mut parameters = Map::new();
        if let Value::Object(all) = client.execute("query-migrate-parameters", json!({}))? {
            let is_ours = |name: &str| {
                BORROWED.contains(&name) || UNDONE.iter().any(|(undone, _)| *undone == name)
            };
            parameters.extend(all.into_iter().filter(|(name, _)| is_ours(name)));
        }
        Ok(Self { capabilities, parameters })
    }

    fn put_back(&self, client: &mut Client) {
        let done = || -> Result<(), Error> {
            let now = Self::ask(client)?;
            let list: Vec<Value> = self
                .capabilities
                .iter()
                .filter(|(name, state)| now.capabilities.get(*name) != Some(state))
                .map(|(name, state)| json!({"capability": name, "state": state}))
                .collect();
            client.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
            client.execute("migrate-set-parameters", Value::Object(self.parameters.clone()))?;
            Ok(())
        }();
        match done {
            // The machine has ended, which is told elsewhere.
            Ok(()) | Err(Error::Qmp(qmp::Error::Lost { .. } | qmp::Error::Closed { .. })) => {}
            Err(error) => say(format_args!(
                "godwit: warning: what is set for migrations at the machine stays as `save` set it: {error}"
            )),
        }
    }
}
