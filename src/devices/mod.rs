//! What lives on the machine's board.
//!
//! A device is a file or a folder here and a line in the list of [`crate::machine::PARTS`]: its
//! [`Kind`] says what the command line and a stream may bring for it, and puts it on the board; its
//! [`Device`] is what stands there. Whoever builds, resets, stops, saves, loads, shows or refuses
//! goes through the list and names no device.
//!
//! The processors and the chips in the kernel are on the list like the rest; their state is KVM's.

pub(crate) mod acpi;
pub(crate) mod bus;
pub(crate) mod clock;
pub(crate) mod debug_exit;
mod device;
mod error;
pub(crate) mod fw_cfg;
pub(crate) mod ged;
mod host_cpu;
pub(crate) mod ioapic;
mod kind;
pub(crate) mod kvmclock;
mod line;
mod network;
pub(crate) mod pic;
pub mod pit;
pub mod processors;
pub(crate) mod reset_vector;
pub(crate) mod rtc;
mod sections;
pub mod serial;
mod slots;
pub(crate) mod smbios;
pub(crate) mod virtio;
pub(crate) mod virtual_clock;
pub(crate) mod vmcoreinfo;

pub(crate) use device::{Device, DeviceRequest, DiskErrorAction, DiskEvents, IrqLine, PortEvents};
pub use device::{DiskError, DiskEvent, WriteThreshold};
pub(crate) use error::Error;
pub use host_cpu::HostCpu;
pub(crate) use kind::{Kind, Misfit, Missing, Pluggable, SectionKind, lacks, only_one};
pub(crate) use line::{Line, LineEnd, Lines};
pub use network::NoNetworks;
pub(crate) use network::{
    Card, FRAME_BYTES_MAX, Filter, HEADER_BYTES, Mac, Network, Networks, show_mac,
};
pub(crate) use rtc::Date;
pub(crate) use sections::Loading;
pub use sections::{LoadReport, Sections};
pub(crate) use slots::{Built, Slots};
pub use virtio::BalloonControl;
#[doc(hidden)]
pub use virtio::HostileDisks;
