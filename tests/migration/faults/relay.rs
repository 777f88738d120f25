//! A relay between source and target that stops the stream at a chosen point and then does what it
//! is told.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::common::vm::PATIENCE;

/// Where in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Before the first byte.
    Setup,
    /// Behind so many bytes from the source.
    Bytes(u64),
    /// Before the next byte from the source after the point was armed: the last round begins with
    /// it where the source stands at `pre-switchover`.
    Next,
    /// So many bytes behind the start of the device sections.
    Device(usize),
    /// Before the target's LOADED.
    Loaded,
    /// Behind LOADED, before the source's GO.
    Go,
    /// Behind GO, before the target's answer to it.
    Shut,
}

/// What the stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Running,
    Stopped,
    Cut,
}

/// The section that ends RAM: SWITCHOVER_START, section END with id 2, the record that ends it, its
/// footer.
const RAM_END: [u8; 23] =
    [0x08, 0x00, 0x0b, 0x00, 0x00, 0x03, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 2];
/// The private answer LOADED.
const LOADED: [u8; 5] = [0x47, 0x57, 0x00, 0x01, 0x03];

#[derive(Debug)]
struct State {
    point: Option<Point>,
    flow: Flow,
    /// Bytes to be changed in what the source sends next.
    spoil: usize,
    /// LOADED has passed.
    loaded: bool,
    /// GO has passed.
    gone: bool,
    /// Bytes from the source.
    sent: u64,
    hit: bool,
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[derive(Clone)]
pub(super) struct Relay {
    shared: Arc<(Mutex<State>, Condvar)>,
    pub uri: String,
}

impl Relay {
    /// Between a source and the target that listens at `to`.
    pub(super) fn start(dir: &Path, to: PathBuf) -> Self {
        Self::channels(dir, to, 0)
    }

    /// The same, where connection number `which` is the one that is stopped; the main channel is
    /// number 0.
    pub(super) fn channels(dir: &Path, to: PathBuf, which: usize) -> Self {
        let path = dir.join("relay");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let state = State {
            point: None,
            flow: Flow::Running,
            spoil: 0,
            loaded: false,
            gone: false,
            sent: 0,
            hit: false,
        };
        let relay = Self {
            shared: Arc::new((Mutex::new(state), Condvar::new())),
            uri: format!("unix:{}", path.display()),
        };
        let other = relay.clone();
        std::thread::spawn(move || {
            for number in 0.. {
                let Ok((source, _)) = listener.accept() else { return };
                let Ok(target) = UnixStream::connect(&to) else { return };
                let (source_again, target_again) =
                    (source.try_clone().unwrap(), target.try_clone().unwrap());
                if number == which {
                    let (there, back) = (other.clone(), other.clone());
                    std::thread::spawn(move || back.pump(target_again, source_again, false));
                    std::thread::spawn(move || there.pump(source, target, true));
                } else {
                    std::thread::spawn(move || copy(target_again, source_again));
                    std::thread::spawn(move || copy(source, target));
                }
            }
        });
        relay
    }

    /// Stops the stream at `point` from now on.
    pub(super) fn stop_at(&self, point: Point) {
        let mut state = self.lock();
        (state.point, state.hit) = (Some(point), false);
    }

    /// Waits until the stream stands at its point.
    pub(super) fn wait(&self) {
        let end = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !state.hit {
            assert!(Instant::now() < end, "the stream never came to its point: {state:?}");
            state = self.shared.1.wait_timeout(state, Duration::from_millis(50)).unwrap().0;
        }
    }

    /// Lets the stream go on.
    pub(super) fn go_on(&self) {
        self.set(Flow::Running);
    }

    /// Ends both connections.
    pub(super) fn cut(&self) {
        self.set(Flow::Cut);
    }

    /// Changes the next `bytes` bytes from the source, then goes on.
    pub(super) fn spoil(&self, bytes: usize) {
        self.lock().spoil = bytes;
        self.go_on();
    }

    fn set(&self, flow: Flow) {
        self.lock().flow = flow;
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    fn pump(&self, mut from: UnixStream, mut to: UnixStream, from_source: bool) {
        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = vec![0; 64 << 10];
        let mut tail = Vec::new();
        loop {
            let got = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.lock().flow == Flow::Cut {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            let bytes = &mut buffer[..got];
            let stop = if from_source {
                self.point_in(bytes, &mut tail)
            } else {
                self.point_before(bytes)
            };
            let (first, rest) = bytes.split_at_mut(stop.unwrap_or(0));
            let mut broken = to.write_all(first).is_err();
            if stop.is_some() && !self.stand() || !self.pass() {
                break;
            }
            if from_source {
                let mut state = self.lock();
                let spoil = state.spoil.min(rest.len());
                rest[..spoil].iter_mut().for_each(|byte| *byte = !*byte);
                state.spoil -= spoil;
                state.sent += got as u64;
                state.gone |= state.loaded;
            }
            broken |= to.write_all(rest).is_err();
            if broken {
                // What that side still had to say is on its way in the other direction.
                let _ = from.shutdown(Shutdown::Read);
                return;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    /// Stops the flow; true when it may go on.
    fn stand(&self) -> bool {
        let mut state = self.lock();
        (state.flow, state.hit, state.point) = (Flow::Stopped, true, None);
        self.shared.1.notify_all();
        drop(state);
        self.pass()
    }

    /// Waits while the flow is stopped; false when it was cut.
    fn pass(&self) -> bool {
        let mut state = self.lock();
        while state.flow == Flow::Stopped {
            state = self.shared.1.wait(state).unwrap();
        }
        state.flow == Flow::Running
    }

    /// Where in these bytes from the source the flow stops. `tail` is the end of what came before.
    fn point_in(&self, bytes: &[u8], tail: &mut Vec<u8>) -> Option<usize> {
        let state = self.lock();
        let before = tail.len();
        tail.extend_from_slice(bytes);
        let stop = match state.point {
            Some(Point::Setup | Point::Next) => Some(0),
            Some(Point::Bytes(count)) => count
                .checked_sub(state.sent)
                .map(|left| left as usize)
                .filter(|left| *left < bytes.len()),
            Some(Point::Device(behind)) => tail
                .windows(RAM_END.len())
                .position(|window| window == RAM_END)
                .map(|at| (at + RAM_END.len() + behind).saturating_sub(before).min(bytes.len())),
            Some(Point::Go) => state.loaded.then_some(0),
            _ => None,
        };
        tail.drain(..tail.len().saturating_sub(RAM_END.len() - 1));
        stop
    }

    /// Where in these bytes from the target the flow stops.
    fn point_before(&self, bytes: &[u8]) -> Option<usize> {
        let mut state = self.lock();
        let loaded = bytes.windows(LOADED.len()).any(|window| window == LOADED);
        let stop = match state.point {
            Some(Point::Loaded) if loaded => Some(0),
            Some(Point::Shut) if state.gone => Some(0),
            _ => None,
        };
        state.loaded |= loaded;
        stop
    }
}
