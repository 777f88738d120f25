//! A character device that several share (`mux=on`): what they say goes out in the order said, what
//! comes in goes to the one that has the focus, and an escape character in front of a letter is for
//! the device itself.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::output::{Log, Output};
use crate::devices::{Line, LineEnd};

/// Input that waits for a user that has no room: so many keys until those behind them, the escape
/// character too, are not looked at any more.
const WAITING_MAX: usize = 4096;
/// Of the time in front of a line.
const STAMP_BYTES_MAX: usize = 31;

/// One of those who share it. None of these waits.
pub(crate) trait Front: Send + Sync {
    /// Takes as much input as there is room for; returns how much that was.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// Input comes here from now on, or no more. `true`: what follows begins a line.
    fn focus(&self, _on: bool) -> bool {
        false
    }

    /// Somebody is at the other end, or nobody; or there is room again.
    fn changed(&self, _open: bool) {}

    /// The sign that a serial line has for being broken.
    fn send_break(&self) {}
}

pub(crate) struct Mux {
    output: Arc<Output>,
    log: Option<Mutex<Log>>,
    escape: u8,
    state: Mutex<State>,
    stamps: Mutex<Option<Stamps>>,
    quit: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// A user has room again.
    room: Notify,
    /// Who reads the device may go on.
    pub(crate) go_on: Notify,
    /// The focus went elsewhere, or who reads changed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    fronts: Vec<Shared>,
    focus: usize,
    escaped: bool,
}

struct Shared {
    front: Arc<dyn Front>,
    waiting: VecDeque<u8>,
}

/// The time stands at the beginning of lines.
struct Stamps {
    since: Option<Instant>,
    at_line_start: bool,
}

impl Mux {
    pub(super) fn new(output: Arc<Output>, log: Option<File>, escape: u8) -> Arc<Mux> {
        let mux = Arc::new(Mux {
            output,
            log: log.map(|file| Mutex::new(Log::new(file))),
            escape,
            state: Mutex::default(),
            stamps: Mutex::new(None),
            quit: OnceLock::new(),
            room: Notify::new(),
            go_on: Notify::new(),
            changed: Notify::new(),
        });
        let told = Arc::downgrade(&mux);
        mux.output.on_change(Box::new(move || {
            if let Some(mux) = told.upgrade() {
                mux.tell();
            }
        }));
        mux
    }

    /// Another user; its number is for [`Mux::show`]. Those who come first are switched to first.
    pub(crate) fn add(&self, front: Arc<dyn Front>) -> usize {
        let mut state = self.state();
        state.fronts.push(Shared { front, waiting: VecDeque::new() });
        state.fronts.len() - 1
    }

    /// Everybody is there: the last of them has the focus, as in QEMU. `quit` ends the process.
    pub(crate) fn begin(&self, quit: Box<dyn Fn() + Send + Sync>) {
        let _ = self.quit.set(quit);
        let mut state = self.state();
        state.focus = state.fronts.len().saturating_sub(1);
        drop(state);
        if let Some(front) = self.focused() {
            front.focus(true);
        }
        self.tell();
    }

    /// Hands on what waited whenever somebody has room again; for as long as the process runs.
    pub(crate) async fn run(&self) {
        loop {
            self.room.notified().await;
            self.flush();
            self.go_on.notify_one();
        }
    }

    /// A user has room again.
    pub(crate) fn has_room(&self) {
        self.room.notify_one();
    }

    /// Takes input, on the control plane; returns how much of it there was room for.
    pub(crate) fn receive(&self, bytes: &[u8]) -> usize {
        let taken = bytes.iter().position(|byte| !self.take(*byte)).unwrap_or(bytes.len());
        self.flush();
        taken
    }

    /// `false`: there is no room for it.
    fn take(&self, byte: u8) -> bool {
        let mut state = self.state();
        let escaped = state.escaped;
        if !escaped && byte == self.escape {
            state.escaped = true;
            return true;
        }
        if !escaped || byte == self.escape {
            let focus = state.focus;
            // With nobody there it is lost.
            if let Some(shared) = state.fronts.get_mut(focus) {
                if shared.waiting.len() >= WAITING_MAX {
                    return false;
                }
                shared.waiting.push_back(byte);
            }
            state.escaped = false;
            return true;
        }
        state.escaped = false;
        drop(state);
        match byte {
            b'h' | b'?' => self.say(&self.help()),
            b'x' => {
                self.say("QEMU: Terminated\n\r");
                if let Some(quit) = self.quit.get() {
                    quit();
                }
            }
            b's' => self.say("\n\rno disk has data to save: -snapshot is not built\n\r"),
            b'b' => {
                if let Some(front) = self.focused() {
                    front.send_break();
                }
            }
            b'c' => self.switch(),
            b't' => {
                let mut stamps = self.stamps();
                *stamps = match *stamps {
                    Some(_) => None,
                    None => Some(Stamps { since: None, at_line_start: false }),
                };
            }
            _ => {}
        }
        true
    }

