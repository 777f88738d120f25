//! Commands that add character devices, take them away, and cut their connections.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use serde_json::json;

use super::command::{Answer, Call, Command, Run};
use crate::args::value;
use crate::block::Images;
use crate::config::{
    Chardev, ChardevBackend, IpFamily, LogFile, Socket, SocketAddress, SocketRole,
};
use crate::output::Input;
use crate::qmp::args::Args;
use crate::qmp::error::Error;
use crate::qmp::schema::{Member, Shape, Type, Union, optional, required};
use crate::vmm::ChardevError;

pub(crate) static COMMANDS: &[Command] = &[
    Command::new("chardev-add", Run::Waiting(add))
        .arguments(&CHARDEV)
        .returns(Type::Object(&ADDED))
        .does("Opens another character device; no device of this board can be given it later."),
    Command::new("chardev-remove", Run::Waiting(remove))
        .arguments(&ID)
        .does("Closes a character device that nobody uses."),
    Command::new("chardev-change", Run::Waiting(change))
        .arguments(&CHARDEV)
        .returns(Type::Object(&ADDED))
        .does("Puts something else behind a character device that nobody or the serial port uses."),
];

const ITS_ID: Member = required("id", Type::Text).means("its id");
static ID: Shape = Shape::of(&[ITS_ID]);
static CHARDEV: Shape =
    Shape::of(&[ITS_ID, required("backend", Type::Object(&BACKEND)).means("what is behind it")]);
static ADDED: Shape = Shape::of(&[optional("pty", Type::Text)]);

/// QEMU's.
static TYPES: &[&str] = &[
    "file",
    "serial",
    "parallel",
    "pipe",
    "socket",
    "udp",
    "pty",
    "null",
    "mux",
    "hub",
    "msmouse",
    "wctablet",
    "braille",
    "testdev",
    "stdio",
    "spicevmc",
    "spiceport",
    "qemu-vdagent",
    "dbus",
    "vc",
    "ringbuf",
    "memory",
];
static BACKEND: Shape = Shape::tagged(
    &[required("type", Type::Enum(TYPES))],
    Union {
        tag: "type",
        branches: &[
            ("null", &NULL),
            ("file", &FILE),
            ("pty", &PTY),
            ("socket", &SOCKET),
            ("stdio", &ANYTHING),
            ("serial", &ANYTHING),
            ("parallel", &ANYTHING),
            ("pipe", &ANYTHING),
            ("udp", &ANYTHING),
            ("mux", &ANYTHING),
            ("hub", &ANYTHING),
            ("msmouse", &ANYTHING),
            ("wctablet", &ANYTHING),
            ("braille", &ANYTHING),
            ("testdev", &ANYTHING),
            ("spicevmc", &ANYTHING),
            ("spiceport", &ANYTHING),
            ("qemu-vdagent", &ANYTHING),
            ("dbus", &ANYTHING),
            ("vc", &ANYTHING),
            ("ringbuf", &ANYTHING),
            ("memory", &ANYTHING),
        ],
    },
);
static ANYTHING: Shape = Shape::of(&[required("data", Type::Object(&OPEN))]);
static OPEN: Shape = Shape::open(&[]);
const LOG_FILE: Member = optional("logfile", Type::Text);
const LOG_APPEND: Member = optional("logappend", Type::Bool);
static NULL: Shape = Shape::of(&[required("data", Type::Object(&NULL_DATA))]);
static NULL_DATA: Shape = Shape::of(&[LOG_FILE, LOG_APPEND]);
static FILE: Shape = Shape::of(&[required("data", Type::Object(&FILE_DATA))]);
static FILE_DATA: Shape = Shape::of(&[
    LOG_FILE,
    LOG_APPEND,
    optional("in", Type::Text),
    required("out", Type::Text),
    optional("append", Type::Bool),
]);
static PTY: Shape = Shape::of(&[required("data", Type::Object(&PTY_DATA))]);
static PTY_DATA: Shape = Shape::of(&[LOG_FILE, LOG_APPEND, optional("path", Type::Text)]);
static SOCKET: Shape = Shape::of(&[required("data", Type::Object(&SOCKET_DATA))]);
static SOCKET_DATA: Shape = Shape::of(&[
    LOG_FILE,
    LOG_APPEND,
    required("addr", Type::Object(&ADDRESS)),
    optional("tls-creds", Type::Text),
    optional("tls-authz", Type::Text),
    optional("server", Type::Bool),
    optional("wait", Type::Bool),
    optional("nodelay", Type::Bool),
    optional("telnet", Type::Bool),
    optional("tn3270", Type::Bool),
    optional("websocket", Type::Bool),
    optional("reconnect", Type::Int),
    optional("reconnect-ms", Type::Int),
]);
static ADDRESS: Shape = Shape::tagged(
    &[required("type", Type::Enum(&["inet", "unix", "vsock", "fd"]))],
    Union {
        tag: "type",
        branches: &[("inet", &INET), ("unix", &UNIX), ("vsock", &VSOCK), ("fd", &FD)],
    },
);
static INET: Shape = Shape::of(&[required("data", Type::Object(&super::channels::INET))]);
static UNIX: Shape = Shape::of(&[required("data", Type::Object(&super::channels::UNIX))]);
static VSOCK: Shape = Shape::of(&[required("data", Type::Object(&super::channels::VSOCK))]);
static FD: Shape = Shape::of(&[required("data", Type::Object(&super::channels::FD))]);

