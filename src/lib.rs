//! Godwit, a KVM virtual machine monitor built to move running guests.

pub mod config;
pub mod devices;
pub mod kvm;
pub mod machine;
pub mod memory;
