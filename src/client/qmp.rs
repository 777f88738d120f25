//! A QMP connection: one command at a time, events kept aside.

use super::interrupt::Interrupts;
use crate::args;
use crate::chardev;
use crate::config::SocketAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Where a monitor listens, as `run` writes it: `unix:PATH` or `tcp:HOST:PORT`, with or without the
/// keys of a server behind it, or a path alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(SocketAddress);

impl Address {
    pub(crate) fn unix(path: &Path) -> Address {
        Address(SocketAddress::Unix { path: path.to_owned() })
    }

    /// The machine may be on another host.
    pub(crate) fn is_unix(&self) -> bool {
        !matches!(self.0, SocketAddress::Tcp { .. })
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        args::monitor(text).map(Address)
    }
}

impl Address {
    /// As a word of a command line. A path may have any bytes, the rest is text.
    pub(crate) fn of_word(word: OsString) -> Result<Address, String> {
        match word.into_string() {
            Ok(text) => text.parse(),
            Err(word) => Address::of_bytes(word.as_bytes()),
        }
    }

    fn of_bytes(word: &[u8]) -> Result<Address, String> {
        let heads = [&b"unix:path="[..], b"unix:", b""];
        let rest = heads.iter().find_map(|head| word.strip_prefix(*head)).unwrap_or(word);
        let mut path = Vec::new();
        let mut at = 0;
        // A comma of the path is two; the first single one ends it.
        while let Some(byte) =
            rest.get(at).filter(|byte| **byte != b',' || rest.get(at + 1) == Some(&b','))
        {
            path.push(*byte);
            at += if *byte == b',' { 2 } else { 1 };
        }
        let options = std::str::from_utf8(&rest[at..]).map_err(|_| NOT_TEXT)?;
        match args::monitor(&format!("unix:path{options}"))? {
            SocketAddress::Unix { .. } if !word.starts_with(b"tcp:") => {
                Ok(Address::unix(Path::new(OsStr::from_bytes(&path))))
            }
            _ => Err(NOT_TEXT.into()),
        }
    }
}

const NOT_TEXT: &str = "it is not UTF-8, which only the path of a unix socket can be";

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&chardev::describe(&self.0))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing answers at {address}")]
    Connect { address: Address, source: io::Error },
    #[error("{address} is busy with another client, or is no QMP monitor: no greeting in {} s", GREETING_TIME.as_secs())]
    NoGreeting { address: Address },
    #[error("{address} does not speak QMP")]
    NotQmp { address: Address },
    #[error("the connection to the machine was lost while it worked on {command}")]
    Lost { command: String, source: io::Error },
    #[error("the machine closed its monitor while it worked on {command}")]
    Closed { command: String },
    #[error("{command}: {description}")]
    Refused { command: String, class: String, description: String },
    #[error("the machine's answer to {command} has an unknown form")]
    Form { command: String },
    #[error("interrupted before anything answered at {address}")]
    Interrupted { address: Address },
    #[error("interrupted; the machine does not answer {command}, and may still work on it")]
    Unanswered { command: String },
}

/// A monitor serves one client at a time; the next one hears nothing until the first has gone.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// Who waits for it anyway is told after this.
const BUSY_TIME: Duration = Duration::from_secs(1);

/// One line of an answer is never longer; query-qmp-schema, the longest there is, is about 200 KiB.
const LINE_BYTES_MAX: usize = 64 << 20;

/// A machine that was interrupted in its answer gets so long for it.
const GRACE: Duration = Duration::from_secs(2);
/// How soon an interrupt is seen.
const TICK: Duration = Duration::from_millis(100);

pub(crate) struct Client {
    socket: OwnedFd,
    address: Address,
    interrupts: Option<Interrupts>,
    /// Received and not read yet.
    input: Vec<u8>,
    events: VecDeque<Value>,
    /// The `version` object of the greeting.
    pub version: Value,
}

/// What a wait for a line came to.
enum Heard {
    Message(Value),
    Nothing,
    Interrupted,
}

impl Client {
    /// Connects and negotiates.
    pub(crate) fn connect(address: &Address) -> Result<Client, Error> {
        Client::negotiate(address, None, None)
    }

    /// The same for one who has time: calls `busy` if nothing greets it soon, and waits on.
    pub(crate) fn connect_in_time(address: &Address, busy: &dyn Fn()) -> Result<Client, Error> {
        Client::negotiate(address, None, Some(busy))
    }

