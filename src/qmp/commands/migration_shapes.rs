//! What goes into the commands of migrations, and what comes out of them.

use super::channels::{CHANNEL, SOCKET_ADDRESS};
use crate::migrate::capabilities::Capability;
use crate::migrate::parameters::{Kind, TABLE};
use crate::qmp::schema::{Member, Shape, Type, Union, optional, required};

const ONE_CHANNEL: Type = Type::Object(&CHANNEL);
const FROM_URI: Member = optional("uri", Type::Text)
    .means("tcp:HOST:PORT, unix:PATH, fd:NAME, exec:COMMAND or file:PATH");
const FROM_CHANNELS: Member = optional("channels", Type::List(&ONE_CHANNEL))
    .means("the same as objects, instead of uri: a list of one channel");

pub(crate) static MIGRATE: Shape = Shape::of(&[
    FROM_URI,
    FROM_CHANNELS,
    optional("detach", Type::Bool).means("taken, and without effect: the answer never waits"),
    optional("resume", Type::Bool).means("go on with a paused postcopy, which is not built in"),
]);
pub(crate) static INCOMING: Shape = Shape::of(&[
    FROM_URI,
    FROM_CHANNELS,
    optional("exit-on-error", Type::Bool)
        .means("end the process if the guest fails to arrive (true)"),
]);
pub(crate) static URI: Shape = Shape::of(&[required("uri", Type::Text).means("where to listen")]);
pub(crate) static CONTINUE: Shape = Shape::of(&[
    required("state", Type::Enum(STATES)).means("the state that it waits in: pre-switchover")
]);

/// QEMU's whole enumeration.
pub(crate) static STATES: &[&str] = &[
    "none",
    "setup",
    "cancelling",
    "cancelled",
    "active",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover-setup",
    "postcopy-recover",
    "completed",
    "failed",
    "colo",
    "pre-switchover",
    "device",
    "wait-unplug",
];

pub(crate) static CAPABILITIES: Shape =
    Shape::of(&[required("capabilities", Type::List(&Type::Object(&CAPABILITY)))
        .means("those that change, each with its new state")]);
pub(crate) static CAPABILITY: Shape = Shape::of(&[
    required("capability", Type::Enum(Capability::NAMES)),
    required("state", Type::Bool),
]);

/// What can be set.
pub(crate) static PARAMETERS: Shape = Shape::of(&SETTABLE);
static SETTABLE: [Member; TABLE.len()] = members(Type::TextOrNull);
/// What is set.
pub(crate) static CURRENT: Shape = Shape::of(&SET);
static SET: [Member; TABLE.len()] = members(Type::Text);

/// A member for each row of the table of parameters.
const fn members(text: Type) -> [Member; TABLE.len()] {
    let mut members = [const { optional("", Type::Null) }; TABLE.len()];
    let mut at = 0;
    while at < TABLE.len() {
        let row = &TABLE[at];
        members[at] = optional(row.name, parameter(row.kind, text)).means(row.does);
        at += 1;
    }
    members
}

const fn parameter(kind: Kind, text: Type) -> Type {
    match kind {
        Kind::Bool => Type::Bool,
        Kind::U8 => Type::U8,
        Kind::U32 => Type::U32,
        Kind::U64 => Type::U64,
        Kind::Text => text,
        Kind::Choice(choices) => Type::Enum(choices),
        Kind::Mapping => Type::List(&MAPPED),
    }
}

const MAPPED: Type = Type::Object(&NODE);
static NODE: Shape = Shape::of(&[
    required("node-name", Type::Text),
    required("alias", Type::Text),
    required("bitmaps", Type::List(&Type::Object(&BITMAP))),
]);
static BITMAP: Shape = Shape::of(&[
    required("name", Type::Text),
    required("alias", Type::Text),
    optional("transform", Type::Object(&TRANSFORM)),
]);
static TRANSFORM: Shape = Shape::of(&[optional("persistent", Type::Bool)]);