    fn help(&self) -> String {
        let key = match self.escape {
            letter @ 1..=26 => format!("C-{}", char::from(letter - 1 + b'a')),
            other => format!("<0x{other:02x}>"),
        };
        let line = |(letter, does): (&str, &str)| format!("{key} {letter}    {does}\n\r");
        let lines = [
            ("h", "print this help"),
            ("x", "exit emulator"),
            ("s", "save disk data back to file (if -snapshot)"),
            ("t", "toggle console timestamps"),
            ("b", "send break (magic sysrq)"),
            ("c", "switch between console and monitor"),
        ];
        format!("\n\r{}{key} {key}  sends {key}\n\r", lines.map(line).concat())
    }

    fn switch(&self) {
        // What came before is for the one before.
        self.flush();
        if let Some(front) = self.focused()
            && front.focus(false)
        {
            self.say("\r\n");
        }
        let mut state = self.state();
        state.focus = (state.focus + 1) % state.fronts.len().max(1);
        drop(state);
        if let Some(front) = self.focused() {
            front.focus(true);
        }
        self.changed.notify_waiters();
    }

    /// Whoever takes it may ask for anything here: no lock is held.
    fn flush(&self) {
        let count = self.state().fronts.len();
        for at in 0..count {
            loop {
                let (front, part) = {
                    let shared = &self.state().fronts[at];
                    let part: Vec<u8> = shared.waiting.iter().copied().take(256).collect();
                    (shared.front.clone(), part)
                };
                let taken = if part.is_empty() { 0 } else { front.receive(&part).min(part.len()) };
                self.state().fronts[at].waiting.drain(..taken);
                if taken == 0 {
                    break;
                }
            }
        }
    }

