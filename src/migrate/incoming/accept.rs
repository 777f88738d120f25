//! Who connects: the source, its further channels, and strangers.
//!
//! Whoever is accepted waits in a lobby until he has spoken, while others are accepted: a port scan
//! or a health check that says nothing holds nobody up. The first four bytes tell who it is. `QEVM`
//! is a source: the first one is taken, and whatever is wrong with its stream from there on is
//! reported as that. The magic of a hello is a channel. Anything else is a stranger, who is dropped
//! with a word on stderr, as is who stays silent for too long.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::Error;
use crate::io::{self, Connection, Listener, Ring};
use crate::stream;
use crate::stream::multifd::{self, HELLO_BYTES};

/// Connections that have said nothing yet, at most; the oldest makes room. Their polls and those of
/// the listening sockets fit into the ring.
const SILENT_MAX: usize = 32;
/// Channels that may be there before the main one: as many as a number in a hello can name.
const EARLY_MAX: usize = 256;
/// How long a channel that has connected may take to say hello once a round is over.
const HELLO: Duration = Duration::from_secs(1);
/// Until what has come in part is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Strangers that get a line on stderr.
const TOLD_MAX: u32 = 20;

/// Where the stream comes from.
pub enum Origin {
    Listener(Listener),
    Open(Connection),
}

/// Connections of one migration.
pub(super) struct Connections {
    origin: Origin,
    /// Accepted, and not known yet.
    silent: Vec<Silent>,
    /// Channels that came before anybody asked for them.
    early: Vec<Connection>,
    told: u32,
}

struct Silent {
    connection: Connection,
    since: Instant,
    /// Whether part of a word was there when it was last looked at.
    has_part: bool,
}

/// What a connection's first bytes say.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// Too little to tell.
    Part,
    Source,
    /// A whole hello is there.
    Channel,
    Stranger(u32),
    /// It is closed.
    Gone,
}

/// Who has spoken.
enum Speaker {
    Source(Connection),
    Channel(Connection),
}

