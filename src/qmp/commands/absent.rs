//! Commands about what this machine does not have. Lists are empty,
//! what has a name is not found, and what would make it come says that it is not built yet,
//! in QEMU's words where it has some.

use serde_json::json;

use super::command::{Answer, Call, Command, NOTHING, Run};
use crate::machine::Object;
use crate::qmp::error::Error;
use crate::qmp::schema::{Shape, Type, optional, required};

pub(crate) static COMMANDS: &[Command] = &[
    none("query-jobs", "Lists jobs on disks, of which there are none."),
    none("query-block-jobs", "Lists jobs on disks, of which there are none."),
    none("query-memory-devices", "Lists memory that came later, of which there is none."),
    none("query-pci", "Lists PCI buses, of which there are none."),
    none("query-mice", "Lists pointing devices, of which there are none."),
    Command::new("query-acpi-ospm-status", Run::Now(ospm_status))
        .returns(Type::List(&NO_OBJECT))
        .does("Lists what ACPI reports of plugged devices: there are none."),
    none("query-tpm", "Lists TPMs, of which there are none."),
    none(
        "query-pr-managers",
        "Lists managers of persistent reservations, of which there are none.",
    ),
    none("query-block-exports", "Lists disks lent to others, of which there are none."),
    none("query-cryptodev", "Lists crypto devices, of which there are none."),
    none("query-audiodevs", "Lists sound devices, of which there are none."),
    none("query-vnc-servers", "Lists VNC servers, of which there are none."),
    Command::new("query-vnc", Run::Now(|_| Ok(json!({"enabled": false}))))
        .returns(Type::Object(&VNC))
        .does("Tells that there is no VNC server."),
    Command::new("query-replay", Run::Now(|_| Ok(json!({"mode": "none", "icount": 0}))))
        .returns(Type::Object(&REPLAY))
        .does("Tells that nothing is recorded or replayed: KVM cannot."),
    Command::new("query-sev-capabilities", Run::Now(|_| refuse("SEV is not enabled in KVM")))
        .returns(Type::Object(&SEV))
        .does("Is an error: encrypted guests are not built."),
    Command::new("query-sgx", Run::Now(no_sgx))
        .returns(Type::Object(&SGX))
        .does("Is an error: SGX memory is not built."),
    Command::new("query-sgx-capabilities", Run::Now(no_sgx))
        .returns(Type::Object(&SGX))
        .does("Is an error: SGX memory is not built."),
    Command::new(
        "query-hv-balloon-status-report",
        Run::Now(|_| refuse("no hv-balloon device present")),
    )
    .returns(Type::Object(&HV_BALLOON))
    .does("Is an error: there is no such balloon."),
    Command::new(
        "system_wakeup",
        Run::Now(|_| refuse("wake-up from suspend is not supported by this guest")),
    )
    .does("Is an error: guests do not suspend."),
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

static VNC: Shape = Shape::of(&[required("enabled", Type::Bool)]);
static REPLAY: Shape = Shape::of(&[
    required("mode", Type::Enum(&["none", "record", "play"])),
    optional("filename", Type::Text),
    required("icount", Type::Int),
]);
static SEV: Shape = Shape::of(&[
    required("pdh", Type::Text),
    required("cert-chain", Type::Text),
    required("cpu0-id", Type::Text),
    required("cbitpos", Type::Int),
    required("reduced-phys-bits", Type::Int),
]);
static SGX: Shape = Shape::of(&[
    required("sgx", Type::Bool),
    required("sgx1", Type::Bool),
    required("sgx2", Type::Bool),
    required("flc", Type::Bool),
    required("sections", Type::List(&Type::Object(&SGX_SECTION))),
]);
static SGX_SECTION: Shape = Shape::of(&[required("node", Type::Int), required("size", Type::U64)]);
static HV_BALLOON: Shape =
    Shape::of(&[required("committed", Type::U64), required("available", Type::U64)]);
static GUID: Shape = Shape::of(&[required("guid", Type::Text)]);
static CURRENT: Shape = Shape::of(&[required("wakeup-suspend-support", Type::Bool)]);

fn refuse(why: &str) -> Answer {
    Err(Error::generic(why))
}

fn no_sgx(_call: Call<'_>) -> Answer {
    refuse("SGX is only supported on PC machines")
}

/// As QEMU: without ACPI there is nobody to ask.
fn ospm_status(call: Call<'_>) -> Answer {
    match has_acpi(&call.vmm.tree()) {
        true => Ok(json!([])),
        false => refuse("command is not supported, missing ACPI device"),
    }
}

fn has_acpi(root: &Object) -> bool {
    let parts = root.child("machine").and_then(|machine| machine.child("unattached"));
    parts.is_some_and(|parts| parts.children.iter().any(|(_, part)| part.type_name == "acpi-ged"))
}
