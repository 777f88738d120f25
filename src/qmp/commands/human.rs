//! `human-monitor-command`: the few commands of QEMU's human monitor that there are. A command that
//! does not exist is an answer, not an error, as in QEMU.

use serde_json::Value as Json;

use super::command::{Answer, Call, Command, Run};
use super::find;
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    // A command inside may change the machine.
    Command::new("human-monitor-command", Run::Blocking(human_monitor_command))
        .arguments(&LINE)
        .returns(Type::Text)
        .does("Runs a command of the human monitor and answers with what it says; try help."),
];

static LINE: Shape = Shape::of(&[
    required("command-line", Type::Text).means("the command with its words"),
    optional("cpu-index", Type::Int).means("the processor that it is about (0)"),
]);

/// A command that people type.
struct Human {
    /// What stands in front of its names.
    prefix: &'static str,
    names: &'static [&'static str],
    help: &'static str,
    run: Does,
}

enum Does {
    /// The QMP command of this name, without arguments, which says nothing.
    Qmp(&'static str),
    Says(fn(Call<'_>) -> Result<String, Error>),
    Help,
}

const INFO: &str = "info ";

static TABLE: &[Human] = &[
    command(&["cont", "c"], "resume emulation", Does::Qmp("cont")),
    command(&["help", "?"], "show the help", Does::Help),
    command(&["migrate_cancel"], "cancel the current VM migration", Does::Qmp("migrate_cancel")),
    command(&["nmi"], "inject an NMI on all processors", Does::Qmp("inject-nmi")),
    command(&["quit", "q"], "quit the emulator", Does::Qmp("quit")),
    command(&["stop", "s"], "stop emulation", Does::Qmp("stop")),
    command(&["system_powerdown"], "send system power down event", Does::Qmp("system_powerdown")),
    command(&["system_reset"], "reset the system", Does::Qmp("system_reset")),
    info(&["balloon"], "show balloon information", |call| {
        ask(call, "query-balloon")
            .map(|answer| format!("balloon: actual={}\r\n", megabytes(&answer)))
    }),
    info(&["chardev"], "show the character devices", chardevs),
    info(&["cpus"], "show infos for each CPU", cpus),
    info(&["iothreads"], "show iothreads", io_threads),
    info(&["kvm"], "show KVM information", |_| Ok("kvm support: enabled\r\n".into())),
    info(&["mice"], "show which guest mouse is receiving events", |_| {
        Ok("No mouse devices connected\r\n".into())
    }),
    info(&["name"], "show the current VM name", |call| field(call, "query-name", "name")),
    info(&["network"], "show the network state", |call| Ok(call.vmm.nets.describe())),
    info(&["pci"], "show PCI info", |_| Ok(String::new())),
    info(&["status"], "show the current VM status", status),
    info(&["uuid"], "show the current VM UUID", |call| field(call, "query-uuid", "UUID")),
    info(&["version"], "show the version", version),
];

const fn command(names: &'static [&'static str], help: &'static str, run: Does) -> Human {
    Human { prefix: "", names, help, run }
}

const fn info(
    names: &'static [&'static str],
    help: &'static str,
    says: fn(Call<'_>) -> Result<String, Error>,
) -> Human {
    Human { prefix: INFO, names, help, run: Does::Says(says) }
}

impl Human {
    fn help(&self) -> String {
        format!("{}{}  -- {}\r\n", self.prefix, self.names.join("|"), self.help)
    }
}

fn human_monitor_command(call: Call<'_>) -> Answer {
    if let Some(index) = call.args.int_if_given("cpu-index")
        && !call.vmm.guest.vcpus().iter().any(|vcpu| i64::from(vcpu.index) == index)
    {
        return Err(Error::generic("Parameter 'cpu-index' expects a CPU number"));
    }
    let words: Vec<&str> = call.args.text("command-line").split_whitespace().collect();
    Ok(answer(call, &words).into())
}

fn answer(call: Call<'_>, words: &[&str]) -> String {
    let (prefix, name, rest) = match words {
        [] => return String::new(),
        ["info"] | ["help" | "?", "info"] => return help(INFO),
        ["help" | "?", "info", name, ..] => {
            return look_up(INFO, name)
                .map_or_else(|| format!("unknown command: 'info {name}'\r\n"), Human::help);
        }
        ["info", name, rest @ ..] => (INFO, *name, rest),
        [name, rest @ ..] => ("", *name, rest),
    };
    let Some(human) = look_up(prefix, name) else {
        return format!("unknown command: '{prefix}{name}'\r\n");
    };
    let said = match (&human.run, rest) {
        (Does::Help, []) => return help(""),
        (Does::Help, [name, ..]) => {
            return match look_up("", name) {
                Some(human) => human.help(),
                None => format!("unknown command: '{name}'\r\n"),
            };
        }
        (_, [_, ..]) => {
            let (names, first) = (human.names.join("|"), human.names[0]);
            return format!(
                "{names}: extraneous characters at the end of line\r\nTry \"help {prefix}{first}\" for more information\r\n"
            );
        }
        (Does::Qmp(name), []) => ask(call, name).map(|_| String::new()),
        (Does::Says(says), []) => says(call),
    };
    said.unwrap_or_else(|error| format!("Error: {}\r\n", error.desc))
}

fn look_up(prefix: &str, name: &str) -> Option<&'static Human> {
    TABLE.iter().find(|human| human.prefix == prefix && human.names.contains(&name))
}

fn help(prefix: &str) -> String {
    let mut text: String =
        TABLE.iter().filter(|human| human.prefix == prefix).map(Human::help).collect();
    if prefix.is_empty() {
        text += "info [subcommand] -- show various information about the system state\r\n";
    }
    text
}

/// What the QMP command answers, with all that it means: a moment that forbids it forbids it here.
fn ask(call: Call<'_>, name: &str) -> Answer {
    let command = find(name).ok_or_else(|| Error::generic(format_args!("no command {name}")))?;
    command.call(call.vmm, call.monitor, &[])
}

fn field(call: Call<'_>, command: &str, name: &str) -> Result<String, Error> {
    let answer = ask(call, command)?;
    Ok(answer[name].as_str().map_or(String::new(), |text| format!("{text}\r\n")))
}

fn status(call: Call<'_>) -> Result<String, Error> {
    let state = call.vmm.guest.run_state();
    Ok(match (state.is_running(), state.name()) {
        (true, _) => "VM status: running\r\n".into(),
        (false, "paused") => "VM status: paused\r\n".into(),
        (false, why) => format!("VM status: paused ({why})\r\n"),
    })
}

fn version(call: Call<'_>) -> Result<String, Error> {
    let answer = ask(call, "query-version")?;
    let number = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
    let package = answer["package"].as_str().unwrap_or("");
    Ok(format!("{}.{}.{}{package}\r\n", number("major"), number("minor"), number("micro")))
}

fn cpus(call: Call<'_>) -> Result<String, Error> {
    let line = |cpu: &Json| {
        let mark = if cpu["cpu-index"] == 0 { '*' } else { ' ' };
        format!("{mark} CPU #{}: thread_id={}\r\n", cpu["cpu-index"], cpu["thread-id"])
    };
    Ok(ask(call, "query-cpus-fast")?.as_array().into_iter().flatten().map(line).collect())
}

/// Of guest memory, in MiB.
fn megabytes(balloon: &Json) -> u64 {
    balloon["actual"].as_u64().unwrap_or(0) >> 20
}

fn io_threads(call: Call<'_>) -> Result<String, Error> {
    let text = |thread: &Json| {
        let id = thread["id"].as_str().unwrap_or("");
        let line = |name| format!("  {name}={}\r\n", thread[name]);
        let tuned = ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"].map(line).concat();
        format!("{id}:\r\n  thread_id={}\r\n{tuned}", thread["thread-id"])
    };
    Ok(ask(call, "query-iothreads")?.as_array().into_iter().flatten().map(text).collect())
}

fn chardevs(call: Call<'_>) -> Result<String, Error> {
    let text = |value: &Json| value.as_str().unwrap_or("").to_owned();
    let line = |device: &Json| {
        format!("{}: filename={}\r\n", text(&device["label"]), text(&device["filename"]))
    };
    Ok(ask(call, "query-chardev")?.as_array().into_iter().flatten().map(line).collect())
}
