//! `godwit status`: one machine at a glance.

use super::error::Error;
use super::figures::{bytes, milliseconds, per_cent};
use super::progress::Snapshot;
use super::qmp::{Address, Client, version_text};
use super::terminal::show;
use clap::Args;
use serde_json::{Value, json};

#[derive(Args, Debug)]
pub struct Status {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub qmp: Address,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(status: &Status) -> Result<(), Error> {
    let mut client = Client::connect(&status.qmp)?;
    let facts = gather(&mut client)?;
    match status.json {
        true => show(format_args!("{facts:#}\n")),
        false => show(page(&facts)),
    }
}

/// The queries that make up a glance. What a VMM does not know stays away.
fn gather(client: &mut Client) -> Result<Value, Error> {
    let mut facts = json!({ "version": version_text(&client.version) });
    facts["status"] = client.execute("query-status", json!({}))?;
    for (key, command) in [
        ("name", "query-name"),
        ("uuid", "query-uuid"),
        ("memory", "query-memory-size-summary"),
        ("cpus", "query-cpus-fast"),
        ("migration", "query-migrate"),
        ("chardevs", "query-chardev"),
    ] {
        match client.execute(command, json!({})) {
            Ok(answer) => facts[key] = answer,
            Err(super::qmp::Error::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(facts)
}

fn page(facts: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_string();
    let mut lines = vec![("machine", name(facts)), ("state", text(&facts["status"]["status"]))];
    lines.push(("program", text(&facts["version"])));
    if let Some(cpus) = facts["cpus"].as_array() {
        lines.push(("processors", cpus.len().to_string()));
    }
    if let Some(ram) = facts["memory"]["base-memory"].as_u64() {
        lines.push(("memory", bytes(ram)));
    }
    if facts["migration"]["status"].is_string() {
        lines.push(("migration", migration(&Snapshot::read(&facts["migration"]))));
    }
    for chardev in facts["chardevs"].as_array().into_iter().flatten() {
        lines.push((
            "device",
            format!("{} at {}", text(&chardev["label"]), text(&chardev["filename"])),
        ));
    }
    lines.iter().map(|(label, value)| format!("{label:<11} {value}\n")).collect()
}

fn name(facts: &Value) -> String {
    const UNSET: &str = "00000000-0000-0000-0000-000000000000";
    let name = facts["name"]["name"].as_str().unwrap_or("(no name)");
    match facts["uuid"]["UUID"].as_str() {
        Some(uuid) if uuid != UNSET => format!("{name}, {uuid}"),
        _ => name.into(),
    }
}

fn migration(now: &Snapshot) -> String {
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
        let facts = json!({
            "version": "QEMU 10.0.2", "status": {"status": "running", "running": true}, "name": {"name": "vm1"},
            "uuid": {"UUID": "00000000-0000-0000-0000-000000000000"}, "cpus": [{}, {}],
            "memory": {"base-memory": 2147483648u64}, "migration": {"status": "failed", "error-desc": "no route"},
            "chardevs": [{"label": "serial0", "filename": "file"}]
        });
        assert_eq!(
            page(&facts),
            "machine     vm1\nstate       running\nprogram     QEMU 10.0.2\nprocessors  2\nmemory      2.0 \
             GiB\nmigration   failed: no route\ndevice      serial0 at file\n"
        );
    }
}
