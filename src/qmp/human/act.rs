//! What people tell the machine to do.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::words::{device, file, flag, mebibytes, number, rest, size, switch, text};
use super::{Asked, Does, Error, Human, Param, Value, keyed};
use crate::qmp::commands::find;
use crate::qmp::schema::Type;

pub(super) static TABLE: &[Human] = &[
    says(
        &["announce_self"],
        &[text("interfaces").optional(), text("id").optional()],
        "[interfaces] [id]",
        "Trigger GARP/RARP announcements",
        announce,
    ),
    qmp(
        &["balloon"],
        &[mebibytes("value")],
        "target",
        "request VM to change its memory allocation (in MB)",
        "balloon",
    ),
    qmp(
        &["block_resize"],
        &[device("device"), size("size")],
        "device size",
        "resize a block image",
        "block_resize",
    ),
    says(
        &["calc_dirty_rate"],
        &[
            flag('r', "ring"),
            flag('b', "bitmap"),
            number("calc-time"),
            number("sample-pages").optional(),
        ],
        "[-r] [-b] second [sample_pages_per_GB]",
        "start a round of guest dirty rate measurement",
        measure,
    ),
    says(
        &["cancel_vcpu_dirty_limit"],
        &[number("cpu-index").optional()],
        "[cpu_index]",
        "cancel dirty page rate limit",
        cancel_limit,
    ),
    says(&["chardev-add"], &[rest("args")], "args", "add chardev", |asked| {
        keyed::chardev(asked, None).map(|_| String::new())
    }),
    says(&["chardev-change"], &[text("id"), rest("args")], "id args", "change chardev", |asked| {
        keyed::chardev(asked, Some(asked.args.text("id"))).map(|_| String::new())
    }),
    qmp(&["chardev-remove"], &[text("id")], "id", "remove chardev", "chardev-remove"),
    qmp(
        &["closefd"],
        &[text("fdname")],
        "name",
        "close a file descriptor previously passed via SCM rights",
        "closefd",
    ),
    qmp(&["cont", "c"], &[], "", "resume emulation", "cont"),
    says(
        &["device_add"],
        &[rest("args")],
        "driver[,prop=value][,...]",
        "add device, like -device on the command line",
        |asked| keyed::ask(asked, "device_add", "driver").map(|_| String::new()),
    ),
    qmp(&["device_del"], &[text("id")], "device", "remove device", "device_del"),
    says(
        &["dump-guest-memory"],
        &[
            flag('p', "paging"),
            flag('d', "detach"),
            flag('w', "win"),
            flag('z', "zlib"),
            flag('l', "lzo"),
            flag('s', "snappy"),
            flag('R', "raw"),
            file("filename"),
            number("begin").optional(),
            number("length").optional(),
        ],
        "[-p] [-d] [-z|-l|-s|-w] [-R] filename [begin length]",
        "dump guest memory into file 'filename'",
        dump,
    ),
    qmp(
        &["getfd"],
        &[text("fdname")],
        "name",
        "receive a file descriptor via SCM rights and assign it a name",
        "getfd",
    ),
    Human {
        prefix: "",
        names: &["help", "?"],
        params: &[rest("name").optional()],
        usage: "[cmd]",
        help: "show the help",
        run: Does::Help,
    },
    says(
        &["memsave"],
        &[number("val"), number("size"), text("filename")],
        "addr size file",
        "save to disk virtual memory dump starting at 'addr' of size 'size'",
        |asked| save(asked, "memsave"),
    ),
    says(
        &["migrate"],
        &[flag('d', "detach"), flag('r', "resume"), text("uri")],
        "[-d] [-r] uri",
        "migrate to URI (using -d to not wait for completion)",
        migrate,
    ),
    qmp(&["migrate_cancel"], &[], "", "cancel the current VM migration", "migrate_cancel"),
    qmp(
        &["migrate_continue"],
        &[text("state")],
        "state",
        "Continue migration from the given paused state",
        "migrate-continue",
    ),
    qmp(
        &["migrate_incoming"],
        &[text("uri")],
        "uri",
        "Continue an incoming migration from an -incoming defer",
        "migrate-incoming",
    ),
    says(
        &["migrate_set_capability"],
        &[text("capability"), switch("state")],
        "capability state",
        "Enable/Disable the usage of a capability for migration",
        set_capability,
    ),
    says(
        &["migrate_set_parameter"],
        &[text("parameter"), text("value")],
        "parameter value",
        "Set the parameter for migration",
        set_parameter,
    ),
    says(
        &["netdev_add"],
        &[rest("args")],
        "[user|tap|socket|stream|dgram],id=str[,prop=value][,...]",
        "add host network device",
        |asked| keyed::ask(asked, "netdev_add", "type").map(|_| String::new()),
    ),
    qmp(&["netdev_del"], &[text("id")], "id", "remove host network device", "netdev_del"),
    qmp(&["nmi"], &[], "", "inject an NMI on all processors", "inject-nmi"),
    says(
        &["object_add"],
        &[rest("args")],
        "[qom-type=]type,id=str[,prop=value][,...]",
        "create QOM object",
        |asked| keyed::ask(asked, "object-add", "qom-type").map(|_| String::new()),
    ),
    qmp(&["object_del"], &[text("id")], "id", "destroy QOM object", "object-del"),
    says(
        &["pmemsave"],
        &[number("val"), number("size"), text("filename")],
        "addr size file",
        "save to disk physical memory dump starting at 'addr' of size 'size'",
        |asked| save(asked, "pmemsave"),
    ),
    qmp(&["quit", "q"], &[], "", "quit the emulator", "quit"),
    says(
        &["set_link"],
        &[text("name"), switch("up")],
        "name on|off",
        "change the link status of a network adapter",
        |asked| {
            let (name, up) = (asked.args.text("name"), asked.args.bool("up"));
            asked.ask("set_link", &json!({"name": name, "up": up})).map(|_| String::new())
        },
    ),
    says(
        &["set_vcpu_dirty_limit"],
        &[number("dirty-rate"), number("cpu-index").optional()],
        "dirty_rate [cpu_index]",
        "set dirty page rate limit",
        limit,
    ),
    says(
        &["snapshot_blkdev"],
        &[flag('n', "reuse"), device("device"), text("file"), text("format").optional()],
        "[-n] device new-image-file [format]",
        "initiates a live snapshot of device",
        snapshot,
    ),
    qmp(&["stop", "s"], &[], "", "stop emulation", "stop"),
    qmp(&["system_powerdown"], &[], "", "send system power down event", "system_powerdown"),
    qmp(&["system_reset"], &[], "", "reset the system", "system_reset"),
    qmp(&["system_wakeup"], &[], "", "wakeup guest from suspend", "system_wakeup"),
];

