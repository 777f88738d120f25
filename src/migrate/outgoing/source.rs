//! What a migration has at hand, and where it stands.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::Error;
use crate::io::{self, Address, Connection, Waker};
use crate::migrate::capabilities::Capability;
use crate::migrate::guest::Migratable;
use crate::migrate::progress::Progress;
use crate::migrate::settings::Settings;
use crate::migrate::status::Status;
use crate::snapshot::Save;

/// Where to.
pub(crate) enum Destination {
    Address(Address),
    /// Opened already: `fd:`, `exec:`, `file:`.
    Open(Connection),
    /// A file that holds what differs from a snapshot.
    Increment(Box<Save>),
    /// A FIFO that nobody reads yet.
    Fifo(String),
}

/// One outgoing migration.
pub(crate) struct Source {
    pub guest: Arc<dyn Migratable>,
    pub settings: Arc<Settings>,
    pub progress: Arc<Progress>,
    pub waker: Waker,
    /// Set by `migrate-continue`.
    pub go_on: Arc<AtomicBool>,
    /// Sent where the capability `validate-uuid` is on, and in the hello of channels.
    pub uuid: Option<[u8; 16]>,
}

impl Source {
    /// Goes on to `status`, or ends because of a cancel.
    pub(crate) fn enter(&self, status: Status) -> Result<(), Error> {
        self.progress.life.enter(status).then_some(()).ok_or(io::Error::Cancelled.into())
    }

    /// The point of no return, or the end because of a cancel.
    pub(crate) fn commit(&self) -> Result<(), Error> {
        self.progress.life.commit().then_some(()).ok_or(io::Error::Cancelled.into())
    }

    /// Whether a guest that is too fast is slowed down.
    pub(super) fn slows(&self) -> bool {
        let ways = [Capability::AutoConverge, Capability::DirtyLimit];
        ways.into_iter().any(|way| self.settings.has(way))
    }

    pub(crate) fn tell_pass(&self) {
        let mut figures = self.progress.figures();
        figures.dirty_sync_count += 1;
        let pass = figures.dirty_sync_count;
        drop(figures);
        self.progress.life.tell_pass(pass);
    }
}