pub(crate) static YANK: Shape =
    Shape::of(&[required("instances", Type::List(&Type::Object(&INSTANCE)))
        .means("what to cut, of what query-yank lists")]);
pub(crate) static INSTANCE: Shape = Shape::tagged(
    &[required("type", Type::Enum(&["block-node", "chardev", "migration"]))],
    Union { tag: "type", branches: &[("block-node", &BLOCK_NODE), ("chardev", &CHARDEV)] },
);
static BLOCK_NODE: Shape = Shape::of(&[required("node-name", Type::Text)]);
static CHARDEV: Shape = Shape::of(&[required("id", Type::Text)]);

pub(crate) static CACHE_SIZE: Shape =
    Shape::of(&[required("value", Type::Int).means("bytes, rounded down to a power of two")]);
pub(crate) static ANNOUNCE: Shape = Shape::of(&[
    required("initial", Type::Int).means("milliseconds to the second announcement"),
    required("max", Type::Int).means("milliseconds between two at most"),
    required("rounds", Type::Int).means("how many there are"),
    required("step", Type::Int).means("milliseconds that each pause is longer"),
    optional("interfaces", Type::List(&Type::Text)).means("the cards (all)"),
    optional("id", Type::Text).means("what to call it"),
]);

/// The answer of `query-migrate`.
pub(crate) static REPORT: Shape = Shape::of(&[
    optional("status", Type::Enum(STATES)),
    optional("ram", Type::Object(&RAM)),
    optional("xbzrle-cache", Type::Object(&XBZRLE)),
    optional("total-time", Type::U64),
    optional("expected-downtime", Type::U64),
    optional("downtime", Type::U64),
    optional("setup-time", Type::U64),
    optional("cpu-throttle-percentage", Type::U8),
    optional("dirty-limit-throttle-time-per-round", Type::U64),
    optional("dirty-limit-ring-full-time", Type::U64),
    optional("error-desc", Type::Text),
    optional("blocked-reasons", Type::List(&Type::Text)),
    optional("socket-address", Type::List(&Type::Object(&SOCKET_ADDRESS))),
    // As the specification's example has it; gone from QEMU.
    optional("capabilities", Type::List(&Type::Object(&CAPABILITY))),
    optional("x-godwit", Type::Object(&OWN)),
]);
static RAM: Shape = Shape::of(&[
    required("transferred", Type::U64),
    required("remaining", Type::U64),
    required("total", Type::U64),
    // As the specification's example has it.
    optional("total-time", Type::U64),
    required("duplicate", Type::U64),
    required("normal", Type::U64),
    required("normal-bytes", Type::U64),
    required("dirty-pages-rate", Type::U64),
    required("mbps", Type::Number),
    required("dirty-sync-count", Type::U64),
    required("postcopy-requests", Type::U64),
    required("page-size", Type::U64),
    required("multifd-bytes", Type::U64),
    required("pages-per-second", Type::U64),
    required("precopy-bytes", Type::U64),
    required("downtime-bytes", Type::U64),
    required("postcopy-bytes", Type::U64),
    required("dirty-sync-missed-zero-copy", Type::U64),
]);
static XBZRLE: Shape = Shape::of(&[
    required("cache-size", Type::U64),
    required("bytes", Type::U64),
    required("pages", Type::U64),
    required("cache-miss", Type::U64),
    required("cache-miss-rate", Type::Number),
    required("encoding-rate", Type::Number),
    required("overflow", Type::U64),
]);
/// What QEMU has no name for.
static OWN: Shape = Shape::of(&[
    required("round", Type::U64),
    required("predicted-downtime", Type::U64),
    required("predicted-state-time", Type::U64),
    optional("predicted-end", Type::U64),
    optional("advice", Type::Text),
    optional("xbzrle-cache-error", Type::Text),
    optional("downtime-parts", Type::Object(&DOWNTIME_PARTS)),
]);
/// In microseconds.
static DOWNTIME_PARTS: Shape = Shape::of(&[
    required("stop", Type::U64),
    required("save", Type::U64),
    required("pages", Type::U64),
    required("hand-over", Type::U64),
]);
