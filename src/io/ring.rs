//! The ring: submissions are numbered, completions are collected by number, and an eventfd in the
//! ring wakes a blocked wait when somebody else cancels or changes a parameter.
//!
//! Unsafe because the kernel reads and writes the memory a submission names until its completion
//! arrives. Everything above this file keeps one rule: whoever submits an operation owns its memory
//! (or borrows guest memory that stays mapped) until [`Ring::wait`] or [`Ring::cancel`] has
//! returned its result.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::{Error, Result};

/// Operations one ring holds at most. A migration has four in flight: a send, a receive, the waker,
/// a cancel.
pub(crate) const ENTRIES: u32 = 64;

/// Token of the poll on the waker's eventfd; operations start above it.
const WAKE: u64 = 0;
/// Token of cancel requests, whose own result nobody needs.
const CANCEL: u64 = 1;
const FIRST: u64 = 2;

/// Until a kernel that had no memory for an operation is asked again.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// One operation in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

/// Reaches the threads that are blocked in the rings made with it.
#[derive(Clone, Default)]
pub struct Waker(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// One per ring: a ring that read a common counter would take the wake-up away from the others.
    events: Mutex<Vec<Weak<EventFd>>>,
    cancelled: AtomicBool,
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waker").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

impl Waker {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the rings' owners look at their parameters again.
    pub(crate) fn wake(&self) {
        for event in self.events().iter().filter_map(Weak::upgrade) {
            // A full counter means that the wake-up is already on its way.
            let _ = event.write(1);
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Weak<EventFd>>> {
        self.0.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, event: &Arc<EventFd>) {
        let mut events = self.events();
        events.retain(|event| event.strong_count() > 0);
        events.push(Arc::downgrade(event));
    }

    /// Ends every wait of the ring, now and later, with [`Error::Cancelled`].
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

pub(crate) struct Ring {
    uring: IoUring,
    waker: Waker,
    event: Arc<EventFd>,
    finished: Vec<(u64, i32)>,
    next: u64,
    watching: bool,
    operation_timeout: Option<Duration>,
    /// How often the kernel is made to have no memory.
    #[cfg(test)]
    refusals: u32,
}

impl Ring {
    pub(crate) fn new(waker: Waker) -> Result<Self> {
        let uring = IoUring::builder().setup_coop_taskrun().build(ENTRIES)?;
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        waker.add(&event);
        let mut ring = Self {
            uring,
            waker,
            event,
            finished: Vec::new(),
            next: FIRST,
            watching: false,
            operation_timeout: None,
            #[cfg(test)]
            refusals: 0,
        };
        ring.watch_waker()?;
        Ok(ring)
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// How long one operation may take from now on before [`Ring::wait`] takes it back; `None` is
    /// for ever.
    pub(crate) fn set_operation_timeout(&mut self, time: Option<Duration>) {
        self.operation_timeout = time;
    }

    /// Somebody wants what runs here to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.waker.is_cancelled()
    }

    /// Waits in the ring for one of `events` on a descriptor.
    pub(crate) fn poll(&mut self, fd: RawFd, events: i16) -> Result<Token> {
        // SAFETY: a poll names no memory.
        unsafe { self.submit(opcode::PollAdd::new(types::Fd(fd), events as u32).build()) }
    }

    /// Queues one operation and hands it to the kernel. A kernel that has no memory for it now gets
    /// it with the next one, or when its result is waited for.
    ///
    /// # Safety
    /// All memory that `entry` names stays valid, and is used by nobody else where the kernel
    /// writes it, until the token's result was returned by this ring.
    pub(crate) unsafe fn submit(&mut self, entry: squeue::Entry) -> Result<Token> {
        let token = self.next;
        self.next += 1;
        self.push(entry.user_data(token))?;
        Ok(Token(token))
    }

    /// Whether the result of `token` is there.
    pub(crate) fn is_done(&mut self, token: Token) -> bool {
        self.collect();
        self.finished.iter().any(|done| done.0 == token.0)
    }

    /// The result of `token` if it is there already.
    pub(crate) fn ready(&mut self, token: Token) -> Option<i32> {
        self.collect();
        let at = self.finished.iter().position(|done| done.0 == token.0)?;
        Some(self.finished.swap_remove(at).1)
    }

    /// Blocks until `token` is done. A cancel meanwhile takes the operation back and ends in
    /// [`Error::Cancelled`], the end of the operation time-out in [`Error::TimedOut`]; in any case the kernel has
    /// let go of the memory. What was moved in part by then counts as done.
    pub(crate) fn wait(&mut self, token: Token) -> Result<i32> {
        let deadline = self.operation_timeout.map(|time| (Instant::now() + time, time));
        loop {
            if let Some(result) = self.ready(token) {
                return Ok(result);
            }
            if let Some((at, time)) = deadline
                && Instant::now() >= at
            {
                return match self.cancel(token) {
                    result if result == -libc::ECANCELED || result == -libc::EINTR => {
                        Err(Error::TimedOut(time))
                    }
                    result => Ok(result),
                };
            }
            if let Err(error) = self.sleep(deadline.map(|(at, _)| at)) {
                self.cancel(token);
                return Err(error);
            }
        }
    }

    /// Blocks until something happened: a completion, a wake-up, or `deadline`.
    pub(crate) fn sleep(&mut self, deadline: Option<Instant>) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.watch_waker()?;
        self.enter(deadline)?;
        self.collect();
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Blocks until `deadline`; [`Waker::wake`] ends the sleep early.
    pub(crate) fn sleep_until(&mut self, deadline: Instant) -> Result<()> {
        self.sleep(Some(deadline))
    }

    /// Takes an operation back and waits until the kernel has let go of it. Returns its result.
    pub(crate) fn cancel(&mut self, token: Token) -> i32 {
        if let Some(result) = self.ready(token) {
            return result;
        }
        let _ = self.push(opcode::AsyncCancel::new(token.0).build().user_data(CANCEL));
        loop {
            if let Some(result) = self.ready(token) {
                return result;
            }
            // Nothing else may end this wait: the kernel still uses the memory.
            if let Err(error) = self.enter(None) {
                tracing::error!("the ring cannot wait for a cancelled operation: {error}");
            }
        }
    }

    fn push(&mut self, entry: squeue::Entry) -> Result<()> {
        // SAFETY: what the entry names is vouched for by the caller of `submit`; the ring's own
        // entries name the eventfd, which the waker keeps open, or nothing.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.hand_over()?;
        }
        match self.hand_over() {
            // It stays queued and cannot be taken back: to call it failed would free its memory.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            // Others are those of a ring that takes nothing any more.
            result => Ok(result?),
        }
    }

    /// Gives the kernel all that is queued.
    fn hand_over(&mut self) -> io::Result<()> {
        loop {
            self.memory_of_the_kernel()?;
            match self.uring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self.collect(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The kernel tells by itself, except in tests.
    #[cfg(not(test))]
    fn memory_of_the_kernel(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn memory_of_the_kernel(&mut self) -> io::Result<()> {
        let refuses = self.refusals > 0;
        self.refusals -= u32::from(refuses);
        if refuses { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(()) }
    }

    fn enter(&mut self, deadline: Option<Instant>) -> Result<()> {
        let result = self.memory_of_the_kernel().and_then(|()| match deadline {
            None => self.uring.submit_and_wait(1),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let time = types::Timespec::from(left);
                let args = types::SubmitArgs::new().timespec(&time);
                self.uring.submitter().submit_with_args(1, &args)
            }
        });
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                // What is queued is tried again; nothing tells when there is memory.
                Some(libc::EAGAIN) => {
                    std::thread::sleep(NO_MEMORY_PAUSE);
                    Ok(())
                }
                _ => Err(error.into()),
            },
        }
    }

    fn collect(&mut self) {
        for entry in self.uring.completion() {
            match entry.user_data() {
                WAKE => self.watching = false,
                CANCEL => {}
                token => self.finished.push((token, entry.result())),
            }
        }
        if !self.watching {
            // Reading rearms the counter; the poll is set again before the next sleep.
            let _ = self.event.read();
        }
    }

    fn watch_waker(&mut self) -> Result<()> {
        if !self.watching {
            let event = types::Fd(self.event.as_raw_fd());
            self.push(opcode::PollAdd::new(event, libc::POLLIN as u32).build().user_data(WAKE))?;
            self.watching = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn deadline_ends_a_sleep() {
        let mut ring = Ring::new(Waker::new()).unwrap();
        let started = Instant::now();
        ring.sleep_until(started + Duration::from_millis(20)).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_time_out_takes_an_operation_back() {
        let mut ring = Ring::new(Waker::new()).unwrap();
        let silent = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        ring.set_operation_timeout(Some(Duration::from_millis(20)));
        let token = ring.poll(silent.as_raw_fd(), libc::POLLIN).unwrap();
        assert!(matches!(ring.wait(token), Err(Error::TimedOut(_))));
        silent.write(1).unwrap();
        let token = ring.poll(silent.as_raw_fd(), libc::POLLIN).unwrap();
        assert!(ring.wait(token).unwrap() > 0);
    }

    #[test]
    fn an_operation_that_the_kernel_has_no_memory_for_is_still_in_hand() {
        let mut ring = Ring::new(Waker::new()).unwrap();
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        event.write(1).unwrap();
        ring.refusals = 1;
        let token = ring.poll(event.as_raw_fd(), libc::POLLIN).unwrap();
        assert!(ring.ready(token).is_none(), "the kernel has not got it");
        assert!(ring.wait(token).unwrap() > 0);
        let silent = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        ring.refusals = 3;
        let token = ring.poll(silent.as_raw_fd(), libc::POLLIN).unwrap();
        assert_eq!(ring.cancel(token), -libc::ECANCELED);
    }

    #[test]
    fn wake_and_cancel_reach_a_sleeping_ring() {
        let waker = Waker::new();
        let other = waker.clone();
        let mut ring = Ring::new(waker).unwrap();
        for _ in 0..3 {
            other.wake();
            ring.sleep(None).unwrap();
        }
        let thread = std::thread::spawn(move || other.cancel());
        assert!(matches!(ring.sleep(None), Ok(()) | Err(Error::Cancelled)));
        thread.join().unwrap();
        assert!(matches!(ring.sleep(None), Err(Error::Cancelled)));
    }
}
