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
use crate::chardev::{self, Change, Chardev, Status};
use crate::config;
use crate::output::Input;
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
    user: User,
    info: Box<dyn Fn() -> ChardevInfo + Send + Sync>,
    status: Arc<Status>,
    is_socket: bool,
}

/// Who has a character device, and whether another one can take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    Nobody,
    /// The serial port, which takes another one.
    Serial,
    /// The serial port, over one that cannot be let go of.
    Bound,
    /// A monitor or a virtio port: it keeps what it was given.
    Stays,
    /// Several.
    Shared,
}

enum Request {
    Add(config::Chardev, oneshot::Sender<Result<(), ChardevError>>),
    Change(config::Chardev, oneshot::Sender<Result<(), ChardevError>>),
    Remove(String, oneshot::Sender<bool>),
}

/// Opens and closes them; runs on the control plane.
pub(super) struct Keeper {
    requests: UnboundedReceiver<Request>,
    registry: Arc<Registry>,
    idle: Rc<RefCell<Vec<Chardev>>>,
    /// The way to the serial port.
    serial: UnboundedSender<Change>,
}

impl Registry {
    /// What comes last is for the serial port.
    pub(super) fn new(read: Vec<PathBuf>) -> (Arc<Registry>, Keeper, UnboundedReceiver<Change>) {
        let (requests, received) = unbounded_channel();
        let (serial, changes) = unbounded_channel();
        let registry = Arc::new(Registry { all: Mutex::default(), read, requests });
        let keeper =
            Keeper { requests: received, registry: registry.clone(), idle: Rc::default(), serial };
        (registry, keeper, changes)
    }

    /// From here on it is listed.
    pub(super) fn insert(&self, chardev: &Chardev, user: User) {
        self.lock().push(Entry::of(chardev, user));
    }

    /// What several share, in front of the device behind it.
    pub(super) fn insert_shared(&self, label: &str) {
        let label = label.to_owned();
        let filename = "mux".to_owned();
        self.lock().push(Entry {
            label: label.clone(),
            user: User::Shared,
            info: Box::new(move || {
                let (label, filename) = (label.clone(), filename.clone());
                ChardevInfo { label, filename, frontend_open: true }
            }),
            status: Arc::default(),
            is_socket: false,
        });
    }

    /// `chardev` in place of the one of its name.
    fn replace(&self, chardev: &Chardev, user: User) {
        let mut all = self.lock();
        if let Some(entry) = all.iter_mut().find(|entry| entry.label == chardev.id) {
            *entry = Entry::of(chardev, user);
        }
    }

    fn user(&self, label: &str) -> Option<User> {
        self.lock().iter().find(|entry| entry.label == label).map(|entry| entry.user)
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

impl Entry {
    fn of(chardev: &Chardev, user: User) -> Entry {
        Entry {
            label: chardev.id.clone(),
            user,
            info: Box::new(chardev.info()),
            status: chardev.status(),
            is_socket: chardev.is_socket(),
        }
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
        images: Vec<Input>,
    ) -> Result<(), ChardevError> {
        if self.has(&chardev.id) {
            return Err(ChardevError::Exists(chardev.id));
        }
        // It would be emptied.
        outputs::check_added(&chardev, &self.read, images)
            .map_err(|error| ChardevError::Open(error.to_string()))?;
        let added = self.ask(|reply| Request::Add(chardev, reply));
        // It was copied by its number meanwhile.
        drop(fd);
        added.unwrap_or(Err(ChardevError::Ending))
    }

    fn change(
        &self,
        chardev: config::Chardev,
        fd: Option<OwnedFd>,
        images: Vec<Input>,
    ) -> Result<(), ChardevError> {
        match self.user(&chardev.id) {
            None => return Err(ChardevError::Unknown(chardev.id)),
            Some(User::Stays) => return Err(ChardevError::Stays),
            Some(User::Shared) => return Err(ChardevError::Shared),
            Some(User::Bound) => return Err(ChardevError::Bound(chardev.id)),
            Some(User::Serial) if chardev.log.is_some() => return Err(ChardevError::Log),
            Some(User::Serial | User::Nobody) => {}
        }
        outputs::check_added(&chardev, &self.read, images)
            .map_err(|error| ChardevError::Open(error.to_string()))?;
        let changed = self.ask(|reply| Request::Change(chardev, reply));
        drop(fd);
        changed.unwrap_or(Err(ChardevError::Ending))
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
                Request::Change(chardev, reply) => {
                    let serial = self.serial.clone();
                    tokio_uring::spawn(async move {
                        let _ = reply.send(change(&registry, &idle, &serial, &chardev).await);
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
    registry.insert(&chardev, User::Nobody);
    idle.borrow_mut().push(chardev);
    Ok(())
}

/// The new one is open before the old one goes: if it cannot be, nothing changes.
async fn change(
    registry: &Registry,
    idle: &RefCell<Vec<Chardev>>,
    serial: &UnboundedSender<Change>,
    described: &config::Chardev,
) -> Result<(), ChardevError> {
    let failed = |error: &dyn std::fmt::Display| ChardevError::Open(error.to_string());
    let mut chardev = Chardev::open(described).await.map_err(|error| failed(&error))?;
    let id = chardev.id.clone();
    let user = match registry.user(&id) {
        Some(User::Serial) if chardev.is_bound() => User::Bound,
        Some(user @ (User::Serial | User::Nobody)) => user,
        Some(User::Bound) => return Err(ChardevError::Bound(id)),
        // It went meanwhile.
        _ => return Err(ChardevError::Unknown(id)),
    };
    chardev::empty(chardev.take_stale()).map_err(|error| failed(&error))?;
    registry.replace(&chardev, user);
    if user == User::Nobody {
        for old in idle.borrow_mut().iter_mut().filter(|old| old.id == id) {
            std::mem::swap(old, &mut chardev);
        }
        return Ok(());
    }
    let (done, changed) = oneshot::channel();
    let sent = serial.send(Change { chardev, done });
    match (sent, changed.await) {
        (Ok(()), Ok(())) => Ok(()),
        _ => Err(ChardevError::Ending),
    }
}
