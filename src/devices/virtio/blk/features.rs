//! Feature bits of a disk (virtio 1.2, 5.2.3).

pub(super) const SEG_MAX: u64 = 1 << 2;
pub(super) const GEOMETRY: u64 = 1 << 4;
pub(super) const READ_ONLY: u64 = 1 << 5;
pub(super) const BLOCK_SIZE: u64 = 1 << 6;
/// Of legacy drivers alone. QEMU offers it and carries out no such command, and so it is here: a
/// guest that comes from there may have agreed upon it.
pub(in super::super) const SCSI: u64 = 1 << 7;
pub(super) const FLUSH: u64 = 1 << 9;
pub(super) const TOPOLOGY: u64 = 1 << 10;
pub(super) const CONFIG_WCE: u64 = 1 << 11;
pub(super) const QUEUES: u64 = 1 << 12;
pub(super) const DISCARD: u64 = 1 << 13;
pub(super) const WRITE_ZEROES: u64 = 1 << 14;
