//! Descriptors that clients sent (`SCM_RIGHTS`): the ones not yet claimed, and the named ones.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use super::error::Error;
use crate::io::name::Sent;

/// One `-qmp` or `-mon`: what stays when its client leaves and another comes.
#[derive(Default)]
pub struct Monitor {
    pub label: String,
    pub fds: MonitorFds,
}

/// The descriptors of one monitor. Names outlive the connection they came by, what was not claimed
/// does not.
#[derive(Default)]
pub struct MonitorFds {
    pending: Mutex<Vec<Sent>>,
    named: Mutex<BTreeMap<String, Sent>>,
}

impl MonitorFds {
    /// Descriptors that came with a request; they take the place of those that nobody claimed.
    pub(crate) fn arrived(&self, fds: Vec<OwnedFd>) {
        *lock(&self.pending) = fds.into_iter().map(Sent::from).collect();
    }

    /// The client left.
    pub(crate) fn drop_pending(&self) {
        lock(&self.pending).clear();
    }

    /// The first of the pending descriptors; the others are closed.
    pub(crate) fn claim(&self) -> Result<Sent, Error> {
        let pending = std::mem::take(&mut *lock(&self.pending));
        pending
            .into_iter()
            .next()
            .ok_or_else(|| Error::generic("No file descriptor supplied via SCM_RIGHTS"))
    }

    /// Gives a descriptor a name; one that had it before is closed.
    pub(crate) fn name(&self, name: &str, fd: Sent) {
        lock(&self.named).insert(name.to_owned(), fd);
    }

    /// `closefd`.
    pub(crate) fn close(&self, name: &str) -> Result<(), Error> {
        let closed = lock(&self.named).remove(name);
        closed
            .map(drop)
            .ok_or_else(|| Error::generic(format_args!("File descriptor named '{name}' not found")))
    }

    /// Takes a named descriptor away for good, as `migrate fd:NAME` and `dump-guest-memory fd:NAME`
    /// do.
    pub(crate) fn take(&self, name: &str) -> Result<OwnedFd, Error> {
        lock(&self.named).remove(name).map(Sent::into_fd).ok_or_else(|| {
            Error::generic(format_args!("File descriptor named '{name}' has not been found"))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
