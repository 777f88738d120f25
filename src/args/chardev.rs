//! `-chardev`, and the short forms that `-serial` and `-qmp` take.

use super::error::{Error, Problem};
use super::keys::{Key, Keys, split};
use super::machine::into;
use super::value;
use crate::config::{
    Chardev, ChardevBackend, IpFamily, LogFile, Socket, SocketAddress, SocketRole,
};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Stdio,
    File,
    Pty,
    Socket,
}

const KINDS: [(&str, Kind); 5] = [
    ("null", Kind::Null),
    ("stdio", Kind::Stdio),
    ("file", Kind::File),
    ("pty", Kind::Pty),
    ("socket", Kind::Socket),
];

/// Back-ends that QEMU has besides; `vc` and the rest need a display, a bus or a second reader.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("pipe", "not built yet; write socket or file"),
    ("ringbuf", "not built yet; write file"),
    ("memory", "not built yet; write file"),
    ("udp", "not built yet; write socket"),
    ("serial", "serial ports of the host are not built yet; write pty or socket"),
    ("tty", "serial ports of the host are not built yet; write pty or socket"),
    ("parallel", "there is no parallel port"),
    ("vc", "there is no display"),
    ("mux", "not a back-end by itself; write mux=on behind another one"),
    ("hub", "several back-ends of one user are not built yet"),
    ("spicevmc", "there is no display"),
    ("spiceport", "there is no display"),
    ("dbus", "not built"),
    ("braille", "not built"),
    ("msmouse", "not built"),
    ("wctablet", "not built"),
    ("testdev", "not built"),
];

/// The keys of `-chardev`, whatever the back-end; which ones fit is checked when it is made.
#[derive(Default)]
pub(crate) struct Draft {
    kind: Option<Kind>,
    id: Option<String>,
    path: Option<PathBuf>,
    abstract_name: bool,
    append: bool,
    input: Option<PathBuf>,
    signal: Option<bool>,
    host: Option<String>,
    port: Option<u16>,
    port_to: Option<u16>,
    v4: Option<bool>,
    v6: Option<bool>,
    nodelay: bool,
    fd: Option<i32>,
    server: bool,
    wait: Option<bool>,
    reconnect_ms: Option<u64>,
    log: Option<PathBuf>,
    log_append: bool,
    mux: bool,
}

const TELNET: &str = "not built; write a plain socket";

