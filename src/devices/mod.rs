//! The devices of the microvm that live in this process. Timers and interrupt controllers live in
//! KVM.
//!
//! A device is a value behind a lock that answers on a [`bus`]; each has a plain struct with all of
//! its state.

pub mod bus;
pub mod fw_cfg;
pub mod serial;
pub mod virtio_mmio;
pub mod vmcoreinfo;

/// An interrupt line, high or low.
pub trait IrqLine: Send {
    fn set(&self, high: bool);
}