const fn qmp(
    names: &'static [&'static str],
    params: &'static [Param],
    usage: &'static str,
    help: &'static str,
    does: &'static str,
) -> Human {
    Human { prefix: "", names, params, usage, help, run: Does::Qmp(does) }
}

const fn says(
    names: &'static [&'static str],
    params: &'static [Param],
    usage: &'static str,
    help: &'static str,
    says: fn(&Asked<'_>) -> Result<String, Error>,
) -> Human {
    Human { prefix: "", names, params, usage, help, run: Does::Says(says) }
}

fn copied(asked: &Asked<'_>, names: &[(&str, &str)]) -> Map<String, Json> {
    let given = asked.args.to_json();
    let one = |(from, to): &(&str, &str)| Some(((*to).to_owned(), given.get(*from)?.clone()));
    names.iter().filter_map(one).collect()
}

fn done(asked: &Asked<'_>, name: &str, arguments: Map<String, Json>) -> Result<String, Error> {
    asked.ask(name, &Json::Object(arguments)).map(|_| String::new())
}

fn announce(asked: &Asked<'_>) -> Result<String, Error> {
    let of = asked.query("query-migrate-parameters")?;
    let mut arguments = json!({
        "initial": of["announce-initial"], "max": of["announce-max"],
        "rounds": of["announce-rounds"], "step": of["announce-step"],
    });
    if let Some(interfaces) = asked.args.text_if_given("interfaces") {
        arguments["interfaces"] = interfaces.split(',').collect();
    }
    if let Some(id) = asked.args.text_if_given("id") {
        arguments["id"] = id.into();
    }
    asked.ask("announce-self", &arguments).map(|_| String::new())
}

fn measure(asked: &Asked<'_>) -> Result<String, Error> {
    let mut arguments =
        copied(asked, &[("calc-time", "calc-time"), ("sample-pages", "sample-pages")]);
    let mode = match (asked.args.has("ring"), asked.args.has("bitmap")) {
        (true, true) => {
            return Err(Error::generic("Either dirty ring or dirty bitmap can be specified!"));
        }
        (true, false) => "dirty-ring",
        (false, true) => "dirty-bitmap",
        (false, false) => "page-sampling",
    };
    arguments.insert("mode".into(), mode.into());
    done(asked, "calc-dirty-rate", arguments)?;
    Ok(format!(
        "Starting dirty rate measurement with period {} seconds\r\n[Please use 'info dirty_rate' to check results]\r\n",
        asked.args.int("calc-time")
    ))
}

const LIMITS: &str =
    "[Please use 'info vcpu_dirty_limit' to query dirty limit for virtual CPU]\r\n";

fn limit(asked: &Asked<'_>) -> Result<String, Error> {
    let names = [("dirty-rate", "dirty-rate"), ("cpu-index", "cpu-index")];
    done(asked, "set-vcpu-dirty-limit", copied(asked, &names)).map(|_| LIMITS.into())
}

