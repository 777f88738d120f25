//! Programs that others wrote: QEMU at the other end, QEMU's tools, clients of QMP.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod consoles;
mod disks;
mod migration;
mod qmp;
mod snapshots;
mod start;
mod streams;
