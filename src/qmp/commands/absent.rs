//! Commands about what this machine does not have: networks, balloons and more. Lists are
//! empty, what has a name is not found, and what would make it come says that it is not built yet,
//! in QEMU's words where it has some.

use serde_json::json;

use super::command::{Answer, Call, Command, NOTHING, Run};
use crate::args::value;
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    none("query-jobs", "Lists jobs on disks, of which there are none."),
    none("query-block-jobs", "Lists jobs on disks, of which there are none."),
    Command::new("netdev_add", Run::Now(netdev_add))
        .arguments(&NETDEV)
        .does("Is an error: networks are not built yet."),
    Command::new("netdev_del", Run::Now(|call| Err(no_device(call.args.text("id")))))
        .arguments(&ID)
        .does("Is an error: there are no networks yet."),
    Command::new("set_link", Run::Now(|call| Err(no_device(call.args.text("name")))))
        .arguments(&LINK)
        .does("Is an error: there are no networks yet."),
    none("query-rx-filter", "Lists what network cards listen to, of which there are none.")
        .arguments(&NAME)
        .at(Run::Now(query_rx_filter)),
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

const ITS_ID: Member = required("id", Type::Text).means("its id");
static ID: Shape = Shape::of(&[ITS_ID]);
static NETDEV: Shape =
    Shape::open(&[ITS_ID, required("type", Type::Enum(NETDEVS)).means("what it is made of")]);
/// QEMU's.
static NETDEVS: &[&str] = &[
    "none",
    "nic",
    "user",
    "tap",
    "l2tpv3",
    "socket",
    "stream",
    "dgram",
    "vde",
    "bridge",
    "hubport",
    "netmap",
    "vhost-user",
    "vhost-vdpa",
];
static LINK: Shape = Shape::of(&[
    required("name", Type::Text).means("the card"),
    required("up", Type::Bool).means("whether its cable is plugged in"),
]);
static NAME: Shape = Shape::of(&[optional("name", Type::Text).means("only this one")]);
static BALLOON: Shape = Shape::of(&[required("actual", Type::Int)]);
static TARGET: Shape =
    Shape::of(&[required("value", Type::Int).means("bytes that the guest shall keep")]);
static GUID: Shape = Shape::of(&[required("guid", Type::Text)]);
static CURRENT: Shape = Shape::of(&[required("wakeup-suspend-support", Type::Bool)]);

fn refuse(why: &str) -> Answer {
    Err(Error::generic(why))
}

fn no_device(name: &str) -> Error {
    Error::device_not_found(format_args!("Device '{name}' not found"))
}

fn identifier(call: Call<'_>) -> Result<(), Error> {
    value::id(call.args.text("id"))
        .map(drop)
        .map_err(|_| Error::generic("Parameter 'id' expects an identifier"))
}

fn netdev_add(call: Call<'_>) -> Answer {
    identifier(call)?;
    let kind = call.args.text("type");
    Err(Error::generic(format_args!("netdev_add of {kind}: network devices are not built yet")))
}

fn query_rx_filter(call: Call<'_>) -> Answer {
    match call.args.text_if_given("name") {
        None => Ok(json!([])),
        Some(name) => Err(Error::generic(format_args!("invalid net client name: {name}"))),
    }
}

fn no_balloon(_call: Call<'_>) -> Answer {
    Err(Error::device_not_active("No balloon device has been activated"))
}