fn add(call: Call<'_>) -> Answer {
    let id = call.args.text("id");
    value::id(id).map_err(|_| Error::generic("Parameter 'id' expects an identifier"))?;
    is_new(call, id)?;
    let (chardev, fd) = describe(call, id)?;
    open(call, chardev, fd, |chardev, fd, images| call.vmm.chardevs.add(chardev, fd, images))
}

fn is_new(call: Call<'_>, id: &str) -> Result<(), Error> {
    match call.vmm.chardevs.list().iter().any(|other| other.label == id) {
        true => Err(Error::generic(format_args!("Chardev with id '{id}' already exists"))),
        false => Ok(()),
    }
}

/// One that the human monitor describes.
pub(crate) fn add_described(call: Call<'_>, chardev: Chardev) -> Answer {
    is_new(call, &chardev.id)?;
    refuse_inherited(&chardev)?;
    open(call, chardev, None, |chardev, fd, images| call.vmm.chardevs.add(chardev, fd, images))
}

pub(crate) fn change_described(call: Call<'_>, chardev: Chardev) -> Answer {
    is_known(call, &chardev.id)?;
    refuse_inherited(&chardev)?;
    open(call, chardev, None, |chardev, fd, images| call.vmm.chardevs.change(chardev, fd, images))
}

fn refuse_inherited(chardev: &Chardev) -> Result<(), Error> {
    match chardev.backend {
        _ if chardev.mux => Err(Error::generic("mux=on: nothing could share it later")),
        ChardevBackend::Stdio { .. } => Err(Error::generic(TAKEN)),
        // Any number is one of the machine's own by now.
        ChardevBackend::Socket(Socket { address: SocketAddress::Fd(_), .. }) => {
            Err(Error::generic("fd= is for the command line; QMP's chardev-add takes one of getfd"))
        }
        _ => Ok(()),
    }
}

const TAKEN: &str = "stdio is taken when the machine starts";

/// Has what is asked for opened, and tells the name of a terminal.
fn open(
    call: Call<'_>,
    chardev: Chardev,
    fd: Option<OwnedFd>,
    how: impl FnOnce(Chardev, Option<OwnedFd>, Vec<Input>) -> Result<(), ChardevError>,
) -> Answer {
    let id = chardev.id.clone();
    let is_pty = matches!(chardev.backend, ChardevBackend::Pty { .. });
    let images = call.vmm.guest.images().map(Images::files).unwrap_or_default();
    how(chardev, fd, images).map_err(Error::generic)?;
    let opened = call.vmm.chardevs.list().into_iter().find(|other| other.label == id);
    Ok(match opened.as_ref().and_then(|opened| opened.filename.strip_prefix("pty:")) {
        Some(name) if is_pty => json!({"pty": name}),
        _ => json!({}),
    })
}

