//! A QMP connection: one command at a time, events kept aside.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Where a monitor listens: `unix:PATH` (or the path alone) or `tcp:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(String),
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        // What stands behind a comma belongs to the server's side (server=on,wait=off); people
        // paste it.
        let plain = text.split(',').next().unwrap_or(text);
        match plain.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", place)) if place.contains(':') => Ok(Address::Tcp(place.into())),
            _ if plain.contains('/') || !plain.contains(':') && !plain.is_empty() => {
                Ok(Address::Unix(plain.into()))
            }
            _ => Err("expected unix:PATH or tcp:HOST:PORT".into()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{path}"),
            Address::Tcp(place) => write!(f, "tcp:{place}"),
        }
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
}

/// A monitor serves one client at a time; the next one hears nothing until the first has gone.
const GREETING_TIME: Duration = Duration::from_secs(5);

/// One line of an answer is never longer; query-qmp-schema, the longest there is, is about 200 KiB.
const LINE_BYTES_MAX: u64 = 64 << 20;

pub struct Client {
    reader: BufReader<Box<dyn Read + Send>>,
    writer: Box<dyn Write + Send>,
    set_timeout: Box<dyn Fn(Option<Duration>) -> io::Result<()> + Send>,
    /// The line being received, when a time-out came in the middle of it.
    partial: Vec<u8>,
    events: VecDeque<Value>,
    /// The `version` object of the greeting.
    pub version: Value,
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(address: &Address) -> Result<Client, Error> {
        let refused = |source| Error::Connect { address: address.clone(), source };
        let mut client = match address {
            Address::Unix(path) => {
                let socket = UnixStream::connect(path).map_err(refused)?;
                let (reader, clock) =
                    (socket.try_clone().map_err(refused)?, socket.try_clone().map_err(refused)?);
                Client::over(Box::new(reader), Box::new(socket), move |time| {
                    clock.set_read_timeout(time)
                })
            }
            Address::Tcp(place) => {
                let socket = TcpStream::connect(place).map_err(refused)?;
                socket.set_nodelay(true).map_err(refused)?;
                let (reader, clock) =
                    (socket.try_clone().map_err(refused)?, socket.try_clone().map_err(refused)?);
                Client::over(Box::new(reader), Box::new(socket), move |time| {
                    clock.set_read_timeout(time)
                })
            }
        };
        client.version = match client.message(Some(GREETING_TIME)) {
            Ok(Some(Value::Object(greeting))) if greeting.contains_key("QMP") => {
                greeting["QMP"]["version"].clone()
            }
            Ok(Some(_)) => return Err(Error::NotQmp { address: address.clone() }),
            Ok(None) => return Err(Error::NoGreeting { address: address.clone() }),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::NotQmp { address: address.clone() });
            }
            Err(source) => return Err(refused(source)),
        };
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Tries again until the monitor is there, for a machine that was started a moment ago.
    pub fn connect_within(address: &Address, time: Duration) -> Result<Client, Error> {
        let end = Instant::now() + time;
        loop {
            match Client::connect(address) {
                Err(Error::Connect { .. }) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                done => return done,
            }
        }
    }

    fn over(
        reader: Box<dyn Read + Send>,
        writer: Box<dyn Write + Send>,
        set_timeout: impl Fn(Option<Duration>) -> io::Result<()> + Send + 'static,
    ) -> Client {
        Client {
            reader: BufReader::new(reader),
            writer,
            set_timeout: Box::new(set_timeout),
            partial: Vec::new(),
            events: VecDeque::new(),
            version: Value::Null,
        }
    }

    /// Runs a command and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let mut request = json!({"execute": command});
        if arguments.as_object().is_some_and(|members| !members.is_empty()) {
            request["arguments"] = arguments;
        }
        self.request(command, &request)
    }

    /// Sends a whole request object. `command` is its name in error messages.
    pub fn request(&mut self, command: &str, request: &Value) -> Result<Value, Error> {
        let lost = |source| Error::Lost { command: command.into(), source };
        let form = || Error::Form { command: command.into() };
        self.writer.write_all(format!("{request}\r\n").as_bytes()).map_err(lost)?;
        loop {
            let message = self.message(None).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Closed { command: command.into() },
                _ => lost(source),
            })?;
            let Some(Value::Object(mut message)) = message else { return Err(form()) };
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
    pub fn event(&mut self, time: Duration) -> Result<Option<Value>, Error> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match self.message(Some(time)) {
            Ok(message) => Ok(message),
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::Closed { command: "events".into() })
            }
            Err(source) => Err(Error::Lost { command: "events".into(), source }),
        }
    }

    /// One line as JSON; `None` if none came in time.
    fn message(&mut self, time: Option<Duration>) -> io::Result<Option<Value>> {
        (self.set_timeout)(time)?;
        loop {
            let room = LINE_BYTES_MAX.saturating_sub(self.partial.len() as u64);
            match (&mut self.reader).take(room).read_until(b'\n', &mut self.partial) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.partial.ends_with(b"\n") => {}
                Ok(_) if self.partial.len() as u64 >= LINE_BYTES_MAX => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            let line = std::mem::take(&mut self.partial);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return serde_json::from_slice(&line)
                .map(Some)
                .map_err(|_| io::ErrorKind::InvalidData.into());
        }
    }
}

/// `10.0.2`, or Godwit's own version where it is one.
pub fn version_text(version: &Value) -> String {
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
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        assert_eq!("unix:/a/q".parse(), unix("/a/q"));
        assert_eq!("unix:q,server=on,wait=off".parse(), unix("q"));
        assert_eq!("./q".parse(), unix("./q"));
        assert_eq!("q.sock".parse(), unix("q.sock"));
        assert_eq!("tcp:[::1]:4444".parse(), Ok(Address::Tcp("[::1]:4444".into())));
        for bad in ["", "unix:", "tcp:host", "udp:host:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
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
        (folder, Address::Unix(path.to_string_lossy().into()))
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
        let nowhere = Address::Unix("/nonexistent/q".into());
        let error = Client::connect(&nowhere).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "nothing answers at unix:/nonexistent/q");
    }
}
