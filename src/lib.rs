//! Godwit, a KVM virtual machine monitor built to move running guests.

pub mod arch;
pub mod args;
mod aside;
pub mod builtin;
pub mod chardev;
pub mod client;
pub mod config;
pub mod control;
pub mod devices;
pub mod dump;
pub mod inspect;
pub mod io;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod output;
pub mod pages;
pub mod qmp;
pub mod sabotage;
pub mod stream;
pub mod vmm;
pub mod vmstate;
