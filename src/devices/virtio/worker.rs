//! The thread that serves a device's queues, and the bell that wakes it.

use super::model::{Next, Wait};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// Serving recurses into nothing; what is not touched costs nothing.
const STACK_BYTES: usize = 256 << 10;

/// Wakes the worker, from any thread and from the kernel.
pub(crate) struct Bell {
    fd: OwnedFd,
    ends: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd, ends: AtomicBool::new(false) })
    }

    pub(crate) fn ring(&self) {
        // Fails only where it has been rung 2^64 - 2 times and not been heard.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// What was rung until now will be looked at.
    fn heard(&self) {
        // Fails where nobody rang.
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The thread. [`Worker::end`] ends it.
pub(super) struct Worker(Option<JoinHandle<()>>);

impl Worker {
    /// `serve` is one turn: it serves what there is, and says what to wait for.
    pub(super) fn start(
        name: &str,
        bell: Arc<Bell>,
        serve: impl Fn() -> (Next, Wait) + Send + 'static,
    ) -> io::Result<Worker> {
        let named = Builder::new().name(name.into()).stack_size(STACK_BYTES);
        Ok(Worker(Some(named.spawn(move || run(&bell, serve))?)))
    }

    pub(super) fn end(&mut self, bell: &Bell) {
        bell.ends.store(true, Ordering::SeqCst);
        bell.ring();
        if let Some(thread) = self.0.take() {
            // It ended, or panicked with a message of its own.
            let _ = thread.join();
        }
    }
}

fn run(bell: &Bell, serve: impl Fn() -> (Next, Wait)) {
    let mut wait = Wait::default();
    loop {
        sleep(bell, &wait);
        if bell.ends.load(Ordering::SeqCst) {
            return;
        }
        bell.heard();
        wait = loop {
            match serve() {
                (Next::Wait, wait) => break wait,
                (Next::More, _) if bell.ends.load(Ordering::SeqCst) => return,
                // A vCPU that wants the lock gets it.
                (Next::More, _) => std::thread::yield_now(),
            }
        };
    }
}

/// Waits until the bell rings, or what else is waited for has come.
fn sleep(bell: &Bell, wait: &Wait) {
    let time_out = wait.until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
    });
    let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
    fds.extend(wait.readable.iter().map(|file| PollFd::new(file, PollFlags::IN)));
    fds.extend(wait.ready.iter().map(|(fd, wanted)| PollFd::new(fd, *wanted)));
    // A signal, or an error that will come again on the next turn, is a turn with nothing to do.
    let _ = poll(&mut fds, time_out.as_ref());
}