pub(crate) const CHARDEV: Keys<Draft> = Keys {
    owner: "a character device",
    implied: Some("backend"),
    table: &[
        Key::set("backend", "null|stdio|file|pty|socket", |d, v| {
            d.kind = Some(kind(v)?);
            Ok(())
        }),
        Key::set("id", "ID", |d, v| {
            d.id = Some(value::id(v)?);
            Ok(())
        }),
        Key::set("path", "PATH", |d, v| path(v, &mut d.path)),
        Key::set("append", "on|off", |d, v| into(v, &mut d.append)),
        Key::set("input-path", "PATH", |d, v| path(v, &mut d.input)),
        Key::set("signal", "on|off", |d, v| {
            d.signal = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("host", "HOST", |d, v| {
            d.host = Some(v.into());
            Ok(())
        }),
        Key::set("port", "PORT", |d, v| port(v, &mut d.port)),
        Key::set("to", "PORT", |d, v| port(v, &mut d.port_to)),
        Key::set("ipv4", "on|off", |d, v| {
            d.v4 = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("ipv6", "on|off", |d, v| {
            d.v6 = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("nodelay", "on|off", |d, v| into(v, &mut d.nodelay)),
        Key::set("abstract", "on|off", |d, v| into(v, &mut d.abstract_name)),
        Key::set("fd", "N", |d, v| {
            d.fd = Some(value::number(v, 0, i32::MAX as u64)? as i32);
            Ok(())
        }),
        Key::set("server", "on|off", |d, v| into(v, &mut d.server)),
        Key::set("wait", "on|off", |d, v| {
            d.wait = Some(value::switch(v)?);
            Ok(())
        }),
        Key::set("reconnect-ms", "N", |d, v| {
            d.reconnect_ms = Some(value::number(v, 0, u32::MAX.into())?);
            Ok(())
        }),
        Key::set("reconnect", "N", |d, v| {
            d.reconnect_ms = Some(1000 * value::number(v, 0, 4_000_000)?);
            Ok(())
        }),
        Key::set("logfile", "PATH", |d, v| path(v, &mut d.log)),
        Key::set("logappend", "on|off", |d, v| into(v, &mut d.log_append)),
        Key::set("mux", "on|off", |d, v| into(v, &mut d.mux)),
        Key::only("tight", &["on"], "not built; abstract names end where they end"),
        Key::only("telnet", &["off"], TELNET),
        Key::only("tn3270", &["off"], TELNET),
        Key::only("websocket", &["off"], TELNET),
        Key::refuse("tls-creds", "TLS is not built yet"),
        Key::refuse("tls-authz", "TLS is not built yet"),
    ],
};

fn kind(name: &str) -> Result<Kind, Problem> {
    if let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) {
        return Ok(*kind);
    }
    match OTHER_KINDS.iter().find(|(known, _)| *known == name) {
        Some((_, reason)) => Err(Problem::Refused(reason)),
        None => Err(value::unknown(name, &KINDS.map(|(known, _)| known))),
    }
}

fn path(text: &str, place: &mut Option<PathBuf>) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::Malformed("a path"));
    }
    *place = Some(PathBuf::from(text));
    Ok(())
}

fn port(text: &str, place: &mut Option<u16>) -> Result<(), Problem> {
    *place = Some(value::number(text, 0, 65535)? as u16);
    Ok(())
}

/// `-chardev BACKEND,id=ID,…`
pub(crate) fn chardev(option: &str, text: &str) -> Result<Chardev, Error> {
    let mut draft = Draft::default();
    CHARDEV.read(option, text, &mut draft)?;
    let id = draft.id.clone().ok_or_else(|| Problem::MissingKey("id=").at(option))?;
    draft.device(id).map_err(|problem| problem.at(option))
}

/// What `-serial` and `-qmp` take: a new character device, the name of one, or none at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    None,
    Named(String),
    New(ChardevBackend, Option<LogFile>),
    /// A new one that a monitor shares.
    Shared(ChardevBackend, Option<LogFile>),
}

/// The address in what `-qmp` takes, for those who connect to it: with the keys of a server behind it,
/// or a path alone.
pub(crate) fn monitor(text: &str) -> Result<SocketAddress, String> {
    const FORMS: &str = "expected unix:PATH or tcp:HOST:PORT";
    let named = ["unix:", "tcp:"].iter().any(|scheme| text.starts_with(scheme));
    let path = text.contains('/') || !text.contains(':') && !text.is_empty();
    let whole = match (named, path) {
        (true, _) => text.to_owned(),
        (false, true) => format!("unix:{text}"),
        (false, false) => return Err(FORMS.into()),
    };
    match short("--qmp", &whole) {
        Ok(Short::New(ChardevBackend::Socket(socket), _)) => Ok(socket.address),
        Ok(_) => Err(FORMS.into()),
        Err(error) => Err(format!("{error}; a comma in a path is written ,,")),
    }
}

/// What the words before the colon (or alone) in a short form mean.
const SHORT_FORMS: [&str; 10] =
    ["stdio", "null", "none", "pty", "file:", "unix:", "tcp:", "chardev:", "fd:", "mon:"];

pub(crate) fn short(option: &str, text: &str) -> Result<Short, Error> {
    read_short(option, text).map_err(|mut error| {
        if error.at.is_empty() {
            error.at = format!("{option} {text}");
        }
        error
    })
}

fn read_short(option: &str, text: &str) -> Result<Short, Error> {
    let mut draft = Draft::default();
    let nowhere = |problem: Problem| problem.at("");
    match text.split_once(':') {
        None if text == "none" => return Ok(Short::None),
        Some(("chardev", id)) => return Ok(Short::Named(value::id(id).map_err(nowhere)?)),
        None if text == "pty" => draft.kind = Some(Kind::Pty),
        None if text == "stdio" => draft.kind = Some(Kind::Stdio),
        None if text == "null" => draft.kind = Some(Kind::Null),
        // The rest of the text is the path, commas and all.
        Some((word @ ("file" | "pty"), rest)) => {
            draft.kind = Some(kind(word).map_err(nowhere)?);
            path(rest, &mut draft.path).map_err(nowhere)?;
        }
        Some((word @ ("unix" | "tcp" | "fd"), rest)) => {
            short_socket(option, word, rest, &mut draft)?
        }
        Some(("mon", rest)) if option == "-serial" => return read_shared(option, rest),
        Some(("mon", _)) => {
            let reason = "a monitor shares the device of -serial mon: only";
            return Err(nowhere(Problem::Refused(reason)));
        }
        Some(("telnet" | "tn3270" | "websocket", _)) => {
            return Err(nowhere(Problem::Refused("not built; write tcp:")));
        }
        _ => return Err(nowhere(unknown_short(text))),
    }
    match draft.device(String::new()) {
        Ok(device) if device.mux => {
            Err(nowhere(Problem::Refused("write -chardev for what several share, or mon:")))
        }
        Ok(device) => Ok(Short::New(device.backend, device.log)),
        Err(problem) => Err(nowhere(problem)),
    }
}

/// What follows `mon:`. Ctrl-C is for the guest then.
fn read_shared(option: &str, rest: &str) -> Result<Short, Error> {
    match read_short(option, rest)? {
        Short::New(ChardevBackend::Stdio { .. }, log) => {
            Ok(Short::Shared(ChardevBackend::Stdio { signal: false }, log))
        }
        Short::New(backend, log) => Ok(Short::Shared(backend, log)),
        _ => Err(Problem::Malformed("a new character device behind mon:").at("")),
    }
}

fn unknown_short(text: &str) -> Problem {
    let word = text.split([':', ',']).next().unwrap_or(text);
    match OTHER_KINDS.iter().find(|(known, _)| *known == word) {
        Some((_, reason)) => Problem::Refused(reason),
        None => {
            let given = if text.contains(':') { format!("{word}:") } else { word.into() };
            value::unknown(&given, &SHORT_FORMS)
        }
    }
}

/// `unix:PATH,…`, `tcp:HOST:PORT,…` and `fd:N,…`
fn short_socket(option: &str, word: &str, rest: &str, draft: &mut Draft) -> Result<(), Error> {
    draft.kind = Some(Kind::Socket);
    let nowhere = |problem: Problem| problem.at("");
    for (index, (key, value)) in split(rest, Some("address")).into_iter().enumerate() {
        let address = value.as_deref().filter(|_| index == 0 && key == "address");
        match (word, address) {
            ("unix", Some(address)) => path(address, &mut draft.path).map_err(nowhere)?,
            ("tcp", Some(address)) => host_and_port(address, draft).map_err(nowhere)?,
            ("fd", Some(address)) => CHARDEV.set(option, "fd", Some(address), draft)?,
            _ if ["backend", "id"].contains(&key.as_str()) => {
                let problem = Problem::UnknownKey { owner: "a socket", nearest: None };
                return Err(problem.at(format!("{option} {key}=")));
            }
            _ => CHARDEV.set(option, &key, value.as_deref(), draft)?,
        }
    }
    Ok(())
}

/// `HOST:PORT`; an IPv6 address is in brackets.
fn host_and_port(text: &str, draft: &mut Draft) -> Result<(), Problem> {
    const SHAPE: Problem = Problem::Malformed("tcp:HOST:PORT");
    let (host, number) = text.rsplit_once(':').ok_or(SHAPE)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or(SHAPE)?,
        None if host.contains(':') => {
            return Err(Problem::Malformed("an IPv6 address in brackets: tcp:[::1]:PORT"));
        }
        None => host,
    };
    draft.host = Some(host.into());
    port(number, &mut draft.port).map_err(|_| SHAPE)
}

