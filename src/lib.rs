//! Godwit, a KVM virtual machine monitor built to move running guests.

pub mod config;
