//! What stands on the board, as whoever goes through the list sees it.

use serde_json::Value as Json;
use std::any::Any;

use super::error::Error;
use super::sections::{Loading, Sections};

/// A device on the board. All but `reset`, `save` and `load` of one that does nothing by itself may
/// be left as they are.
pub trait Device: Any + Send + Sync {
    /// As after power-on; interrupt lines fall. The processors stand still.
    fn reset(&self) -> Result<(), Error>;

    /// The processors have stopped: finishes what is under way and begins nothing, so that neither
    /// its state nor guest memory changes until [`Device::resume`]. Comes before the last harvest of
    /// the dirty log.
    fn quiesce(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The processors are about to run: here, for the first time or after a stop, a load, a reset
    /// or a migration that failed.
    fn resume(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Somebody presses the power button (`system_powerdown`), also of a guest that stands still.
    fn power_button(&self) {}

    /// The guest is about to run here, or is this machine's though it stands still: takes what only
    /// one machine may have at a time, where that was let go of.
    ///
    /// # Errors
    /// Another has it. Nothing has changed, and the guest cannot go on.
    fn claim(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Brings to where other machines find it what they read when the guest is theirs.
    ///
    /// # Errors
    /// It cannot: the guest does not leave.
    fn store(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The guest is about to be another machine's, which will claim the same.
    ///
    /// # Errors
    /// What could not be given back is this machine's still.
    fn let_go(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Why a guest with it can be neither migrated nor dumped while it runs: others have a part of its
    /// state, or write its memory unseen.
    fn keeps_guest(&self) -> Option<&'static str> {
        None
    }

    /// What can be read of it, for people and tools (`qom-get`).
    fn properties(&self) -> Vec<(&'static str, Json)> {
        Vec::new()
    }

    /// Changes what can be changed of that (`qom-set`). `None`: no property of this name can be.
    fn set_property(&self, _name: &str, _value: &Json) -> Option<Result<(), String>> {
        None
    }

    /// Adds its state, in QEMU's layout, to `sections`. The guest stands still. Reading may write
    /// guest memory.
    fn save(&self, sections: &mut Sections) -> Result<(), Error>;

    /// Takes its state from the sections of a stream, which fit ([`SectionKind::check`](super::SectionKind::check)). What they
    /// do not bring stays as after power-on.
    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error>;
}

/// An interrupt line, high or low.
pub(crate) trait IrqLine: Send {
    fn set(&self, high: bool);
}

/// What an access asks of the machine. The processor that made it stands still until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceRequest {
    /// The process ends with this status.
    Exit(i32),
    /// The machine starts over.
    Reset,
    /// The guest has switched itself off.
    Shutdown,
}

/// A request that the host could not do for a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The id of the `-drive`; empty for a node of `-blockdev`.
    pub device: String,
    pub node: Option<String>,
    /// The disk's place among objects, or its id.
    pub qdev: String,
    pub is_read: bool,
    pub action: DiskErrorAction,
    pub no_space: bool,
    pub reason: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorAction {
    Report,
    Ignore,
    /// The guest is to be stopped.
    Stop,
}

impl DiskErrorAction {
    /// As QMP writes them.
    pub const NAMES: &[&str] = &["report", "ignore", "stop"];

    /// As QMP writes it.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// A write that went behind what somebody wanted to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteThreshold {
    /// The node that it is of.
    pub node: String,
    pub threshold: u64,
    /// So many bytes behind it.
    pub exceeded: u64,
}

/// What people outside are told of disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskEvent {
    Error(DiskError),
    Threshold(WriteThreshold),
}

/// Told, from any thread, that a program of the guest opened the port of this id, or closed it; must
/// not wait for a device.
pub(crate) type PortEvents = std::sync::Arc<dyn Fn(&str, bool) + Send + Sync>;

/// Told of them, from any thread; must not wait for a device.
pub(crate) type DiskEvents = std::sync::Arc<dyn Fn(DiskEvent) + Send + Sync>;