impl Connections {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, silent: Vec::new(), early: Vec::new(), told: 0 }
    }

    /// The main channel: the first connection that speaks as a source does. Who says nothing for
    /// `timeout` is dropped.
    pub(super) fn main(&mut self, ring: &mut Ring, timeout: Duration) -> Result<Connection, Error> {
        if let Origin::Open(connection) = &self.origin {
            connection.await_writer(ring)?;
            return Ok(connection.share());
        }
        loop {
            match self.speaker(ring, timeout, None)? {
                Some(Speaker::Source(connection)) => return Ok(connection),
                Some(Speaker::Channel(connection)) if self.early.len() < EARLY_MAX => {
                    self.early.push(connection);
                }
                Some(Speaker::Channel(_)) | None => {}
            }
        }
    }

    /// The next channel, whose hello is there to be read; `None` if none comes within `timeout`.
    pub(super) fn channel(
        &mut self,
        ring: &mut Ring,
        timeout: Duration,
    ) -> Result<Option<Connection>, Error> {
        if let Some(connection) = self.early.pop() {
            return Ok(Some(connection));
        }
        if let Origin::Open(_) = self.origin {
            return Err(Error::Command("several channels over one connection"));
        }
        let until = Instant::now() + timeout;
        loop {
            match self.speaker(ring, timeout, Some(until))? {
                Some(Speaker::Channel(connection)) => return Ok(Some(connection)),
                Some(Speaker::Source(_)) => self.tell("a second source was turned away"),
                None => return Ok(None),
            }
        }
    }

    /// Whether a channel is there that nobody reads, so that its pages would be lost. From here on
    /// nobody is waited for.
    pub(super) fn has_unread_channel(&mut self, ring: &mut Ring) -> Result<bool, Error> {
        if let Origin::Open(_) = self.origin {
            return Ok(false);
        }
        let mut found = !self.early.is_empty();
        // Whoever has said nothing for that long is no channel: they say hello before anything else
        // is sent.
        while !found {
            let newest = self.silent.iter().map(|silent| silent.since).max();
            let now = Instant::now();
            let until = newest.map_or(now, |since| since + HELLO).max(now);
            match self.speaker(ring, HELLO, Some(until))? {
                Some(Speaker::Channel(_)) => found = true,
                Some(Speaker::Source(_)) => {}
                None if self.silent.is_empty() || until <= Instant::now() => break,
                None => {}
            }
        }
        self.silent.clear();
        Ok(found)
    }

    /// Nobody else is wanted: who has not spoken is dropped.
    pub(super) fn turn_away(&mut self) {
        self.silent.clear();
    }

    /// Waits until somebody has said who he is, or `until`. Who is silent for `timeout` is dropped.
    fn speaker(
        &mut self,
        ring: &mut Ring,
        timeout: Duration,
        until: Option<Instant>,
    ) -> Result<Option<Speaker>, Error> {
        loop {
            self.accept_all(ring, Instant::now())?;
            let (mut at, mut again) = (0, None);
            while at < self.silent.len() {
                let now = Instant::now();
                let since = self.silent[at].since;
                match said(&self.silent[at].connection) {
                    Said::Source => {
                        return Ok(Some(Speaker::Source(self.silent.remove(at).connection)));
                    }
                    Said::Channel => {
                        return Ok(Some(Speaker::Channel(self.silent.remove(at).connection)));
                    }
                    Said::Nothing | Said::Part if now >= since + timeout => {
                        self.silent.remove(at);
                        let ms = timeout.as_millis();
                        self.tell(&format!(
                            "a connection that said nothing for {ms} ms was dropped"
                        ));
                    }
                    part @ (Said::Nothing | Said::Part) => {
                        self.silent[at].has_part = part == Said::Part;
                        if part == Said::Part {
                            again = Some(now + LOOK_AGAIN);
                        }
                        at += 1;
                    }
                    Said::Stranger(first) => {
                        self.silent.remove(at);
                        self.tell(&format!(
                            "a connection that began with {first:#010x}, which is no migration stream, was dropped"
                        ));
                    }
                    Said::Gone => {
                        self.silent.remove(at);
                        self.tell("a connection ended before it began");
                    }
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
            let first_out = self.silent.iter().map(|silent| silent.since + timeout).min();
            let deadline = [until, first_out, again].into_iter().flatten().min();
            self.wait(ring, deadline)?;
        }
    }

    /// Blocks until somebody connects or says something, or `deadline`.
    fn wait(&self, ring: &mut Ring, deadline: Option<Instant>) -> Result<(), Error> {
        let Origin::Listener(listener) = &self.origin else { return Ok(()) };
        let mut polls = listener.poll(ring)?;
        for silent in &self.silent {
            // Part of a word would end the wait at once. It counts what was seen when the deadline
            // was set: looked at once more here, a word that came in between would be waited for by
            // nobody.
            if !silent.has_part {
                polls.push(ring.poll(silent.connection.fd.as_raw_fd(), libc::POLLIN)?);
            }
        }
        let slept = loop {
            if polls.iter().any(|poll| ring.is_done(*poll)) {
                break Ok(());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Ok(());
            }
            if let Err(error) = ring.sleep(deadline) {
                break Err(error);
            }
        };
        for poll in polls {
            ring.cancel(poll);
        }
        Ok(slept?)
    }

    /// Takes in whoever waits at the door.
    fn accept_all(&mut self, ring: &mut Ring, now: Instant) -> Result<(), Error> {
        let Origin::Listener(listener) = &self.origin else { return Ok(()) };
        // As many as the lobby holds: whoever connects again and again gets no further.
        for _ in 0..SILENT_MAX {
            match listener.accept_now() {
                Ok(Some(connection)) => {
                    if self.silent.len() == SILENT_MAX {
                        self.silent.remove(0);
                    }
                    self.silent.push(Silent { connection, since: now, has_part: false });
                }
                Ok(None) => break,
                Err(error) if error.is_disconnect() => {}
                // Too few descriptors: the oldest gives his.
                Err(io::Error::System(error))
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                        && !self.silent.is_empty() =>
                {
                    self.silent.remove(0);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if ring.is_cancelled() { Err(io::Error::Cancelled.into()) } else { Ok(()) }
    }

    fn tell(&mut self, what: &str) {
        self.told += 1;
        match self.told {
            ..TOLD_MAX => say!("godwit: incoming migration: {what}; still listening"),
            TOLD_MAX => {
                say!(
                    "godwit: incoming migration: {what}; still listening (further ones are not told)"
                );
            }
            _ => {}
        }
    }
}

fn said(connection: &Connection) -> Said {
    let mut bytes = [0; HELLO_BYTES];
    let have = match connection.peek_now(&mut bytes) {
        Ok(None) => return Said::Nothing,
        Ok(Some(0)) | Err(_) => return Said::Gone,
        Ok(Some(have)) => have,
    };
    let whole = |bytes| have >= bytes || !connection.is_hung_up().unwrap_or(true);
    let Some(first) = bytes[..have].first_chunk::<4>() else {
        return if whole(4) { Said::Part } else { Said::Gone };
    };
    match u32::from_be_bytes(*first) {
        stream::MAGIC => Said::Source,
        multifd::MAGIC if have == HELLO_BYTES => Said::Channel,
        multifd::MAGIC if whole(HELLO_BYTES) => Said::Part,
        multifd::MAGIC => Said::Gone,
        other => Said::Stranger(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Address, Waker};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const LONG: Duration = Duration::from_secs(60);

    struct Door {
        path: String,
        connections: Connections,
        ring: Ring,
        _dir: tempfile::TempDir,
    }

    fn door() -> Door {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_owned();
        let listener =
            Listener::bind(&Address::from_uri(&format!("unix:{path}")).unwrap()).unwrap();
        let connections = Connections::new(Origin::Listener(listener));
        Door { path, connections, ring: Ring::new(Waker::new()).unwrap(), _dir: dir }
    }

    impl Door {
        fn knock(&self, says: &[u8]) -> UnixStream {
            let mut socket = UnixStream::connect(&self.path).unwrap();
            socket.write_all(says).unwrap();
            socket
        }
    }

    fn hello(number: u8) -> Vec<u8> {
        let mut bytes = vec![0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1]);
        bytes[24] = number;
        bytes
    }

    #[test]
    fn the_first_that_speaks_as_a_source_is_it_whoever_came_before() {
        let mut door = door();
        let silent: Vec<_> = (0..5).map(|_| door.knock(b"")).collect();
        let _garbage = door.knock(b"GET / HTTP/1.1\r\n\r\n");
        let _part = door.knock(b"QE");
        let early = door.knock(&hello(1));
        drop(door.knock(b"QEV"));
        let _source = door.knock(b"QEVM");
        let main = door.connections.main(&mut door.ring, LONG).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(main.peek_now(&mut bytes).unwrap(), Some(4));
        assert_eq!(&bytes[..4], b"QEVM");
        // The channel that was there before, and one that says hello in two pieces.
        assert!(door.connections.channel(&mut door.ring, LONG).unwrap().is_some());
        drop(early);
        let mut late = door.knock(&hello(2)[..10]);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            late.write_all(&hello(2)[10..]).unwrap();
            late
        });
        assert!(door.connections.channel(&mut door.ring, LONG).unwrap().is_some());
        drop((silent, writer.join().unwrap()));
    }

    #[test]
    fn the_silent_are_dropped_after_the_timeout_and_their_number_is_bounded() {
        let mut door = door();
        let mut silent: Vec<_> = (0..SILENT_MAX + 8).map(|_| door.knock(b"")).collect();
        let short = Duration::from_millis(50);
        assert!(door.connections.channel(&mut door.ring, short).unwrap().is_none());
        assert!(door.connections.silent.len() <= SILENT_MAX);
        assert!(door.connections.channel(&mut door.ring, short).unwrap().is_none());
        // The first of them hears that it was turned away.
        use std::io::Read;
        assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
        let _source = door.knock(b"QEVM....");
        door.connections.main(&mut door.ring, LONG).unwrap();
    }

    #[test]
    fn a_word_that_comes_at_any_moment_is_heard() {
        let mut door = door();
        let path = door.path.clone();
        let (next, wanted) = std::sync::mpsc::channel();
        let speaker = std::thread::spawn(move || {
            // The word comes 0 to 100 us after the connection, which is when the door looks.
            for turn in wanted {
                let mut socket = UnixStream::connect(&path).unwrap();
                let spin = Instant::now();
                while spin.elapsed() < Duration::from_nanos(turn % 1000 * 100) {}
                socket.write_all(b"QEVM").unwrap();
            }
        });
        for turn in 0..3000_u64 {
            let began = Instant::now();
            next.send(turn).unwrap();
            door.connections.main(&mut door.ring, LONG).unwrap();
            assert!(began.elapsed() < LONG, "it was heard when it would have been dropped");
            assert!(door.connections.silent.is_empty());
        }
        drop(next);
        speaker.join().unwrap();
    }

    #[test]
    fn a_cancel_ends_the_wait() {
        let mut door = door();
        let _silent = door.knock(b"");
        let waker = door.ring.waker().clone();
        let cancel = std::thread::spawn(move || waker.cancel());
        let ended = door.connections.main(&mut door.ring, LONG);
        assert!(matches!(ended, Err(Error::Io(io::Error::Cancelled))));
        cancel.join().unwrap();
    }

    #[test]
    fn a_channel_that_nobody_reads_is_found_behind_the_silent() {
        let mut door = door();
        let _silent = door.knock(b"");
        let _channel = door.knock(&hello(3));
        assert!(door.connections.has_unread_channel(&mut door.ring).unwrap());
        assert!(!door.connections.has_unread_channel(&mut door.ring).unwrap());
    }
}
