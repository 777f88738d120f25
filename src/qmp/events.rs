//! The events that clients may be told, and their data.

use super::commands::balloon::SIZE as BALLOON;
use super::commands::dump::RESULT as DUMP_RESULT;
use super::commands::migration_shapes::STATES;
use super::commands::{NOTHING, network};
use super::schema::{Shape, Type, optional, required};
use crate::devices::DiskErrorAction;
use crate::machine::{Panic, StopCause};

/// An event that Godwit can send.
pub(crate) struct Kind {
    pub name: &'static str,
    pub data: &'static Shape,
}

/// Every event. An event must be listed here to be sent, because clients with typed events (`qapi`
/// for Rust) fail on names outside QEMU's schema: add none that QEMU does not have, and none
/// without all of its members.
pub(crate) static KINDS: &[Kind] = &[
    kind("BALLOON_CHANGE", &BALLOON),
    kind("BLOCK_IO_ERROR", &DISK_ERROR),
    kind("BLOCK_WRITE_THRESHOLD", &THRESHOLD),
    kind("DUMP_COMPLETED", &DUMPED),
    kind("GUEST_PANICKED", &PANICKED),
    kind("MEMORY_FAILURE", &MEMORY_FAILURE),
    kind("MIGRATION", &MIGRATION),
    kind("MIGRATION_PASS", &PASS),
    kind("NETDEV_STREAM_CONNECTED", &network::CONNECTED),
    kind("NETDEV_STREAM_DISCONNECTED", &network::DISCONNECTED),
    kind("NIC_RX_FILTER_CHANGED", &network::FILTER_CHANGED),
    kind("POWERDOWN", &NOTHING),
    kind("RESET", &ENDED),
    kind("RESUME", &NOTHING),
    kind("SHUTDOWN", &ENDED),
    kind("STOP", &NOTHING),
    kind("VSERPORT_CHANGE", &PORT),
];

const fn kind(name: &'static str, data: &'static Shape) -> Kind {
    Kind { name, data }
}

static ENDED: Shape =
    Shape::of(&[required("guest", Type::Bool), required("reason", Type::Enum(StopCause::NAMES))]);
static PANICKED: Shape = Shape::of(&[required("action", Type::Enum(Panic::NAMES))]);
static MIGRATION: Shape = Shape::of(&[required("status", Type::Enum(STATES))]);
static PASS: Shape = Shape::of(&[required("pass", Type::Int)]);
static DUMPED: Shape =
    Shape::of(&[required("result", Type::Object(&DUMP_RESULT)), optional("error", Type::Text)]);
static PORT: Shape = Shape::of(&[required("id", Type::Text), required("open", Type::Bool)]);
static THRESHOLD: Shape = Shape::of(&[
    required("node-name", Type::Text),
    required("amount-exceeded", Type::Int),
    required("write-threshold", Type::Int),
]);
static DISK_ERROR: Shape = Shape::of(&[
    required("qom-path", Type::Text),
    required("device", Type::Text),
    optional("node-name", Type::Text),
    required("operation", Type::Enum(&["read", "write"])),
    required("action", Type::Enum(DiskErrorAction::NAMES)),
    optional("nospace", Type::Bool),
    required("reason", Type::Text),
]);
static MEMORY_FAILURE: Shape = Shape::of(&[
    required("recipient", Type::Enum(&["hypervisor", "guest"])),
    required("action", Type::Enum(&["ignore", "inject", "fatal", "reset"])),
    required("flags", Type::Object(&MEMORY_FLAGS)),
    // Godwit's own: which memory, and what to do.
    optional("x-godwit-reason", Type::Text),
]);
static MEMORY_FLAGS: Shape =
    Shape::of(&[required("action-required", Type::Bool), required("recursive", Type::Bool)]);
