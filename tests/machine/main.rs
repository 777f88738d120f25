//! A machine from start to end, inside this process and as a process of its own.

mod acpi;
mod builtin_guest;
mod client;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod confined;
mod debug_exit;
mod drop_in;
mod interrupts;
mod lifecycle;
mod limits;
mod missing_memory;
mod moments;
mod qcow2;
mod recorded_streams;
mod reset;
mod starts;
mod unfit_hosts;
mod vhost_user_fs;
mod virtio_balloon;
mod virtio_blk;
mod virtio_console;
mod virtio_net;
mod virtio_rng;
