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
mod device;
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

pub use device::{Device, DeviceRequest, IrqLine};
pub use error::Error;
pub use kind::{HostCpu, Kind, Misfit, Missing, Pluggable, SectionKind, lacks, only_one};
pub use line::{Line, LineEnd, Lines};
pub use sections::{LoadReport, Loading, Sections};
pub use slots::{Built, Slots};
