//! Commands about the protocol and this program.

use serde_json::{Value as Json, json};

use super::command::{Answer, Call, Command, Run};
use super::{NEGOTIATION, all};
use crate::args::{self, ParameterType};
use crate::machine::StopCause;
use crate::qmp::error::Error;
use crate::qmp::events;
use crate::qmp::introspect::schema as introspection;
use crate::qmp::schema::{Shape, Type, Union, optional, required};
use crate::qmp::version::version;

pub(crate) static COMMANDS: &[Command] = &[
    Command::new(NEGOTIATION, Run::Now(negotiation))
        .arguments(&CAPABILITIES)
        .does("Begins the conversation; nothing else is answered before it."),
    Command::new("query-version", Run::Now(|_| Ok(version())))
        .returns(Type::Object(&VERSION))
        .does("Tells which QEMU's protocol this is, and which program speaks it."),
    Command::new("query-commands", Run::Now(query_commands))
        .returns(Type::List(&Type::Object(&NAMED)))
        .does("Lists the commands."),
    Command::new("query-events", Run::Now(query_events))
        .returns(Type::List(&Type::Object(&NAMED)))
        .does("Lists the events."),
    Command::new("query-qmp-schema", Run::Now(|_| Ok(introspection().into())))
        .returns(Type::List(&Type::Object(&ENTRY)))
        .does("Describes all commands and events, with the types of what goes in and comes out."),
    Command::new("query-command-line-options", Run::Now(query_command_line_options))
        .arguments(&OPTION)
        .returns(Type::List(&Type::Object(&OPTION_INFO)))
        .does("Lists the options of the command line that take several values."),
    Command::new("quit", Run::Now(quit)).does("Ends the machine at once."),
];

static CAPABILITIES: Shape = Shape::of(&[optional("enable", Type::List(&Type::Enum(&["oob"])))
    .means("what the client wants of the greeting's capabilities")]);
static VERSION: Shape =
    Shape::of(&[required("qemu", Type::Object(&TRIPLE)), required("package", Type::Text)]);
static TRIPLE: Shape = Shape::of(&[
    required("major", Type::Int),
    required("minor", Type::Int),
    required("micro", Type::Int),
]);
static NAMED: Shape = Shape::of(&[required("name", Type::Text)]);
static OPTION: Shape =
    Shape::of(&[optional("option", Type::Text).means("only this one, without its dash")]);
static OPTION_INFO: Shape = Shape::of(&[
    required("option", Type::Text),
    required("parameters", Type::List(&Type::Object(&PARAMETER))),
]);
static PARAMETER: Shape = Shape::of(&[
    required("name", Type::Text),
    required("type", Type::Enum(ParameterType::NAMES)),
    optional("help", Type::Text),
    optional("default", Type::Text),
]);

/// The schema of the schema.
static ENTRY: Shape = Shape::tagged(
    &[
        required("name", Type::Text),
        required(
            "meta-type",
            Type::Enum(&["builtin", "enum", "array", "object", "alternate", "command", "event"]),
        ),
        optional("features", Type::List(&Type::Text)),
    ],
    Union {
        tag: "meta-type",
        branches: &[
            ("builtin", &Shape::of(&[required("json-type", Type::Enum(JSON_TYPES))])),
            (
                "enum",
                &Shape::of(&[
                    required("members", Type::List(&Type::Object(&ENUM_MEMBER))),
                    required("values", Type::List(&Type::Text)),
                ]),
            ),
            ("array", &Shape::of(&[required("element-type", Type::Text)])),
            (
                "object",
                &Shape::of(&[
                    required("members", Type::List(&Type::Object(&OBJECT_MEMBER))),
                    optional("tag", Type::Text),
                    optional("variants", Type::List(&Type::Object(&VARIANT))),
                ]),
            ),
            (
                "alternate",
                &Shape::of(&[required("members", Type::List(&Type::Object(&ALTERNATE_MEMBER)))]),
            ),
            (
                "command",
                &Shape::of(&[
                    required("arg-type", Type::Text),
                    required("ret-type", Type::Text),
                    optional("allow-oob", Type::Bool),
                ]),
            ),
            ("event", &Shape::of(&[required("arg-type", Type::Text)])),
        ],
    },
);
static JSON_TYPES: &[&str] =
    &["string", "number", "int", "boolean", "null", "object", "array", "value"];
static ENUM_MEMBER: Shape =
    Shape::of(&[required("name", Type::Text), optional("features", Type::List(&Type::Text))]);
static OBJECT_MEMBER: Shape = Shape::of(&[
    required("name", Type::Text),
    required("type", Type::Text),
    optional("default", Type::Any),
    optional("features", Type::List(&Type::Text)),
]);
static VARIANT: Shape = Shape::of(&[required("case", Type::Text), required("type", Type::Text)]);
static ALTERNATE_MEMBER: Shape = Shape::of(&[required("type", Type::Text)]);

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

/// From the table of options.
fn query_command_line_options(call: Call<'_>) -> Answer {
    let wanted = call.args.text_if_given("option");
    let groups = args::groups();
    let parameter = |parameter: &args::Parameter| json!({"name": parameter.name, "type": parameter.of().name(), "help": parameter.value});
    let shown: Vec<Json> = groups
        .iter()
        .filter(|group| wanted.is_none_or(|wanted| wanted == group.name))
        .map(|group| {
            let parameters: Vec<Json> = group.parameters.iter().map(parameter).collect();
            json!({"option": group.name, "parameters": parameters})
        })
        .collect();
    match wanted {
        Some(wanted) if shown.is_empty() => {
            Err(Error::generic(format_args!("invalid option name: {wanted}")))
        }
        _ => Ok(shown.into()),
    }
}

fn quit(call: Call<'_>) -> Answer {
    call.vmm.exit.shutdown(&call.vmm.events, StopCause::HostQmpQuit, 0);
    Ok(json!({}))
}
