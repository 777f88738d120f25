//! A client of QMP that reads line by line, keeps the events that come between, and can send
//! descriptors.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::PATIENCE;

pub(crate) struct Client {
    socket: UnixStream,
    buffer: Vec<u8>,
    /// Events that came before an answer and that nobody asked for yet.
    pub(crate) events: Vec<Value>,
}

impl Client {
    /// Connects, waiting for the server to listen.
    pub(crate) fn connect(path: &Path) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::try_connect(path) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Connects, if the server listens already.
    pub(crate) fn try_connect(path: &Path) -> std::io::Result<Client> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { socket, buffer: Vec::new(), events: Vec::new() })
    }

    /// Connects, checks the greeting, and finishes the negotiation.
    pub(crate) fn negotiated(path: &Path) -> Client {
        let mut client = Client::connect(path);
        client.negotiate();
        client
    }

    /// Checks the greeting, and finishes the negotiation.
    pub(crate) fn negotiate(&mut self) {
        let greeting = self.receive();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        self.ask("qmp_capabilities", json!({}));
    }

    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut sent = 0;
        if !fds.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
            let parts = [IoSlice::new(bytes)];
            sent = sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        }
        while sent < bytes.len() {
            sent += rustix::net::send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL).unwrap();
        }
    }

    /// The next line as it came; `None`: the server closed the connection.
    pub(crate) fn receive_text(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            let mut part = [0; 1 << 16];
            match self.socket.read(&mut part) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    pub(crate) fn receive(&mut self) -> Value {
        serde_json::from_str(&self.receive_text().expect("the server closed the connection"))
            .unwrap()
    }

    /// True if something comes in this time.
    pub(crate) fn hears_within(&mut self, time: Duration) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0; 1];
        let heard = matches!(self.socket.read(&mut byte), Ok(1));
        if heard {
            self.buffer.push(byte[0]);
        }
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        heard
    }

    /// Sends a command that must be carried out, and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The answer, or the error's text.
    pub(crate) fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut message = self.message(command, arguments);
        match message.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(message["error"]["desc"].as_str().unwrap().to_owned()),
        }
    }

    /// The error with which a command is refused: class and text.
    pub(crate) fn refused(&mut self, command: &str, arguments: Value) -> Value {
        let mut message = self.message(command, arguments);
        assert!(message.get("error").is_some(), "{command} is not refused: {message}");
        message["error"].take()
    }

    fn message(&mut self, command: &str, arguments: Value) -> Value {
        self.try_message(command, arguments)
            .unwrap_or_else(|| panic!("{command}: the server closed the connection"))
    }

    /// The message that answers a command, whatever it says; `None`: the server closed the
    /// connection.
    pub(crate) fn try_message(&mut self, command: &str, arguments: Value) -> Option<Value> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        if rustix::net::send(&self.socket, request.as_bytes(), SendFlags::NOSIGNAL).is_err() {
            return None;
        }
        loop {
            let message: Value = serde_json::from_str(&self.receive_text()?).unwrap();
            if message.get("event").is_none() {
                return Some(message);
            }
            self.events.push(message);
        }
    }

    /// The answer, or the whole message if it is an error, and the events that came before it.
    pub(crate) fn ask_with(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> (Value, Vec<Value>) {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        self.send(request.as_bytes(), fds);
        let mut events = Vec::new();
        loop {
            let mut message = self.receive();
            if message.get("event").is_some() {
                events.push(message);
            } else if let Some(value) = message.get_mut("return") {
                return (value.take(), events);
            } else {
                return (message, events);
            }
        }
    }

    /// Waits for an event of this name, unless it came already.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at);
            }
            let message = self.receive();
            assert!(message.get("event").is_some(), "no event {name} but {message}");
            self.events.push(message);
        }
    }

    pub(crate) fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// The guest goes on a moment after a dump's end was told, as QEMU's does.
    pub(crate) fn wait_until_running(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.status() != "running" {
            assert!(Instant::now() < end, "the guest stays in state {}", self.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
