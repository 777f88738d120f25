//! A client that reads line by line and can send descriptors.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

pub struct Client {
    socket: UnixStream,
    buffer: Vec<u8>,
}

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

impl Client {
    /// Connects, waiting for the server to listen.
    pub fn connect(path: &Path) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Client { socket, buffer: Vec::new() };
                }
                Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Connects, checks the greeting, and finishes the negotiation.
    pub fn negotiated(path: &Path) -> Client {
        let mut client = Client::connect(path);
        assert!(client.receive().get("QMP").is_some());
        assert_eq!(client.ask("qmp_capabilities", json!({})), json!({}));
        client
    }

    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
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
    pub fn receive_text(&mut self) -> Option<String> {
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

    pub fn receive(&mut self) -> Value {
        serde_json::from_str(&self.receive_text().expect("the server closed the connection"))
            .unwrap()
    }

    /// True if something comes in this time.
    pub fn hears_within(&mut self, time: Duration) -> bool {
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

    /// Sends a command and waits for its answer; events on the way are dropped.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.ask_with(command, arguments, &[]).0
    }

    /// The answer, and the events before it.
    pub fn ask_with(
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

    /// Waits for an event of this name; what comes before it is dropped.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let message = self.receive();
            if message.get("event") == Some(&json!(name)) {
                return message;
            }
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
