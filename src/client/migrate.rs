//! `godwit migrate`: moves a running machine, and shows how.

use super::error::Error;
use super::figures::{
    bytes, bytes_per_second, milliseconds, parse_bytes, parse_rate, parse_time, per_cent,
};
use super::interrupt::Interrupts;
use super::progress::{MigrationInfo, Progress};
use super::qmp::{self, Address, Client};
use super::table::Table;
use super::terminal::show;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct Migrate {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub qmp: Address,
    /// Where to: tcp:HOST:PORT, unix:PATH, fd:NAME, exec:COMMAND or file:PATH
    #[arg(value_parser = OsStringValueParser::new().try_map(uri))]
    pub uri: String,
    /// Also prepare the target: its monitor, when it was started with -incoming defer
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub target_qmp: Option<Address>,
    #[command(flatten)]
    pub how: How,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// It goes to the machine in JSON.
fn uri(word: OsString) -> Result<String, String> {
    word.into_string().map_err(|_| {
        "it is not UTF-8, and QMP carries no other names; a link of another name would do".into()
    })
}

/// How to migrate.
#[derive(Args, Clone, Debug, Default)]
pub struct How {
    /// Send what changed in a page, not the page; CACHE is the memory for old pages (default: as it
    /// is set, 64M)
    #[arg(long, value_name = "CACHE", num_args = 0..=1, require_equals = true, value_parser = parse_bytes)]
    pub xbzrle: Option<Option<u64>>,
    /// Use N connections
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub multifd: Option<u8>,
    /// Write a file in which each page has a fixed place, with file:PATH
    #[arg(long, conflicts_with = "xbzrle")]
    pub mapped_ram: bool,
    /// Write the guest as it is now, with file:PATH or exec:COMMAND, while it runs on here
    #[arg(long, conflicts_with_all = ["xbzrle", "multifd", "auto_converge", "verify", "max_bandwidth", "downtime_limit"])]
    pub background: bool,
    /// Send no more than this in a second: 125M, 1Gbit; 0 is as much as the network takes
    #[arg(long, value_name = "RATE", default_value = "0", value_parser = parse_rate)]
    pub max_bandwidth: u64,
    /// Let the guest stand still no longer than this: 300ms, 0.5s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub downtime_limit: Option<Duration>,
    /// Slow the guest down when it dirties memory faster than it can be sent
    #[arg(long)]
    pub auto_converge: bool,
    /// Compare the RAM of both sides before the guest goes on (between two Godwits)
    #[arg(long)]
    pub verify: bool,
}

/// The parameter behind [`How::verify`].
const VERIFY: &str = "x-godwit-verify";
const POLL_TIME: Duration = Duration::from_millis(100);

/// Runs the verb; what it prints on stdout is the result.
pub fn run(migrate: &Migrate) -> Result<(), Error> {
    let interrupts = Interrupts::count()?;
    let mut source = Client::connect_for(&migrate.qmp, &interrupts)?;
    migrate.how.prepare(&mut source)?;
    if let Some(address) = &migrate.target_qmp {
        let mut target = Client::connect_for(address, &interrupts)?;
        migrate.how.prepare(&mut target)?;
        listen(&mut target, &migrate.uri)?;
    }
    let mut progress = Progress::new("migrating");
    if migrate.how.background
        && let Some(warning) = disks_left_out(&mut source)?
    {
        progress.say(&warning);
    }
    let end = start(&mut source, &migrate.uri, &mut progress, &interrupts, None);
    progress.finish();
    let (answer, end) = end?;
    if migrate.json {
        show(format_args!("{answer:#}\n"))?;
    }
    match end.status.as_str() {
        "completed" if !migrate.json => show(summary(&end))?,
        "completed" => {}
        "cancelled" => return Err(Error::Cancelled),
        _ => {
            return Err(Error::Failed(
                end.error.unwrap_or_else(|| "the machine gave no reason".into()),
            ));
        }
    }
    Ok(())
}

/// What the guest writes goes on to its disks while its memory is that of a moment.
pub(super) fn disks_left_out(source: &mut Client) -> Result<Option<String>, Error> {
    let disks = source.execute("query-block", json!({}))?;
    let written =
        disks.as_array().into_iter().flatten().filter(|disk| disk["inserted"]["ro"] == false);
    let name = |disk: &Value| {
        let named =
            ["device", "qdev"].map(|key| disk[key].as_str().filter(|name| !name.is_empty()));
        named.into_iter().flatten().next().unwrap_or("?").to_owned()
    };
    let names: Vec<_> = written.map(name).collect();
    Ok((!names.is_empty()).then(|| {
        format!(
            "the disks are not in the snapshot, and the guest goes on writing to them: {}. Each needs an overlay of the \
             same moment (blockdev-snapshot-sync while the guest stands still)",
            names.join(", ")
        )
    }))
}

/// Makes the target wait for the guest. It may do so since an earlier try that the source refused.
fn listen(target: &mut Client, uri: &str) -> Result<(), Error> {
    let refused = match target.execute("migrate-incoming", json!({"uri": uri})) {
        Err(refused @ qmp::Error::Refused { .. }) => refused,
        answer => return answer.map(drop).map_err(Error::from),
    };
    let state = target.execute("query-migrate", json!({}))?;
    if state["status"] != "setup" {
        return Err(refused.into());
    }
    let places: Vec<String> =
        state["socket-address"].as_array().into_iter().flatten().filter_map(place).collect();
    match places.iter().any(|place| is_at(uri, place)) {
        true => Ok(()),
        false if places.is_empty() => Err(refused.into()),
        false => Err(Error::WaitsElsewhere(places.join(", "))),
    }
}

/// A socket's address as a URI.
fn place(address: &Value) -> Option<String> {
    let text = |key: &str| address[key].as_str();
    match text("type")? {
        "inet" if text("host")?.contains(':') => {
            Some(format!("tcp:[{}]:{}", text("host")?, text("port")?))
        }
        "inet" => Some(format!("tcp:{}:{}", text("host")?, text("port")?)),
        "unix" => Some(format!("unix:{}", text("path")?)),
        _ => None,
    }
}

/// Does what listens at `place` hear who connects to `uri`? A host may have many names, of which it
/// listens at one or at all.
fn is_at(uri: &str, place: &str) -> bool {
    let port = |uri: &str| {
        let (_, port) = uri.strip_prefix("tcp:")?.rsplit_once(':')?;
        Some(port.split(',').next().unwrap_or(port).to_owned())
    };
    match (port(uri), port(place)) {
        (Some(one), Some(other)) => one == other,
        _ => uri == place,
    }
}

impl How {
    /// Sets capabilities and parameters of one side.
    pub(crate) fn prepare(&self, client: &mut Client) -> Result<(), Error> {
        let mut wanted = vec![
            ("events", true),
            ("xbzrle", self.xbzrle.is_some()),
            ("multifd", self.multifd.is_some()),
            ("auto-converge", self.auto_converge),
        ];
        // Younger than the others: a QEMU has the first since 9.0, the second since 6.0.
        for (name, on) in
            [("mapped-ram", self.mapped_ram), ("background-snapshot", self.background)]
        {
            if on || has_capability(client, name)? {
                wanted.push((name, on));
            }
        }
        let list: Vec<Value> = wanted
            .iter()
            .map(|(name, state)| json!({"capability": name, "state": state}))
            .collect();
        client.execute("migrate-set-capabilities", json!({"capabilities": list}))?;
        let mut parameters = json!({"max-bandwidth": self.max_bandwidth});
        if let Some(time) = self.downtime_limit {
            parameters["downtime-limit"] = json!(time.as_millis() as u64);
        }
        if let Some(Some(cache)) = self.xbzrle {
            parameters["xbzrle-cache-size"] = json!(power_of_two_below(cache));
        }
        if let Some(channels) = self.multifd {
            parameters["multifd-channels"] = json!(channels);
        }
        match has_parameter(client, VERIFY)? {
            true => parameters[VERIFY] = json!(self.verify),
            false if self.verify => return Err(Error::NotThere("comparison of RAM (--verify)")),
            false => {}
        }
        client.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }
}

fn has_capability(client: &mut Client, name: &str) -> Result<bool, Error> {
    let list = client.execute("query-migrate-capabilities", json!({}))?;
    Ok(list.as_array().is_some_and(|list| list.iter().any(|entry| entry["capability"] == name)))
}

fn has_parameter(client: &mut Client, name: &str) -> Result<bool, Error> {
    Ok(client.execute("query-migrate-parameters", json!({}))?.get(name).is_some())
}

/// QEMU takes nothing else; a page is the least.
fn power_of_two_below(bytes: u64) -> u64 {
    1 << bytes.max(4096).ilog2()
}

/// Starts a migration and follows it to its end, whatever that is. `patience`: cancel it after so
/// long.
pub(crate) fn start(
    source: &mut Client,
    uri: &str,
    progress: &mut Progress,
    interrupts: &Interrupts,
    patience: Option<Duration>,
) -> Result<(Value, MigrationInfo), Error> {
    source.execute("migrate", json!({"uri": uri}))?;
    let begin = Instant::now();
    let pressed_before = interrupts.pressed();
    let mut advice = Advice::default();
    let mut cancelled = false;
    let mut last = MigrationInfo::default();
    loop {
        // An event (the next round, the end) cuts the wait short.
        source.event(POLL_TIME)?;
        let answer = source.execute("query-migrate", json!({}))?;
        let now = MigrationInfo::read(&answer);
        progress.show(&now);
        if now.is_over() {
            return Ok((answer, now.or_figures_of(last)));
        }
        last = now.clone();
        if let Some(text) = advice.on(&now, begin.elapsed()) {
            progress.say(&text);
        }
        let late = patience.is_some_and(|patience| begin.elapsed() > patience);
        if !cancelled && (late || interrupts.pressed() > pressed_before) {
            progress.say("cancelling");
            source.execute("migrate_cancel", json!({}))?;
            cancelled = true;
        }
        if interrupts.pressed() > pressed_before + 1 {
            return Err(Error::Cancelled);
        }
    }
}

/// Says once what would help a migration that cannot end.
#[derive(Default)]
struct Advice {
    given: bool,
    /// The most that was left to send when a later round began: about the guest's working set.
    working_set: u64,
    round: u64,
}

/// Not before the rates have settled, and soon enough to be of use.
const ADVICE_TIME: Duration = Duration::from_secs(4);

impl Advice {
    fn on(&mut self, now: &MigrationInfo, elapsed: Duration) -> Option<String> {
        if now.round > self.round {
            self.round = now.round;
            if now.round > 1 {
                self.working_set = self.working_set.max(now.remaining);
            }
        }
        if let Some(advice) = now.advice.clone().filter(|_| !self.given) {
            // A Godwit knows more about itself than can be seen from here.
            self.given = true;
            return Some(advice);
        }
        let losing =
            now.round > 2 && now.throughput > 0.0 && now.dirty_rate >= 0.95 * now.throughput;
        if self.given || elapsed < ADVICE_TIME || !losing || now.throttle_per_cent.is_some() {
            return None;
        }
        let rates = format!(
            "{} dirtied, {} sent",
            bytes_per_second(now.dirty_rate),
            bytes_per_second(now.throughput)
        );
        let cache = self.working_set.max(1 << 20).next_power_of_two();
        let help = match now.xbzrle {
            None => {
                format!(
                    "--xbzrle={} or --auto-converge may help, or more --max-bandwidth",
                    size_word(cache)
                )
            }
            Some(x) if x.miss_rate > 0.1 && cache > x.cache_bytes => {
                format!(
                    "the XBZRLE cache is too small for it: --xbzrle={} would do",
                    size_word(cache)
                )
            }
            Some(_) => return None,
        };
        self.given = true;
        Some(format!("the guest dirties memory faster than it is sent ({rates}); {help}"))
    }
}

/// A power of two as it is typed.
fn size_word(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{}G", bytes >> 30),
        _ => format!("{}M", bytes >> 20),
    }
}