/// What is asked for, and the descriptor that it is to be made of.
fn describe(call: Call<'_>, id: &str) -> Result<(Chardev, Option<OwnedFd>), Error> {
    let backend = call.args.object("backend");
    let (kind, data) = (backend.text("type"), backend.object("data"));
    let text = |name| data.text_if_given(name);
    let switch = |name| data.bool_if_given(name) == Some(true);
    let mut fd = None;
    let made = match kind {
        "null" => ChardevBackend::Null,
        "file" => ChardevBackend::File {
            path: data.text("out").into(),
            append: switch("append"),
            input: text("in").map(PathBuf::from),
        },
        "pty" => ChardevBackend::Pty { path: text("path").map(PathBuf::from) },
        "socket" => {
            let other = ["telnet", "tn3270", "websocket"].into_iter().find(|name| switch(name));
            if let Some(name) = other {
                return Err(Error::generic(format_args!("'{name}' is not built yet")));
            }
            if text("tls-creds").is_some_and(|creds| !creds.is_empty()) {
                return Err(Error::generic("'tls-creds': TLS is not built yet"));
            }
            let role = role(data)?;
            let address;
            (address, fd) = socket_address(call, data.object("addr"), switch("nodelay"))?;
            ChardevBackend::Socket(Socket { address, role })
        }
        "stdio" => return Err(Error::generic(TAKEN)),
        other => {
            return Err(Error::generic(format_args!(
                "chardev-add of {other}: such character devices are not built yet"
            )));
        }
    };
    let log =
        text("logfile").map(|path| LogFile { path: path.into(), append: switch("logappend") });
    Ok((Chardev { id: id.to_owned(), backend: made, mux: false, log }, fd))
}

fn role(data: Args<'_>) -> Result<SocketRole, Error> {
    let switch = |name| data.bool_if_given(name) == Some(true);
    let pause = match (data.int_if_given("reconnect"), data.int_if_given("reconnect-ms")) {
        (Some(_), Some(_)) => {
            return Err(Error::generic("'reconnect' and 'reconnect-ms' are mutually exclusive"));
        }
        (Some(seconds), None) => seconds.saturating_mul(1000),
        (None, ms) => ms.unwrap_or(0),
    };
    // Servers are the default, as in QEMU.
    match (data.bool_if_given("server") != Some(false), u64::try_from(pause)) {
        (true, Ok(0)) => Ok(SocketRole::Server { wait: switch("wait") }),
        (true, _) => Err(Error::generic(
            "'reconnect' option is incompatible with socket in server listen mode",
        )),
        (false, Ok(reconnect_ms)) => Ok(SocketRole::Client { reconnect_ms }),
        (false, Err(_)) => Err(Error::generic("'reconnect' expects a positive number")),
    }
}

fn socket_address(
    call: Call<'_>,
    address: Args<'_>,
    nodelay: bool,
) -> Result<(SocketAddress, Option<OwnedFd>), Error> {
    let data = address.object("data");
    let switch = |name| data.bool_if_given(name);
    let made = match address.text("type") {
        "unix" if switch("abstract") == Some(true) => {
            SocketAddress::Abstract { name: data.text("path").to_owned() }
        }
        "unix" => SocketAddress::Unix { path: data.text("path").into() },
        "inet" => {
            let port = data.text("port").parse();
            let port = port.map_err(|_| Error::generic("'port' expects a number up to 65535"))?;
            let family = match (switch("ipv4"), switch("ipv6")) {
                (None, None) | (Some(true), Some(true)) => IpFamily::Any,
                (Some(true), _) | (None, Some(false)) => IpFamily::V4,
                (_, Some(true)) | (Some(false), None) => IpFamily::V6,
                _ => return Err(Error::generic("neither IPv4 nor IPv6 is left")),
            };
            SocketAddress::Tcp {
                host: data.text("host").to_owned(),
                port,
                port_to: data.unsigned_if_given("to").map(|port| port as u16),
                family,
                nodelay,
            }
        }
        "fd" => {
            let fd = call.monitor.fds.take(data.text("str"))?;
            return Ok((SocketAddress::Fd(fd.as_raw_fd()), Some(fd)));
        }
        _vsock => return Err(Error::generic("vsock is not built in")),
    };
    Ok((made, None))
}

fn remove(call: Call<'_>) -> Answer {
    call.vmm.chardevs.remove(call.args.text("id")).map_err(Error::generic)?;
    Ok(json!({}))
}

fn change(call: Call<'_>) -> Answer {
    let id = call.args.text("id");
    is_known(call, id)?;
    let (chardev, fd) = describe(call, id)?;
    open(call, chardev, fd, |chardev, fd, images| call.vmm.chardevs.change(chardev, fd, images))
}

fn is_known(call: Call<'_>, id: &str) -> Result<(), Error> {
    match call.vmm.chardevs.list().iter().any(|device| device.label == id) {
        true => Ok(()),
        false => Err(Error::generic(ChardevError::Unknown(id.to_owned()))),
    }
}
