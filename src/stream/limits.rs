//! Numbers of the format, and how much of it is held at once.

/// `QEVM`.
pub const MAGIC: u32 = 0x5145_564d;
/// The only version spoken; 2 is an old format without sections.
pub(crate) const VERSION: u32 = 3;
/// The target page of x86, the unit of every RAM record.
pub const PAGE_BYTES: usize = 4096;
/// More RAM blocks than any machine has. Each costs the sender at least ten bytes, so a limit must
/// be ours.
pub const BLOCKS_MAX: usize = 256;
/// The longest device payload a reader will hold: forty times the largest recorded (a virtio
/// device, 49 KiB).
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;
/// The longest package (postcopy's nested list of device sections); QEMU's own limit.
pub const PACKAGE_BYTES_MAX: u32 = 1 << 24;
/// The longest description; that of a microvm is about 25 KiB.
pub const DESCRIPTION_BYTES_MAX: u32 = 16 << 20;
