//! What commands work on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::json;
use tokio::sync::Notify;

use super::error::Error;
use super::events::Events;
use super::fds::{FdSets, MonitorFds};
use crate::config::{Actions, Identity};
use crate::dump::Dumps;
use crate::machine::{Machine, RunState, StopCause, VcpuInfo};

/// The whole VMM as commands see it: one per process, shared by every monitor.
pub struct Vmm {
    pub guest: Arc<dyn Guest>,
    pub identity: Identity,
    pub events: Arc<Events>,
    pub fd_sets: FdSets,
    pub exit: Arc<Exit>,
    /// In `inmigrate`: whether the guest starts once it has arrived. `-S` and `stop` clear it,
    /// `cont` sets it.
    pub autostart: Arc<AtomicBool>,
    /// What `query-chardev` tells.
    pub chardevs: Box<dyn Fn() -> Vec<ChardevInfo> + Send + Sync>,
    /// Absent where there is no machine to dump.
    pub dumps: Option<Arc<Dumps>>,
    /// Absent where there is no machine to migrate.
    pub migration: Option<Arc<crate::migrate::Handle>>,
}

/// The machine, as far as QMP's own commands need one; tests put a fake in its place.
pub trait Guest: Send + Sync {
    fn run_state(&self) -> RunState;
    /// Waits until every vCPU stands still.
    fn stop(&self) -> Result<(), Error>;
    fn cont(&self) -> Result<(), Error>;
    fn reset(&self) -> Result<(), Error>;
    fn inject_nmi(&self) -> Result<(), Error>;
    fn powerdown(&self);
    fn vcpus(&self) -> Vec<VcpuInfo>;
    fn ram_bytes(&self) -> u64;
    /// Copies guest-physical memory; what is not RAM reads as zeros.
    fn read_physical(&self, address: u64, bytes: &mut [u8]);
    /// The guest-physical addresses behind virtual ones, as vCPU `index` translates them now.
    fn translate(&self, index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error>;
    fn actions(&self) -> Actions;
    fn set_actions(&self, actions: Actions);
}

impl Guest for Machine {
    fn run_state(&self) -> RunState {
        self.run_state()
    }

    fn stop(&self) -> Result<(), Error> {
        self.stop(RunState::Paused).map(drop).map_err(Error::generic)
    }

    fn cont(&self) -> Result<(), Error> {
        self.cont().map(drop).map_err(Error::generic)
    }

    fn reset(&self) -> Result<(), Error> {
        self.reset().map_err(Error::generic)
    }

    fn inject_nmi(&self) -> Result<(), Error> {
        self.inject_nmi().map_err(Error::generic)
    }

    fn powerdown(&self) {
        self.powerdown();
    }

    fn vcpus(&self) -> Vec<VcpuInfo> {
        self.vcpus().to_vec()
    }

    fn ram_bytes(&self) -> u64 {
        self.config().memory.bytes
    }

    fn read_physical(&self, address: u64, bytes: &mut [u8]) {
        const PAGE: u64 = 4096;
        let mut at = 0;
        while at < bytes.len() {
            let here = address.wrapping_add(at as u64);
            let length = ((PAGE - here % PAGE) as usize).min(bytes.len() - at);
            let part = &mut bytes[at..at + length];
            if self.ram().read(here, part).is_err() {
                part.fill(0);
            }
            at += length;
        }
    }

    fn translate(&self, index: u32, addresses: &[u64]) -> Result<Vec<Option<u64>>, Error> {
        self.translate(index, addresses).map_err(Error::generic)
    }

    fn actions(&self) -> Actions {
        self.actions()
    }

    fn set_actions(&self, actions: Actions) {
        self.set_actions(actions);
    }
}

/// A character device, as `query-chardev` shows it.
pub struct ChardevInfo {
    pub label: String,
    pub filename: String,
    pub frontend_open: bool,
}

/// One `-qmp` or `-mon`: what stays when its client leaves and another comes.
#[derive(Default)]
pub struct Monitor {
    pub label: String,
    pub fds: MonitorFds,
}

/// The end of the process.
#[derive(Default)]
pub struct Exit {
    status: OnceLock<i32>,
    wake: Notify,
    announcing: Mutex<()>,
}

impl Exit {
    /// Announces SHUTDOWN and asks the control plane to end the process with `status`. The first to
    /// ask wins, later ones are not heard.
    pub fn shutdown(&self, events: &Events, cause: StopCause, status: i32) {
        let _alone = self.announcing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.is_requested() {
            return;
        }
        events.emit("SHUTDOWN", json!({"guest": cause.by_guest(), "reason": cause.name()}));
        let _ = self.status.set(status);
        self.wake.notify_one();
    }

    /// From here on no request is taken any more.
    pub fn is_requested(&self) -> bool {
        self.status.get().is_some()
    }

    /// Waits until the end is asked for. For one task only.
    pub async fn requested(&self) -> i32 {
        loop {
            if let Some(&status) = self.status.get() {
                return status;
            }
            self.wake.notified().await;
        }
    }
}

impl Vmm {
    /// A VMM around `guest` with nothing else to it.
    pub fn new(guest: Arc<dyn Guest>, events: Arc<Events>, exit: Arc<Exit>) -> Vmm {
        Vmm {
            guest,
            identity: Identity::default(),
            events,
            fd_sets: FdSets::default(),
            exit,
            autostart: Arc::new(AtomicBool::new(true)),
            chardevs: Box::new(Vec::new),
            dumps: None,
            migration: None,
        }
    }

    /// Sets whether the guest starts by itself after it arrived by migration.
    pub fn set_autostart(&self, yes: bool) {
        self.autostart.store(yes, Ordering::SeqCst);
    }
}