impl Draft {
    fn device(self, id: String) -> Result<Chardev, Problem> {
        let kind = self.kind.ok_or(Problem::MissingKey("the back-end"))?;
        self.check_keys(kind)?;
        let log = self.log.clone().map(|path| LogFile { path, append: self.log_append });
        let mux = self.mux;
        let backend = match kind {
            Kind::Null => ChardevBackend::Null,
            Kind::Stdio => ChardevBackend::Stdio { signal: self.signal.unwrap_or(true) },
            Kind::Pty => ChardevBackend::Pty { path: self.path },
            Kind::File => ChardevBackend::File {
                path: self.path.ok_or(Problem::MissingKey("path="))?,
                append: self.append,
                input: self.input,
            },
            Kind::Socket => ChardevBackend::Socket(self.socket()?),
        };
        Ok(Chardev { id, backend, mux, log })
    }

    /// Refuses keys that another back-end has.
    fn check_keys(&self, kind: Kind) -> Result<(), Problem> {
        use Kind::{File, Pty, Socket, Stdio};
        let given: [(bool, &str, &[Kind]); 13] = [
            (self.path.is_some(), "path=", &[File, Pty, Socket]),
            (self.append, "append=on", &[File]),
            (self.input.is_some(), "input-path=", &[File]),
            (self.signal.is_some(), "signal=", &[Stdio]),
            (self.host.is_some(), "host=", &[Socket]),
            (self.port.is_some(), "port=", &[Socket]),
            (self.port_to.is_some(), "to=", &[Socket]),
            (self.fd.is_some(), "fd=", &[Socket]),
            (self.server, "server=on", &[Socket]),
            (self.wait.is_some(), "wait=", &[Socket]),
            (self.reconnect_ms.is_some(), "reconnect-ms=", &[Socket]),
            (self.nodelay, "nodelay=on", &[Socket]),
            (self.abstract_name, "abstract=on", &[Socket]),
        ];
        match given.iter().find(|(given, _, fits)| *given && !fits.contains(&kind)) {
            Some((_, key, _)) => Err(Problem::Conflict(key, kind.name())),
            None => Ok(()),
        }
    }

