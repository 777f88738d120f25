//! Commands about the protocol and this program.

use serde_json::{Value as Json, json};

use super::{Answer, Call, Command, NEGOTIATION, Run, all};
use crate::machine::StopCause;
use crate::qmp::error::Error;
use crate::qmp::events;
use crate::qmp::schema::{Shape, Type, optional, required};
use crate::qmp::version::version;

pub static COMMANDS: &[Command] = &[
    Command::new(NEGOTIATION, Run::Now(negotiation)).arguments(&CAPABILITIES),
    Command::new("query-version", Run::Now(|_| Ok(version()))),
    Command::new("query-commands", Run::Now(query_commands)),
    Command::new("query-events", Run::Now(query_events)),
    Command::new("human-monitor-command", Run::Now(human_monitor_command)).arguments(&HUMAN),
    Command::new("quit", Run::Now(quit)),
];

static CAPABILITIES: Shape = Shape::of(&[optional("enable", Type::List(&Type::Enum(&["oob"])))]);
static HUMAN: Shape =
    Shape::of(&[required("command-line", Type::Text), optional("cpu-index", Type::Int)]);

/// The session answers this one itself; it stands here for its schema.
fn negotiation(_call: Call<'_>) -> Answer {
    Ok(json!({}))
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Answer {
    Ok(names.map(|name| json!({"name": name})).collect::<Vec<Json>>().into())
}

fn query_commands(_call: Call<'_>) -> Answer {
    names(all().map(|command| command.name))
}

/// Gone from QEMU since 6.0, kept for clients of its time.
fn query_events(_call: Call<'_>) -> Answer {
    names(events::KINDS.iter().map(|kind| kind.name))
}

fn human_monitor_command(_call: Call<'_>) -> Answer {
    Err(Error::generic(
        "Godwit has no human monitor; use the QMP commands that query-commands lists",
    ))
}

fn quit(call: Call<'_>) -> Answer {
    call.vmm.exit.shutdown(&call.vmm.events, StopCause::HostQmpQuit, 0);
    Ok(json!({}))
}
