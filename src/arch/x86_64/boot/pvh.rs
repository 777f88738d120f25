//! The PVH boot protocol (xen/interface/hvm/start_info.h): 32-bit protected mode, EBX points to the
//! start info.

use super::Firmware;
use super::common::{Initrd, load_initrd, write_common};
use super::error::BootError;
use super::memory_map::{self, Low};
use super::places::{CMDLINE, PVH_INFO};
use super::registers::Entry;
use super::room::{Room, put};
use crate::config::Boot;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;

pub(crate) fn prepare(
    boot: &Boot,
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
    entry: u32,
    kernel_end: u64,
) -> Result<Entry, BootError> {
    let (initrd, initrd_bytes) = load_initrd(initrd, ram, u64::MAX, kernel_end)?;
    write_common(boot, ram, firmware)?;
    let map = memory_map::ranges(&ram.regions, firmware);
    let modules = PVH_INFO + INFO_BYTES;
    let map_at = modules + MODULE_BYTES;
    let mut out = Vec::new();
    let has_initrd = u32::from(initrd_bytes > 0);
    out.extend([MAGIC, VERSION, 0, has_initrd].iter().flat_map(|w| w.to_le_bytes()));
    let modlist = if initrd_bytes > 0 { modules } else { 0 };
    let rsdp = Low::new(firmware).rsdp.unwrap_or(0);
    out.extend([modlist, CMDLINE, rsdp, map_at].iter().flat_map(|q| q.to_le_bytes()));
    out.extend([map.len() as u32, 0].iter().flat_map(|w| w.to_le_bytes()));
    out.extend([initrd, initrd_bytes, 0, 0].iter().flat_map(|q| q.to_le_bytes()));
    for range in map {
        out.extend(memory_map::entry(range));
        out.extend([0; 4]);
    }
    put(ram, PVH_INFO, &out)?;
    Ok(Entry::Pvh { entry, start_info: PVH_INFO as u32 })
}