/// What happened, for people.
pub(crate) fn summary(end: &MigrationInfo) -> Table {
    let mut table = Table::new(["migration", "completed"]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("total time", end.total_ms.map_or("?".into(), milliseconds));
    row("downtime", end.downtime_ms.map_or("?".into(), milliseconds));
    row("rounds", end.round.to_string());
    row("guest RAM", bytes(end.total));
    row("sent", bytes(end.transferred));
    row("throughput", bytes_per_second(end.throughput));
    row("pages sent whole", end.pages_whole.to_string());
    row("pages of zeros", end.pages_zero.to_string());
    if let Some(xbzrle) = end.xbzrle {
        row("pages sent as changes", xbzrle.pages.to_string());
        row("bytes of changes", bytes(xbzrle.bytes));
        row("cache hits", hits(&xbzrle));
    }
    table
}

/// Over the whole migration.
pub(crate) fn hits(xbzrle: &super::progress::Xbzrle) -> String {
    match xbzrle.pages + xbzrle.misses {
        0 => "none".into(),
        asked => per_cent(xbzrle.pages as f64 / asked as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Xbzrle;
    use super::*;

    #[test]
    fn a_target_that_waits_already_is_told_from_one_that_waits_elsewhere() {
        let tcp = place(&json!({"type": "inet", "host": "0.0.0.0", "port": "4444"})).unwrap();
        assert!(is_at("tcp:peer:4444", &tcp) && is_at("tcp:[fe80::1]:4444,ipv6=on", &tcp));
        assert!(!is_at("tcp:peer:4445", &tcp) && !is_at("unix:/m", &tcp));
        let unix = place(&json!({"type": "unix", "path": "/m"})).unwrap();
        assert!(is_at("unix:/m", &unix) && !is_at("unix:/n", &unix));
        let ipv6 = place(&json!({"type": "inet", "host": "::", "port": "1"})).unwrap();
        assert_eq!(ipv6, "tcp:[::]:1");
        assert!(!is_at("exec:cat", &ipv6));
    }

    #[test]
    fn cache_sizes_become_powers_of_two() {
        assert_eq!(power_of_two_below(3 << 20), 2 << 20);
        assert_eq!(power_of_two_below(64 << 20), 64 << 20);
        assert_eq!(power_of_two_below(1), 4096);
    }

    #[test]
    fn a_migration_that_cannot_end_is_told_what_would_help() {
        let mut losing = MigrationInfo {
            round: 3,
            remaining: 200 << 20,
            throughput: 125e6,
            dirty_rate: 400e6,
            ..MigrationInfo::default()
        };
        let mut advice = Advice::default();
        assert_eq!(advice.on(&losing, Duration::from_secs(1)), None, "too early");
        let said = advice.on(&losing, Duration::from_secs(5)).unwrap();
        assert!(said.contains("--xbzrle=256M or --auto-converge"), "{said}");
        assert_eq!(advice.on(&losing, Duration::from_secs(6)), None, "once");

        losing.xbzrle = Some(Xbzrle { cache_bytes: 64 << 20, miss_rate: 0.9, ..Xbzrle::default() });
        let said = Advice::default().on(&losing, Duration::from_secs(5)).unwrap();
        assert!(said.contains("too small for it: --xbzrle=256M would do"), "{said}");
    }
}