fn cancel_limit(asked: &Asked<'_>) -> Result<String, Error> {
    let names = [("cpu-index", "cpu-index")];
    done(asked, "cancel-vcpu-dirty-limit", copied(asked, &names)).map(|_| LIMITS.into())
}

fn save(asked: &Asked<'_>, name: &str) -> Result<String, Error> {
    let names = [("val", "val"), ("size", "size"), ("filename", "filename")];
    done(asked, name, copied(asked, &names))
}

fn dump(asked: &Asked<'_>) -> Result<String, Error> {
    let has = |name: &&str| asked.args.has(name);
    let chosen: Vec<_> = ["zlib", "lzo", "snappy", "win"].into_iter().filter(has).collect();
    let raw = if asked.args.has("raw") { "-raw" } else { "" };
    let format = match chosen[..] {
        [] => "elf".to_owned(),
        ["win"] => "win-dmp".to_owned(),
        [how] => format!("kdump{raw}-{how}"),
        _ => return Err(Error::generic("only one of '-z|-l|-s|-w' can be set")),
    };
    let mut arguments = copied(asked, &[("begin", "begin"), ("length", "length")]);
    arguments.insert("paging".into(), asked.args.has("paging").into());
    arguments.insert("detach".into(), asked.args.has("detach").into());
    arguments.insert("protocol".into(), format!("file:{}", asked.args.text("filename")).into());
    arguments.insert("format".into(), format.into());
    done(asked, "dump-guest-memory", arguments)
}

fn snapshot(asked: &Asked<'_>) -> Result<String, Error> {
    let names = [("device", "device"), ("file", "snapshot-file"), ("format", "format")];
    let mut arguments = copied(asked, &names);
    if asked.args.has("reuse") {
        arguments.insert("mode".into(), "existing".into());
    }
    done(asked, "blockdev-snapshot-sync", arguments)
}

/// Between two looks at a migration that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Without `-d` a terminal waits until the guest has left or stays, or until it stands still for what
/// is typed next.
fn migrate(asked: &Asked<'_>) -> Result<String, Error> {
    let mut arguments = json!({"uri": asked.args.text("uri")});
    if asked.args.has("resume") {
        arguments["resume"] = true.into();
    }
    asked.ask("migrate", &arguments)?;
    if asked.args.has("detach") {
        return Ok(String::new());
    }
    if asked.history.is_none() {
        return Ok("terminal does not allow synchronous migration, continuing detached\r\n".into());
    }
    while !asked.vmm.exit.is_requested() {
        let state = asked.query("query-migrate")?;
        match state["status"].as_str() {
            Some("failed") => {
                let why = state["error-desc"].as_str().unwrap_or("the migration failed");
                return Err(Error::generic(why));
            }
            Some("setup" | "active" | "device" | "cancelling") => std::thread::sleep(LOOK_AGAIN),
            // `pre-switchover` ends by `migrate_continue`.
            _ => break,
        }
    }
    Ok(String::new())
}

fn set_capability(asked: &Asked<'_>) -> Result<String, Error> {
    let (name, state) = (asked.args.text("capability"), asked.args.bool("state"));
    let change = json!({"capabilities": [{"capability": name, "state": state}]});
    match asked.query("query-migrate-capabilities")?.as_array() {
        Some(all) if !all.iter().any(|one| one["capability"] == name) => Err(unknown(name)),
        _ => asked.ask("migrate-set-capabilities", &change).map(|_| String::new()),
    }
}

fn unknown(value: &str) -> Error {
    Error::generic(format_args!("invalid parameter value: {value}"))
}

/// These count MiB where no suffix follows, as they did before others came.
const IN_MEBIBYTES: [&str; 2] = ["max-bandwidth", "avail-switchover-bandwidth"];

fn set_parameter(asked: &Asked<'_>) -> Result<String, Error> {
    let (name, text) = (asked.args.text("parameter"), asked.args.text("value"));
    let command = find("migrate-set-parameters").ok_or_else(|| unknown(name))?;
    let member = command.arguments.members.iter().find(|member| member.name == name);
    let of = member.ok_or_else(|| unknown(name))?.of;
    if matches!(of, Type::List(_)) {
        let why = format_args!("The {name} parameter can only be set through QMP");
        return Err(Error::generic(why));
    }
    let value = if IN_MEBIBYTES.contains(&name) {
        let bytes = crate::args::value::size(text, 1 << 20)
            .map_err(|_| Error::generic(format_args!("Invalid size {text}")))?;
        Value::Number(bytes.to_string().into())
    } else {
        keyed::typed(Value::Text(text.to_owned()), &of)
    };
    asked.ask_with(command.name, &[(name.to_owned(), value)]).map(|_| String::new())
}