    /// The same, and whatever it waits for from then on ends by an interrupt: at once while it
    /// connects, after `GRACE` or with the next one when the machine owes an answer.
    pub(crate) fn connect_for(address: &Address, interrupts: &Interrupts) -> Result<Client, Error> {
        Client::negotiate(address, Some(interrupts.clone()), None)
    }

    fn negotiate(
        address: &Address,
        interrupts: Option<Interrupts>,
        busy: Option<&dyn Fn()>,
    ) -> Result<Client, Error> {
        let refused = |source| Error::Connect { address: address.clone(), source };
        let interrupted = || Error::Interrupted { address: address.clone() };
        let socket = match &interrupts {
            None => open(address).map_err(refused)?,
            Some(interrupts) => {
                open_unless(address, interrupts).map_err(refused)?.ok_or_else(interrupted)?
            }
        };
        let mut client = Client {
            socket,
            address: address.clone(),
            interrupts,
            input: Vec::new(),
            events: VecDeque::new(),
            version: Value::Null,
        };
        let patience = if busy.is_some() { BUSY_TIME } else { GREETING_TIME };
        let mut greeting = client.message(Some(patience), Duration::ZERO);
        if let (Ok(Heard::Nothing), Some(busy)) = (&greeting, busy) {
            busy();
            greeting = client.message(None, Duration::ZERO);
        }
        client.version = match greeting {
            Ok(Heard::Message(Value::Object(greeting))) if greeting.contains_key("QMP") => {
                greeting["QMP"]["version"].clone()
            }
            Ok(Heard::Message(_)) => return Err(Error::NotQmp { address: address.clone() }),
            Ok(Heard::Nothing) => return Err(Error::NoGreeting { address: address.clone() }),
            Ok(Heard::Interrupted) => return Err(interrupted()),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::NotQmp { address: address.clone() });
            }
            Err(source) => return Err(refused(source)),
        };
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Runs a command and waits for its answer.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let mut request = json!({"execute": command});
        if arguments.as_object().is_some_and(|members| !members.is_empty()) {
            request["arguments"] = arguments;
        }
        self.request(command, &request)
    }

    /// Sends a whole request object. `command` is its name in error messages.
    pub(crate) fn request(&mut self, command: &str, request: &Value) -> Result<Value, Error> {
        self.request_with(command, request, None)
    }

    /// Gives the machine a descriptor, under this name. Only a monitor on a unix socket can take
    /// one.
    pub(crate) fn pass(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let request = json!({"execute": "getfd", "arguments": {"fdname": name}});
        self.request_with("getfd", &request, Some(fd)).map(drop)
    }

    /// Puts a descriptor into a new set of the machine's; its number.
    pub(crate) fn add_fd(&mut self, fd: BorrowedFd<'_>) -> Result<i64, Error> {
        let answer = self.request_with("add-fd", &json!({"execute": "add-fd"}), Some(fd))?;
        answer["fdset-id"].as_i64().ok_or_else(|| Error::Form { command: "add-fd".into() })
    }

    pub(crate) fn can_pass(&self) -> bool {
        self.address.is_unix()
    }

    /// The process at the other end, if it is one of this host and of our namespaces.
    pub(crate) fn machine_process(&self) -> Option<u32> {
        if !self.can_pass() {
            return None;
        }
        // The standard library does not tell yet.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().ok()?;
        let _guard = runtime.enter();
        let socket = UnixStream::from(self.socket.try_clone().ok()?);
        socket.set_nonblocking(true).ok()?;
        let peer = tokio::net::UnixStream::from_std(socket).ok()?.peer_cred().ok()?;
        peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
    }

    fn request_with(
        &mut self,
        command: &str,
        request: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Error> {
        let lost = |source| Error::Lost { command: command.into(), source };
        let form = || Error::Form { command: command.into() };
        let unanswered = || Error::Unanswered { command: command.into() };
        if !self.send(format!("{request}\r\n").as_bytes(), fd).map_err(lost)? {
            return Err(unanswered());
        }
        loop {
            let heard = self.message(None, GRACE).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Closed { command: command.into() },
                _ => lost(source),
            })?;
            let mut message = match heard {
                Heard::Message(Value::Object(message)) => message,
                Heard::Message(_) => return Err(form()),
                Heard::Nothing | Heard::Interrupted => return Err(unanswered()),
            };
            if message.contains_key("event") {
                self.events.push_back(Value::Object(message));
            } else if let Some(value) = message.remove("return") {
                return Ok(value);
            } else if let Some(error) = message.remove("error") {
                let text = |key: &str| error[key].as_str().unwrap_or("unknown").to_string();
                let (class, description) = (text("class"), text("desc"));
                return Err(Error::Refused { command: command.into(), class, description });
            } else {
                return Err(form());
            }
        }
    }

    /// The next event, waiting up to `time` for one.
    pub(crate) fn event(&mut self, time: Duration) -> Result<Option<Value>, Error> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.message(Some(time), Duration::MAX) {
            Ok(Heard::Message(message)) => Ok(Some(message)),
            Ok(_) => Ok(None),
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::Closed { command: "events".into() })
            }
            Err(source) => Err(Error::Lost { command: "events".into(), source }),
        }
    }

    /// One line as JSON. `grace`: so long it is waited for after an interrupt.
    fn message(&mut self, time: Option<Duration>, grace: Duration) -> io::Result<Heard> {
        let mut limit = WaitLimit::new(time, grace, self.interrupts.clone());
        let mut scanned = 0;
        loop {
            if let Some(end) = self.input[scanned..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..scanned + end + 1).collect();
                scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Heard::Message)
                    .map_err(|_| io::ErrorKind::InvalidData.into());
            }
            scanned = self.input.len();
            if scanned >= LINE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if let Some(end) = limit.wait(&self.socket, PollFlags::IN)? {
                return Ok(end);
            }
            let mut piece = [0; 16 << 10];
            match recv(&self.socket, &mut piece, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((bytes, _)) => self.input.extend_from_slice(&piece[..bytes]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All of `bytes`, `fd` with the first; false if an interrupt ended it.
    fn send(&mut self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let mut limit = WaitLimit::new(None, GRACE, self.interrupts.clone());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !bytes.is_empty() {
            let sent = match fd {
                None => send(&self.socket, bytes, flags),
                Some(fd) => {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let passed = [fd];
                    control.push(SendAncillaryMessage::ScmRights(&passed));
                    sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)
                }
            };
            match sent {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fd = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if limit.wait(&self.socket, PollFlags::OUT)?.is_some() {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// How long a wait for the machine goes on.
struct WaitLimit {
    until: Option<Instant>,
    grace: Duration,
    interrupts: Option<Interrupts>,
    /// How many there had been when it began.
    before: u32,
    /// When the first was noticed.
    noticed: Option<Instant>,
}

impl WaitLimit {
    fn new(time: Option<Duration>, grace: Duration, interrupts: Option<Interrupts>) -> WaitLimit {
        let before = interrupts.as_ref().map_or(0, Interrupts::pressed);
        WaitLimit {
            until: time.map(|time| Instant::now() + time),
            grace,
            interrupts,
            before,
            noticed: None,
        }
    }

    /// Waits until the socket is ready, or says why not.
    fn wait(&mut self, socket: &OwnedFd, ready: PollFlags) -> io::Result<Option<Heard>> {
        loop {
            let pressed = self.interrupts.as_ref().map_or(0, Interrupts::pressed);
            if pressed > 0 {
                let since = self.noticed.get_or_insert_with(Instant::now).elapsed();
                let again = pressed > 1 && pressed > self.before && self.grace < Duration::MAX;
                if since >= self.grace || again {
                    return Ok(Some(Heard::Interrupted));
                }
            }
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            let tick = left.map_or(TICK, |left| left.min(TICK));
            let tick = Timespec { tv_sec: 0, tv_nsec: tick.as_nanos() as i64 };
            match poll(&mut [PollFd::new(socket, ready)], Some(&tick)) {
                Ok(0) if left.is_some_and(|left| left <= TICK) => {
                    return Ok(Some(Heard::Nothing));
                }
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn open(address: &Address) -> io::Result<OwnedFd> {
    let socket = chardev::connect(&address.0)?;
    if !address.is_unix() {
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    Ok(socket)
}

/// `None` if an interrupt came first: names and silent hosts may take minutes, on a thread of their
/// own.
fn open_unless(address: &Address, interrupts: &Interrupts) -> io::Result<Option<OwnedFd>> {
    let (opened, result) = mpsc::channel();
    let address = address.clone();
    std::thread::Builder::new()
        .name("connect".into())
        .spawn(move || opened.send(open(&address)))?;
    loop {
        match result.recv_timeout(TICK) {
            Ok(result) => return result.map(Some),
            Err(RecvTimeoutError::Timeout) if interrupts.pressed() > 0 => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("its thread ended"));
            }
        }
    }
}

/// `10.0.2`, or Godwit's own version where it is one.
pub(crate) fn version_text(version: &Value) -> String {
    let number = |part: &str| version["qemu"][part].as_u64().unwrap_or(0);
    let package = version["package"].as_str().unwrap_or("");
    match package.trim().to_lowercase().contains("godwit") {
        true => package.trim().into(),
        false => format!("QEMU {}.{}.{}", number("major"), number("minor"), number("micro")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_path_may_have_any_bytes() {
        let of = |word: &[u8]| Address::of_word(OsStr::from_bytes(word).to_owned());
        let unix = |path: &[u8]| Ok(Address::unix(Path::new(OsStr::from_bytes(path))));
        for word in [&b"unix:/d/\xff,,\xfe/q"[..], b"/d/\xff,,\xfe/q", b"unix:path=/d/\xff,,\xfe/q"]
        {
            assert_eq!(of(word), unix(b"/d/\xff,\xfe/q"));
            let served = [word, b",server=on,wait=off"].concat();
            assert_eq!(of(&served), unix(b"/d/\xff,\xfe/q"));
        }
        assert_eq!(of(b"\xff"), unix(b"\xff"));
        for bad in
            [&b"tcp:\xff:1"[..], b"unix:\xff,\xfe=on", b"unix:\xff,abstract=on", b"unix:\xff,ab"]
        {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read_as_run_takes_them() {
        let unix = |path: &str| Ok(Address::unix(path.as_ref()));
        assert_eq!("unix:/a/q".parse(), unix("/a/q"));
        assert_eq!("unix:q,server=on,wait=off".parse(), unix("q"));
        assert_eq!("unix:q,server,nowait".parse(), unix("q"));
        assert_eq!("./q".parse(), unix("./q"));
        assert_eq!("q.sock".parse(), unix("q.sock"));
        assert_eq!("unix:/d/com,,ma,server=on".parse(), unix("/d/com,ma"));
        assert_eq!("/d/com,,ma".parse(), unix("/d/com,ma"));
        assert_eq!("unix:path=/d/a=b,server=on".parse(), unix("/d/a=b"));
        assert_eq!("unix:a b%41#'\"ü:x".parse(), unix("a b%41#'\"ü:x"));
        let name = "unix:name,abstract=on".parse::<Address>().unwrap();
        assert_eq!(name.0, SocketAddress::Abstract { name: "name".into() });
        let tcp = "tcp:[::1]:4444,server=on".parse::<Address>().unwrap();
        assert_eq!((tcp.to_string().as_str(), tcp.is_unix()), ("tcp:[::1]:4444", false));
        for bad in ["", "unix:", "tcp:host", "udp:host:1", "host:1", "stdio:"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        let cut = "unix:/d/com,ma/s".parse::<Address>().unwrap_err();
        assert!(cut.contains("ma/s") && cut.contains("a comma in a path is written ,,"), "{cut}");
    }

    /// A monitor that says `lines`, whatever it hears.
    fn monitor(lines: &'static [&'static str]) -> (tempfile::TempDir, Address) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for line in lines {
                socket.write_all(line.as_bytes()).unwrap();
            }
            while socket.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {}
        });
        (folder, Address::unix(&path))
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2}, \
                            \"package\": \"\"}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n";

    #[test]
    fn answers_are_told_from_events_and_errors_kept() {
        let (_folder, address) = monitor(&[
            GREETING,
            "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {\"status\"",
            ": \"paused\"}}\r\n{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\r\n",
        ]);
        let mut client = Client::connect(&address).unwrap();
        assert_eq!(version_text(&client.version), "QEMU 10.0.2");
        assert_eq!(client.execute("query-status", json!({})).unwrap(), json!({"status": "paused"}));
        let error = client.execute("nope", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "nope: no");
        assert_eq!(client.event(Duration::from_millis(1)).unwrap().unwrap()["event"], "STOP");
    }

    #[test]
    fn what_is_no_monitor_is_said_to_be_none() {
        let (_folder, address) = monitor(&["SSH-2.0-x\r\n"]);
        assert!(matches!(Client::connect(&address), Err(Error::NotQmp { .. })));
        let nowhere = Address::unix("/nonexistent/q".as_ref());
        let error = Client::connect(&nowhere).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "nothing answers at unix:/nonexistent/q");
    }
}