    /// Shows what the user `front` said once it has the focus and there is room.
    pub(crate) async fn show(&self, front: usize, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state().focus == front {
                let taken = self.offer(rest);
                rest = &rest[taken..];
                if taken > 0 {
                    continue;
                }
            }
            changed.await;
        }
    }

    fn say(&self, text: &str) {
        self.output.offer(text.as_bytes());
    }

    /// As [`Output::write`].
    fn write(&self, bytes: &[u8]) {
        let stamped = self.stamped(bytes);
        let bytes = stamped.as_deref().unwrap_or(bytes);
        self.log(bytes);
        self.output.write(bytes);
    }

    /// As [`Output::offer`]. With stamps, which nobody counts, it takes what there is room for
    /// however many of them come.
    fn offer(&self, bytes: &[u8]) -> usize {
        if self.stamps().is_some() {
            let taken = bytes.len().min(self.output.room() / (STAMP_BYTES_MAX + 1));
            self.write(&bytes[..taken]);
            return taken;
        }
        let taken = self.output.offer(bytes);
        self.log(&bytes[..taken]);
        taken
    }

    fn log(&self, bytes: &[u8]) {
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        }
    }

    fn stamped(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut stamps = self.stamps();
        let stamps = stamps.as_mut()?;
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if std::mem::take(&mut stamps.at_line_start) {
                let now = Instant::now();
                let ms = now.duration_since(*stamps.since.get_or_insert(now)).as_millis();
                let seconds = ms / 1000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                let stamp =
                    format!("[{hours:02}:{minutes:02}:{:02}.{:03}] ", seconds % 60, ms % 1000);
                out.extend(stamp.as_bytes());
            }
            out.push(byte);
            stamps.at_line_start = byte == b'\n';
        }
        Some(out)
    }

    fn tell(&self) {
        let open = self.output.is_connected();
        let all: Vec<_> = {
            let mut state = self.state();
            // Half an order of somebody who left is nobody's.
            state.escaped &= open;
            state.fronts.iter().map(|shared| shared.front.clone()).collect()
        };
        all.iter().for_each(|front| front.changed(open));
        self.changed.notify_waiters();
    }

    fn focused(&self) -> Option<Arc<dyn Front>> {
        let state = self.state();
        state.fronts.get(state.focus).map(|shared| shared.front.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamps(&self) -> MutexGuard<'_, Option<Stamps>> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A serial port's way out.
pub(crate) struct MuxSink(pub(crate) Arc<Mux>);

impl Write for MuxSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line of virtio ports: of all of them that share the device.
pub(crate) struct MuxLine(pub(crate) Arc<Mux>);

impl Line for MuxLine {
    fn send(&self, bytes: &[u8]) -> usize {
        self.0.offer(bytes)
    }

    fn is_open(&self) -> bool {
        self.0.output.is_connected()
    }

    fn has_room(&self) {
        self.0.has_room();
    }

    fn attach(&self, end: Arc<dyn LineEnd>) {
        self.0.add(Arc::new(PortFront(end)));
    }
}

struct PortFront(Arc<dyn LineEnd>);

impl Front for PortFront {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.0.receive(bytes)
    }

    fn changed(&self, _open: bool) {
        self.0.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::To;
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// Notes what it gets, as far as it has room.
    #[derive(Default)]
    struct Noting {
        got: Mutex<String>,
        room: Mutex<Option<usize>>,
    }

    impl Noting {
        fn take(&self) -> String {
            std::mem::take(&mut self.got.lock().unwrap())
        }
    }

    impl Front for Noting {
        fn receive(&self, bytes: &[u8]) -> usize {
            let mut room = self.room.lock().unwrap();
            let taken = room.unwrap_or(bytes.len()).min(bytes.len());
            if let Some(room) = &mut *room {
                *room -= taken;
            }
            *self.got.lock().unwrap() += std::str::from_utf8(&bytes[..taken]).unwrap();
            taken
        }

        fn focus(&self, on: bool) -> bool {
            *self.got.lock().unwrap() += if on { "<" } else { ">" };
            true
        }

        fn send_break(&self) {
            *self.got.lock().unwrap() += "!";
        }
    }

    fn shared_by_two() -> (Arc<Mux>, [Arc<Noting>; 2], UnixStream) {
        let output = Arc::new(Output::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        output.connect(To::Socket(Arc::new(OwnedFd::from(ours).into())));
        theirs.set_nonblocking(true).unwrap();
        let mux = Mux::new(output, None, 1);
        let fronts = [Arc::new(Noting::default()), Arc::new(Noting::default())];
        for front in &fronts {
            mux.add(front.clone());
        }
        mux.begin(Box::new(|| {}));
        (mux, fronts, theirs)
    }

    fn shown(from: &mut UnixStream) -> String {
        let mut bytes = [0; 4096];
        let count = from.read(&mut bytes).unwrap_or(0);
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn input_goes_where_the_focus_is() {
        let (mux, [first, last], mut theirs) = shared_by_two();
        assert_eq!(mux.receive(b"a\x01\x01b\x01bc\x01zd\x01ce\x01"), 14);
        assert_eq!(mux.receive(b"cf"), 2);
        assert_eq!((first.take(), last.take()), ("<e>".into(), "<!a\x01bcd><f".into()));
        assert_eq!(shown(&mut theirs), "\r\n\r\n");
        mux.receive(b"\x01h");
        assert!(shown(&mut theirs).contains("C-a c    switch between console and monitor\n\r"));
    }

    #[test]
    fn half_an_order_goes_with_who_gave_it() {
        let (mux, [_, last], _theirs) = shared_by_two();
        mux.receive(b"\x01");
        mux.output.disconnect();
        mux.receive(b"x");
        assert_eq!(last.take(), "<x");
    }

    #[test]
    fn a_user_without_room_holds_up_nobody_but_itself() {
        let (mux, [first, last], _theirs) = shared_by_two();
        *last.room.lock().unwrap() = Some(2);
        assert_eq!(mux.receive(b"abcd\x01cef"), 8);
        assert_eq!((first.take(), last.take()), ("<ef".into(), "<ab>".into()));
        *last.room.lock().unwrap() = None;
        mux.flush();
        assert_eq!(last.take(), "cd");
        *first.room.lock().unwrap() = Some(0);
        assert_eq!(mux.receive(&[b'x'; 2 * WAITING_MAX]), WAITING_MAX);
        assert_eq!(mux.receive(b"x"), 0);
    }

    #[test]
    fn lines_get_the_time() {
        let (mux, _, mut theirs) = shared_by_two();
        mux.receive(b"\x01t");
        MuxSink(mux.clone()).write_all(b"one\ntwo\n").unwrap();
        assert_eq!(shown(&mut theirs), "one\n[00:00:00.000] two\n");
        mux.receive(b"\x01t");
        MuxSink(mux).write_all(b"three\nfour").unwrap();
        assert_eq!(shown(&mut theirs), "three\nfour");
    }

    #[test]
    fn with_the_time_nothing_is_lost_to_a_slow_reader() {
        let (mux, _, mut theirs) = shared_by_two();
        mux.receive(b"\x01t");
        let taken: usize = (0..100_000).map(|_| mux.offer(b"x\n")).sum();
        let mut all = Vec::new();
        let _ = theirs.read_to_end(&mut all);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        all.extend(runtime.block_on(mux.output.take(1)).unwrap());
        assert_eq!(all.iter().filter(|byte| b"x\n".contains(byte)).count(), taken);
    }

    #[test]
    fn who_has_not_the_focus_shows_nothing() {
        let (mux, _, mut theirs) = shared_by_two();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut showing = std::pin::pin!(mux.show(0, b"banner"));
            tokio::select! {
                biased;
                () = &mut showing => panic!("it has not the focus"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(shown(&mut theirs), "");
            mux.receive(b"\x01c");
            showing.await;
        });
        assert_eq!(shown(&mut theirs), "\r\nbanner");
    }
}
