//! Character devices as commands see them: listed, cut, and those that come and go while the
//! machine runs. Nothing on this board can be given one later, so that these wait for nobody.
//!
//! They belong to the control plane's runtime, so that commands, which run on threads of their own,
//! ask it to open them.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::outputs;
use crate::chardev::{self, Chardev, Status};
use crate::config;
use crate::vmm::{ChardevError, ChardevInfo, Chardevs};

/// All that are open.
pub(super) struct Registry {
    all: Mutex<Vec<Entry>>,
    /// The files that the machine was given to read.
    read: Vec<PathBuf>,
    requests: UnboundedSender<Request>,
}

struct Entry {
    label: String,
    info: Box<dyn Fn() -> ChardevInfo + Send + Sync>,
    status: Arc<Status>,
    is_socket: bool,
}

enum Request {
    Add(config::Chardev, oneshot::Sender<Result<(), ChardevError>>),
    Remove(String, oneshot::Sender<bool>),
}

/// Opens and closes them; runs on the control plane.
pub(super) struct Keeper {
    requests: UnboundedReceiver<Request>,
    registry: Arc<Registry>,
    idle: Rc<RefCell<Vec<Chardev>>>,
}

impl Registry {
    pub(super) fn new(read: Vec<PathBuf>) -> (Arc<Registry>, Keeper) {
        let (requests, received) = unbounded_channel();
        let registry = Arc::new(Registry { all: Mutex::default(), read, requests });
        let keeper = Keeper { requests: received, registry: registry.clone(), idle: Rc::default() };
        (registry, keeper)
    }

    /// From here on it is listed.
    pub(super) fn insert(&self, chardev: &Chardev) {
        self.lock().push(Entry {
            label: chardev.id.clone(),
            info: Box::new(chardev.info()),
            status: chardev.status(),
            is_socket: chardev.is_socket(),
        });
    }

    fn has(&self, label: &str) -> bool {
        self.lock().iter().any(|entry| entry.label == label)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the keeper; `None` where the process is about to end.
    fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).ok()?;
        answer.blocking_recv().ok()
    }
}

impl Chardevs for Registry {
    fn list(&self) -> Vec<ChardevInfo> {
        self.lock().iter().map(|entry| (entry.info)()).collect()
    }

    fn sockets(&self) -> Vec<String> {
        let all = self.lock();
        all.iter().filter(|entry| entry.is_socket).map(|entry| entry.label.clone()).collect()
    }

    fn cut(&self, label: &str) {
        self.lock().iter().filter(|entry| entry.label == label).for_each(|e| e.status.cut());
    }

    fn add(
        &self,
        chardev: config::Chardev,
        fd: Option<OwnedFd>,
        images: &[PathBuf],
    ) -> Result<(), ChardevError> {
        if self.has(&chardev.id) {
            return Err(ChardevError::Exists(chardev.id));
        }
        // It would be emptied.
        outputs::check_added(&chardev, &[&self.read, images].concat())
            .map_err(|error| ChardevError::Open(error.to_string()))?;
        let added = self.ask(|reply| Request::Add(chardev, reply));
        // It was copied by its number meanwhile.
        drop(fd);
        added.unwrap_or(Err(ChardevError::Ending))
    }

    fn remove(&self, label: &str) -> Result<(), ChardevError> {
        let of = label.to_owned();
        match self.ask(|reply| Request::Remove(of, reply)) {
            Some(true) => Ok(()),
            Some(false) if self.has(label) => Err(ChardevError::Busy(label.to_owned())),
            Some(false) => Err(ChardevError::NotFound(label.to_owned())),
            None => Err(ChardevError::Ending),
        }
    }
}

impl Keeper {
    /// One that the command line made and nobody uses.
    pub(super) fn keep(&self, chardev: Chardev) {
        self.idle.borrow_mut().push(chardev);
    }

    /// Serves commands for as long as the process runs. One that waits holds no other.
    pub(super) async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            let (registry, idle) = (self.registry.clone(), self.idle.clone());
            match request {
                Request::Add(chardev, reply) => {
                    tokio_uring::spawn(async move {
                        // The command may have been given up.
                        let _ = reply.send(add(&registry, &idle, &chardev).await);
                    });
                }
                Request::Remove(label, reply) => {
                    let at = idle.borrow().iter().position(|chardev| chardev.id == label);
                    let gone = at.map(|at| idle.borrow_mut().remove(at));
                    if gone.is_some() {
                        registry.lock().retain(|entry| entry.label != label);
                    }
                    let _ = reply.send(gone.is_some());
                }
            }
        }
    }
}

async fn add(
    registry: &Registry,
    idle: &RefCell<Vec<Chardev>>,
    described: &config::Chardev,
) -> Result<(), ChardevError> {
    let failed = |error: &dyn std::fmt::Display| ChardevError::Open(error.to_string());
    let mut chardev = Chardev::open(described).await.map_err(|error| failed(&error))?;
    // Another one may have come meanwhile.
    if registry.has(&chardev.id) {
        return Err(ChardevError::Exists(chardev.id.clone()));
    }
    chardev::empty(chardev.take_stale()).map_err(|error| failed(&error))?;
    registry.insert(&chardev);
    idle.borrow_mut().push(chardev);
    Ok(())
}
