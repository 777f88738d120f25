//! Where things are put; the folder's own documentation has them as a table.

pub(super) const PVH_INFO: u64 = 0x6000;
pub(super) const ZERO_PAGE: u64 = 0x7000;
pub(super) const PAGE_TABLES: u64 = 0x9000;
pub(super) const GDT: u64 = 0x500;
pub(super) const CMDLINE: u64 = 0x2_0000;
pub(super) const CMDLINE_BYTES_MAX: usize = 0x1_0000;
/// Kernels and initrds stay out of the first MiB.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;
/// Linux finds an initrd anywhere below this, whatever its bootloader was told.
pub(super) const INITRD_END_MAX: u64 = 2 << 30;
