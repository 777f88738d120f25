//! The devices of the microvm that live in this process.

pub mod fw_cfg;
pub mod serial;
