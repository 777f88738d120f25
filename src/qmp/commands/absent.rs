//! Commands about what this machine does not have: balloons and more. Lists are
//! empty, what has a name is not found, and what would make it come says that it is not built yet,
//! in QEMU's words where it has some.

use serde_json::json;

use super::command::{Answer, Call, Command, NOTHING, Run};
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, required};

pub(crate) static COMMANDS: &[Command] = &[
    none("query-jobs", "Lists jobs on disks, of which there are none."),
    none("query-block-jobs", "Lists jobs on disks, of which there are none."),
    Command::new("query-balloon", Run::Now(no_balloon))
        .returns(Type::Object(&BALLOON))
        .does("Is an error: there is no balloon yet."),
    Command::new("balloon", Run::Now(no_balloon))
        .arguments(&TARGET)
        .does("Is an error: there is no balloon yet."),
    none("query-memory-devices", "Lists memory that came later, of which there is none."),
    none("query-pci", "Lists PCI buses, of which there are none."),
    none("query-mice", "Lists pointing devices, of which there are none."),
    none("query-acpi-ospm-status", "Lists what ACPI reports of plugged devices: there are none."),
    none("query-tpm-models", "Lists models of TPMs, of which there are none.")
        .returns(Type::List(&Type::Text)),
    none("query-tpm-types", "Lists what TPMs can be made of: there are none.")
        .returns(Type::List(&Type::Text)),
    Command::new(
        "query-vm-generation-id",
        Run::Now(|_| refuse("VM Generation ID device not found")),
    )
    .returns(Type::Object(&GUID))
    .does("Is an error: the device is not built yet."),
    Command::new(
        "query-current-machine",
        Run::Now(|_| Ok(json!({"wakeup-suspend-support": false}))),
    )
    .returns(Type::Object(&CURRENT))
    .does("Tells whether a suspended guest can be woken: guests do not suspend."),
];

/// A list that is empty.
const fn none(name: &'static str, does: &'static str) -> Command {
    Command::new(name, Run::Now(|_| Ok(json!([])))).returns(Type::List(&NO_OBJECT)).does(does)
}

const NO_OBJECT: Type = Type::Object(&NOTHING);

static BALLOON: Shape = Shape::of(&[required("actual", Type::Int)]);
static TARGET: Shape =
    Shape::of(&[required("value", Type::Int).means("bytes that the guest shall keep")]);
static GUID: Shape = Shape::of(&[required("guid", Type::Text)]);
static CURRENT: Shape = Shape::of(&[required("wakeup-suspend-support", Type::Bool)]);

fn refuse(why: &str) -> Answer {
    Err(Error::generic(why))
}

fn no_balloon(_call: Call<'_>) -> Answer {
    Err(Error::device_not_active("No balloon device has been activated"))
}