    fn socket(self) -> Result<Socket, Problem> {
        let role = match (self.server, self.wait, self.reconnect_ms) {
            (true, wait, None) => SocketRole::Server { wait: wait.unwrap_or(true) },
            (true, _, Some(_)) => return Err(Problem::Conflict("reconnect-ms=", "server=on")),
            (false, Some(_), _) => return Err(Problem::NeedsOther("wait=", "server=on")),
            (false, None, again) => SocketRole::Client { reconnect_ms: again.unwrap_or(0) },
        };
        let address = match (self.path, self.host.is_some() || self.port.is_some(), self.fd) {
            (Some(path), false, None) if self.abstract_name => {
                SocketAddress::Abstract { name: path.to_string_lossy().into_owned() }
            }
            (Some(path), false, None) => SocketAddress::Unix { path },
            (None, true, None) => SocketAddress::Tcp {
                host: self.host.unwrap_or_default(),
                port: self.port.ok_or(Problem::MissingKey("port="))?,
                port_to: self.port_to,
                family: family(self.v4, self.v6)?,
                nodelay: self.nodelay,
            },
            (None, false, Some(fd)) => SocketAddress::Fd(fd),
            (None, false, None) => return Err(Problem::MissingKey("path=, port= or fd=")),
            _ => return Err(Problem::Malformed("one of path=, host= with port=, and fd=")),
        };
        Ok(Socket { address, role })
    }
}

impl Kind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// `ipv4=on` alone means IPv4 only, and so on, as in QEMU.
pub(super) fn family(v4: Option<bool>, v6: Option<bool>) -> Result<IpFamily, Problem> {
    Ok(match (v4, v6) {
        (None, None) | (Some(true), Some(true)) => IpFamily::Any,
        (Some(true), _) | (None, Some(false)) => IpFamily::V4,
        (_, Some(true)) | (Some(false), None) => IpFamily::V6,
        _ => return Err(Problem::Conflict("ipv4=off", "ipv6=off")),
    })
}
