//! What lives on the machine's board.
//!
//! A device is a file or a folder here and a line in the list of [`crate::machine::PARTS`]: its
//! [`Kind`] says what the command line and a stream may bring for it, and puts it on the board; its
//! [`Device`] is what stands there. Whoever builds, resets, stops, saves, loads, shows or refuses
//! goes through the list and names no device.
//!
//! The processors and the chips in the kernel are on the list like the rest; their state is KVM's.

pub mod bus;
pub mod clock;
pub mod debug_exit;
mod error;
pub mod fw_cfg;
pub mod ged;
pub mod ioapic;
mod kind;
pub mod kvmclock;
mod line;
pub mod pic;
pub mod pit;
pub mod processors;
pub mod rtc;
mod sections;
pub mod serial;
mod slots;
pub mod virtio;
pub mod vmcoreinfo;

pub use error::Error;
pub use kind::{HostCpu, Kind, Misfit, Missing, Pluggable, SectionKind, lacks, only_one};
pub use line::{Line, LineEnd, Lines};
pub use sections::{LoadReport, Loading, Sections};
pub use slots::{Built, Slots};

use serde_json::Value as Json;
use std::any::Any;

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

    /// What can be read of it, for people and tools (`qom-get`).
    fn properties(&self) -> Vec<(&'static str, Json)> {
        Vec::new()
    }

    /// Adds its state, in QEMU's layout, to `sections`. The guest stands still. Reading may write
    /// guest memory.
    fn save(&self, sections: &mut Sections) -> Result<(), Error>;

    /// Takes its state from the sections of a stream, which fit ([`SectionKind::check`]). What they
    /// do not bring stays as after power-on.
    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error>;
}

/// An interrupt line, high or low.
pub trait IrqLine: Send {
    fn set(&self, high: bool);
}

/// What an access asks of the machine. The processor that made it stands still until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    /// The process ends with this status.
    Exit(i32),
}
