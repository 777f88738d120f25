//! A thread that does what is asked of an image with tables, one request after the other.

use super::ring::{Arrival, Memory};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What is to be done with a request's memory: bytes that were moved come back.
type Work = Box<dyn FnOnce(&mut Memory) -> io::Result<i32> + Send>;

struct Job {
    number: u64,
    work: Work,
    memory: Memory,
}

pub(crate) struct Ordered {
    /// `None`: it ends.
    jobs: Option<Sender<Job>>,
    done: Receiver<Arrival>,
    event: Arc<File>,
    under_way: usize,
    arrived: VecDeque<Arrival>,
    thread: Option<JoinHandle<()>>,
}

impl Ordered {
    pub(crate) fn new() -> io::Result<Ordered> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let event = Arc::new(File::from(event));
        let (jobs, queue) = channel::<Job>();
        let (arrive, done) = channel();
        let bell = event.clone();
        let work = move || {
            for job in queue {
                let Job { number, work, mut memory } = job;
                let result = match work(&mut memory) {
                    Ok(count) => count,
                    Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
                };
                // Whoever asked has gone where nobody takes it.
                let _ = arrive.send(Arrival { number, result, memory });
                let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
            }
        };
        let thread = std::thread::Builder::new().name("qcow2".into()).spawn(work)?;
        Ok(Ordered {
            jobs: Some(jobs),
            done,
            event,
            under_way: 0,
            arrived: VecDeque::new(),
            thread: Some(thread),
        })
    }

    /// Readable when something has arrived.
    pub(super) fn event(&self) -> &Arc<File> {
        &self.event
    }

    pub(super) fn push(
        &mut self,
        number: u64,
        memory: Memory,
        work: impl FnOnce(&mut Memory) -> io::Result<i32> + Send + 'static,
    ) -> io::Result<()> {
        let job = Job { number, work: Box::new(work), memory };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.under_way += 1;
        Ok(())
    }

    /// Looks what has arrived.
    pub(super) fn collect(&mut self) {
        // Read first: what arrives later makes it readable again. Fails where nothing came.
        let _ = rustix::io::read(&*self.event, &mut [0u8; 8]);
        while let Ok(arrival) = self.done.try_recv() {
            self.keep(arrival);
        }
    }

    fn keep(&mut self, arrival: Arrival) {
        self.under_way -= 1;
        self.arrived.push_back(arrival);
    }

    /// Waits until something has arrived, if anything is under way.
    pub(super) fn wait(&mut self) {
        self.collect();
        if self.arrived.is_empty()
            && self.under_way > 0
            && let Ok(arrival) = self.done.recv()
        {
            self.keep(arrival);
        }
    }

    pub(super) fn take(&mut self) -> Option<Arrival> {
        self.arrived.pop_front()
    }

    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way == 0
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
