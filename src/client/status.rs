//! `godwit status`: one machine at a glance.

use super::error::Error;
use super::figures::{bytes, milliseconds, per_cent};
use super::progress::MigrationInfo;
use super::qmp::{Address, Client, version_text};
use super::terminal::show;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::{Value, json};

#[derive(Args, Debug)]
pub struct Status {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub qmp: Address,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(status: &Status) -> Result<(), Error> {
    let mut client = Client::connect(&status.qmp)?;
    let answers = gather(&mut client)?;
    match status.json {
        true => show(format_args!("{answers:#}\n"))?,
        false => show(page(&answers))?,
    }
    Ok(())
}

/// The queries that make up a glance. What a VMM does not know stays away.
fn gather(client: &mut Client) -> Result<Value, Error> {
    let mut answers = json!({ "version": version_text(&client.version) });
    answers["status"] = client.execute("query-status", json!({}))?;
    for (key, command) in [
        ("name", "query-name"),
        ("uuid", "query-uuid"),
        ("memory", "query-memory-size-summary"),
        ("cpus", "query-cpus-fast"),
        ("migration", "query-migrate"),
        ("chardevs", "query-chardev"),
    ] {
        match client.execute(command, json!({})) {
            Ok(answer) => answers[key] = answer,
            Err(super::qmp::Error::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answers)
}

fn page(answers: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let mut lines = vec![("machine", name(answers)), ("state", text(&answers["status"]["status"]))];
    lines.push(("program", text(&answers["version"])));
    if let Some(cpus) = answers["cpus"].as_array() {
        lines.push(("processors", cpus.len().to_string()));
    }
    if let Some(ram) = answers["memory"]["base-memory"].as_u64() {
        lines.push(("memory", bytes(ram)));
    }
    if answers["migration"]["status"].is_string() {
        lines.push(("migration", migration(&MigrationInfo::read(&answers["migration"]))));
    }
    for chardev in answers["chardevs"].as_array().into_iter().flatten() {
        lines.push((
            "device",
            format!("{} at {}", text(&chardev["label"]), text(&chardev["filename"])),
        ));
    }
    lines.iter().map(|(label, value)| format!("{label:<11} {value}\n")).collect()
}

fn name(answers: &Value) -> String {
    const UNSET: &str = "00000000-0000-0000-0000-000000000000";
    let name = answers["name"]["name"].as_str().unwrap_or("(no name)");
    match answers["uuid"]["UUID"].as_str() {
        Some(uuid) if uuid != UNSET => format!("{name}, {uuid}"),
        _ => name.into(),
    }
}

fn migration(now: &MigrationInfo) -> String {
    match (now.status.as_str(), &now.error) {
        ("completed", _) if now.total_ms.is_none() => "arrived here".into(),
        ("completed", _) => {
            let time = |ms: Option<u64>| ms.map_or("?".into(), milliseconds);
            format!("completed in {}, downtime {}", time(now.total_ms), time(now.downtime_ms))
        }
        (_, Some(error)) => format!("{}: {error}", now.status),
        ("active" | "device" | "pre-switchover", _) => {
            format!("{}, {}", per_cent(now.done()), now.line())
        }
        (status, _) => status.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glance_is_a_few_lines() {
        let answers = json!({
            "version": "QEMU 10.0.2", "status": {"status": "running", "running": true}, "name": {"name": "vm1"},
            "uuid": {"UUID": "00000000-0000-0000-0000-000000000000"}, "cpus": [{}, {}],
            "memory": {"base-memory": 2147483648u64}, "migration": {"status": "failed", "error-desc": "no route"},
            "chardevs": [{"label": "serial0", "filename": "file"}]
        });
        assert_eq!(
            page(&answers),
            "machine     vm1\nstate       running\nprogram     QEMU 10.0.2\nprocessors  2\nmemory      2.0 \
             GiB\nmigration   failed: no route\ndevice      serial0 at file\n"
        );
    }
}
