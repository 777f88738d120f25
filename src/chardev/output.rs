//! From vCPU threads to whoever reads: bytes that must not hold the guest up.
//!
//! A byte is written at once by the vCPU thread when the other side has room. What does not fit
//! waits in a backlog that the control plane writes. When that is full too, the vCPU waits a
//! moment, so that a slow reader loses nothing; a reader that does not move in that time loses what
//! follows, until it reads again. With nobody connected, bytes are lost at once.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use tokio::sync::Notify;

const BACKLOG_BYTES: usize = 64 << 10;
/// How long a vCPU waits for a reader: a reader that is alive needs less, and stopping the guest
/// waits for it.
const READER_WAIT_MAX: Duration = Duration::from_millis(20);
/// Written at once to a terminal or pipe that says it has room; one that has any has room for this
/// much.
const WRITE_BYTES: usize = 16;

pub(crate) struct Output {
    /// [`READER_WAIT_MAX`], but in tests that lose nothing on a busy machine.
    wait_max: Duration,
    state: Mutex<State>,
    /// The backlog has room again.
    room: Condvar,
    /// The backlog has something in it, or its reader changed.
    filled: Notify,
    /// Called, with no lock held, when the reader changed or the backlog has room again.
    changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Default for Output {
    fn default() -> Output {
        Output {
            wait_max: READER_WAIT_MAX,
            state: Mutex::default(),
            room: Condvar::default(),
            filled: Notify::default(),
            changed: OnceLock::new(),
        }
    }
}

#[derive(Default)]
struct State {
    to: To,
    backlog: VecDeque<u8>,
    /// The control plane is writing what it took from the backlog.
    in_flight: bool,
    /// The reader did not move while a vCPU waited for it.
    stalled: bool,
    /// The last write to a disk failed.
    losing: bool,
    /// Counts connections.
    connection: u64,
}

/// Who reads.
#[derive(Clone, Default)]
pub(crate) enum To {
    #[default]
    Nobody,
    /// Somebody who forgets everything.
    Nowhere,
    /// Takes everything without waiting.
    Disk(Arc<File>),
    Stream(Arc<File>),
    Socket(Arc<File>),
}

impl Output {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends everything to `to` from here on; what was not read by the last reader is lost. The
    /// number is for [`Output::take`].
    pub(crate) fn connect(&self, to: To) -> u64 {
        let mut state = self.state();
        let connection = state.connection + 1;
        *state = State { to, connection, ..State::default() };
        drop(state);
        self.room.notify_all();
        self.filled.notify_waiters();
        self.tell();
        connection
    }

    pub(crate) fn disconnect(&self) {
        self.connect(To::Nobody);
    }

    /// Waits for a part of the backlog. `None`: there is another connection now.
    pub(crate) async fn take(&self, connection: u64) -> Option<Vec<u8>> {
        loop {
            let filled = self.filled.notified();
            {
                let mut state = self.state();
                if state.connection != connection {
                    return None;
                }
                if !state.backlog.is_empty() {
                    state.in_flight = true;
                    return Some(state.backlog.drain(..).collect());
                }
            }
            filled.await;
        }
    }

    /// What was taken is written.
    pub(crate) fn written(&self, connection: u64) {
        let mut state = self.state();
        if state.connection == connection {
            state.in_flight = false;
            state.stalled = false;
            drop(state);
            self.room.notify_all();
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(changed) = self.changed.get() {
            changed();
        }
    }

    /// Who is told of changes. Once.
    pub(crate) fn on_change(&self, changed: Box<dyn Fn() + Send + Sync>) {
        let _ = self.changed.set(changed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        !matches!(self.state().to, To::Nobody)
    }

    /// So much can be written without waiting, if nobody else writes.
    pub(super) fn room(&self) -> usize {
        let state = self.state();
        match state.to {
            To::Disk(_) | To::Nobody | To::Nowhere => usize::MAX,
            To::Stream(_) | To::Socket(_) => BACKLOG_BYTES.saturating_sub(state.backlog.len()),
        }
    }

    /// Takes as much as there is room for, without waiting; returns how much that was. With nobody
    /// connected everything is taken, and lost.
    pub(crate) fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        if let To::Disk(_) | To::Nobody | To::Nowhere = state.to {
            drop(state);
            self.write(bytes);
            return bytes.len();
        }
        let mut taken = 0;
        if state.backlog.is_empty() && !state.in_flight {
            taken = write_now(&state.to, bytes);
        }
        let room = BACKLOG_BYTES.saturating_sub(state.backlog.len());
        let kept = &bytes[taken..][..room.min(bytes.len() - taken)];
        state.backlog.extend(kept);
        drop(state);
        if !kept.is_empty() {
            self.filled.notify_waiters();
        }
        taken + kept.len()
    }

    /// Never blocks for long; what finds no room even then is lost.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut state = self.state();
        let mut rest = bytes;
        if let To::Disk(file) = &state.to {
            let written = (&**file).write_all(rest);
            // A guest writes byte by byte: what lasts is told once.
            if let (Err(error), false) = (&written, state.losing) {
                tracing::warn!("output lost: {error}");
            }
            state.losing = written.is_err();
            return;
        }
        if state.backlog.is_empty() && !state.in_flight {
            rest = &rest[write_now(&state.to, rest)..];
        }
        if rest.is_empty() || matches!(state.to, To::Nobody | To::Nowhere) {
            return;
        }
        if state.backlog.len() + rest.len() > BACKLOG_BYTES && !state.stalled {
            state = self.wait_for_room(state, rest.len());
        }
        if state.backlog.len() + rest.len() <= BACKLOG_BYTES {
            state.backlog.extend(rest);
            drop(state);
            self.filled.notify_waiters();
        }
    }

    fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        bytes: usize,
    ) -> MutexGuard<'a, State> {
        let end = Instant::now() + self.wait_max;
        while state.backlog.len() + bytes > BACKLOG_BYTES {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stalled = true;
                break;
            }
            self.filled.notify_waiters();
            state = self
                .room
                .wait_timeout(state, left)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
        state
    }
}

/// How many of `bytes` could be written without waiting.
fn write_now(to: &To, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        let rest = &bytes[written..];
        let result = match to {
            To::Nobody | To::Nowhere | To::Disk(_) => break,
            To::Socket(socket) => send(socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            To::Stream(file) if has_room(file.as_fd()) => {
                rustix::io::write(file, &rest[..rest.len().min(WRITE_BYTES)])
            }
            To::Stream(_) => break,
        };
        match result {
            Ok(count) => written += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    written
}

fn has_room(file: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(file, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().contains(PollFlags::OUT))
}

/// A copy of what goes out. What it cannot take is lost to it; that is told once, until it takes
/// something again.
pub(super) struct Log {
    file: File,
    losing: bool,
}

impl Log {
    pub(super) fn new(file: File) -> Log {
        Log { file, losing: false }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        let written = self.file.write_all(bytes);
        if let (Err(error), false) = (&written, self.losing) {
            tracing::warn!("log of a character device: {error}");
        }
        self.losing = written.is_err();
    }
}

/// The writer's end, for a device. Never blocks for long and never fails.
pub(crate) struct Sink {
    output: Arc<Output>,
    log: Option<Log>,
}

impl Sink {
    pub(crate) fn new(output: Arc<Output>, log: Option<File>) -> Sink {
        Sink { output, log: log.map(Log::new) }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(log) = &mut self.log {
            log.write(bytes);
        }
        self.output.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_fails_is_told_once() {
        let said = tempfile::NamedTempFile::new().unwrap();
        let copy = said.reopen().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(copy)).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut log = Log::new(File::open("/dev/null").unwrap());
            (0..3).for_each(|_| log.write(b"x"));
        });
        assert_eq!(std::fs::read_to_string(said.path()).unwrap().lines().count(), 1);
    }
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// More than a busy machine needs.
    const LIMIT: Duration = Duration::from_secs(60);

    fn connected() -> (Arc<Output>, Sink, UnixStream) {
        connected_with(READER_WAIT_MAX)
    }

    fn connected_with(wait_max: Duration) -> (Arc<Output>, Sink, UnixStream) {
        let output = Arc::new(Output { wait_max, ..Output::default() });
        let (ours, theirs) = UnixStream::pair().unwrap();
        output.connect(To::Socket(Arc::new(OwnedFd::from(ours).into())));
        (output.clone(), Sink::new(output, None), theirs)
    }

    #[test]
    fn nobody_connected_loses_output_without_waiting() {
        let mut sink = Sink::new(Arc::default(), None);
        let start = Instant::now();
        for _ in 0..10_000 {
            sink.write_all(b"lost in the wind").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_once_and_a_guest_goes_on() {
        let output = Arc::new(Output::default());
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let mut sink = Sink::new(output.clone(), Some(full()));
        output.connect(To::Disk(Arc::new(full())));
        for _ in 0..3 {
            sink.write_all(b"x").unwrap();
            assert!(output.state().losing && sink.log.as_ref().unwrap().losing);
        }
        sink.log = Some(Log::new(tempfile::tempfile().unwrap()));
        output.connect(To::Disk(Arc::new(tempfile::tempfile().unwrap())));
        sink.write_all(b"x").unwrap();
        let losing = output.state().losing || sink.log.unwrap().losing;
        assert!(!losing, "the next loss is told again");
    }

    #[test]
    fn reader_that_does_not_read_costs_the_guest_one_moment() {
        let (output, mut sink, _reader) = connected();
        let start = Instant::now();
        for _ in 0..200_000 {
            sink.write_all(b"0123456789abcdef").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(output.state().backlog.len() <= BACKLOG_BYTES);
    }

    #[test]
    fn slow_reader_gets_every_byte_in_order() {
        use std::io::Read;
        const TOTAL: usize = 1 << 20;
        let (output, mut sink, mut reader) = connected_with(LIMIT);
        reader.set_read_timeout(Some(LIMIT)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            let mut part = [0; 3000];
            while got.len() < TOTAL {
                let count = reader.read(&mut part).unwrap();
                got.extend_from_slice(&part[..count]);
                std::thread::sleep(Duration::from_micros(50));
            }
            got
        });
        let drained = output.clone();
        let To::Socket(socket) = output.state().to.clone() else { unreachable!() };
        std::thread::spawn(move || {
            runtime.block_on(async {
                while let Some(bytes) = drained.take(1).await {
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        rest =
                            &rest[rustix::net::send(&socket, rest, SendFlags::NOSIGNAL).unwrap()..];
                    }
                    drained.written(1);
                }
            });
        });
        let sent: Vec<u8> = (0..TOTAL).map(|n| (n % 251) as u8).collect();
        for part in sent.chunks(7) {
            sink.write_all(part).unwrap();
        }
        let got = reading.join().unwrap();
        output.disconnect();
        assert!(got == sent);
    }
}
