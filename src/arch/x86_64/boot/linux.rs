//! Linux' own 64-bit boot protocol (Documentation/arch/x86/boot.rst), for bzImages and for a
//! `vmlinux` without PVH.

use super::common::{Initrd, load_initrd, write_common};
use super::error::BootError;
use super::memory_map::Low;
use super::places::{CMDLINE, CMDLINE_BYTES_MAX, GDT, HIGH_MEMORY, PAGE_TABLES, ZERO_PAGE};
use super::registers::Entry;
use super::room::{Image, Room, bytes_of, copy, put, read_at, seek};
use super::{Firmware, memory_map, registers};
use crate::config::Boot;
use std::path::Path;

/// Offsets in the zero page, and in the first sectors of a bzImage.
const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1e8;
const HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_BYTES: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const RAMDISK: usize = 0x218;
const RAMDISK_BYTES: usize = 0x21c;
const HEAP_END: usize = 0x224;
const CMDLINE_PTR: usize = 0x228;
const INITRD_MAX: usize = 0x22c;
const X_LOAD_FLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const E820: usize = 0x2d0;
/// The header ends here at the latest.
const HEADER_END_MAX: usize = 0x290;

const XLF_KERNEL_64: u8 = 1;
const LOADED_HIGH: u8 = 1;
const LOADER_UNKNOWN: u8 = 0xff;
const PROTOCOL_2_12: u16 = 0x020c;
/// Where the 64-bit entry lies in a bzImage's protected mode part.
const ENTRY_64: u64 = 0x200;
const SECTOR_BYTES: u64 = 512;

/// Loads a bzImage to where it wants to be.
pub(crate) fn load_bzimage(
    boot: &Boot,
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
    path: &Path,
    image: &mut impl Image,
) -> Result<Entry, BootError> {
    let mut page = vec![0; 4096];
    let mut head = vec![0; HEADER_END_MAX];
    read_at(image, path, 0, &mut head).map_err(|_| BootError::NotAKernel(path.into()))?;
    if &head[MAGIC..MAGIC + 4] != b"HdrS" || head[LOAD_FLAGS] & LOADED_HIGH == 0 {
        return Err(BootError::NotAKernel(path.into()));
    }
    let version = u16::from_le_bytes([head[VERSION], head[VERSION + 1]]);
    if version < PROTOCOL_2_12 || head[X_LOAD_FLAGS] & XLF_KERNEL_64 == 0 {
        return Err(BootError::Not64Bit(path.into()));
    }
    let header_end = (MAGIC + usize::from(head[JUMP_BYTES])).min(HEADER_END_MAX);
    page[HEADER..header_end].copy_from_slice(&head[HEADER..header_end]);
    let cmdline_max = word(&page, CMDLINE_SIZE) as usize;
    if boot.cmdline.len() > cmdline_max {
        return Err(BootError::Cmdline { bytes: boot.cmdline.len(), max: cmdline_max });
    }
    let sectors = if head[HEADER] == 0 { 4 } else { u64::from(head[HEADER]) };
    let setup_bytes = (sectors + 1) * SECTOR_BYTES;
    let bytes = bytes_of(image, path)?
        .checked_sub(setup_bytes)
        .ok_or(BootError::Damaged { path: path.into(), what: "the setup part" })?;
    let load = quad(&page, PREF_ADDRESS).max(HIGH_MEMORY);
    let end = load.saturating_add(bytes.max(word(&page, INIT_SIZE).into()));
    if end > ram.low_bytes() {
        return Err(BootError::NoRoom { what: path.into(), needs: end, has: ram.bytes() });
    }
    seek(image, path, setup_bytes)?;
    copy(ram, path, image, load, bytes)?;
    let initrd_end_max = u64::from(word(&page, INITRD_MAX)) + 1;
    let initrd = load_initrd(initrd, ram, initrd_end_max, end)?;
    finish(boot, ram, firmware, page, initrd)?;
    Ok(Entry::Linux64 { entry: load + ENTRY_64, zero_page: ZERO_PAGE })
}

/// Prepares an ELF `vmlinux`, loaded already, that is entered at `startup_64`.
pub(crate) fn prepare_vmlinux(
    boot: &Boot,
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
    entry: u64,
    end: u64,
) -> Result<Entry, BootError> {
    let mut page = vec![0; 4096];
    page[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&0xaa55u16.to_le_bytes());
    page[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
    page[VERSION..VERSION + 2].copy_from_slice(&PROTOCOL_2_12.to_le_bytes());
    page[LOAD_FLAGS] = LOADED_HIGH;
    let initrd = load_initrd(initrd, ram, u64::MAX, end)?;
    finish(boot, ram, firmware, page, initrd)?;
    Ok(Entry::Linux64 { entry, zero_page: ZERO_PAGE })
}

/// Fills in what a boot loader has to say, and writes page, tables and the common parts.
fn finish(
    boot: &Boot,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
    mut page: Vec<u8>,
    (initrd, initrd_bytes): (u64, u64),
) -> Result<(), BootError> {
    page[LOADER] = LOADER_UNKNOWN;
    page[HEAP_END..HEAP_END + 2].fill(0);
    set_word(&mut page, CMDLINE_PTR, CMDLINE as u32);
    set_word(&mut page, CMDLINE_SIZE, CMDLINE_BYTES_MAX as u32 - 1);
    set_word(&mut page, RAMDISK, initrd as u32);
    set_word(&mut page, RAMDISK_BYTES, initrd_bytes as u32);
    let map = memory_map::ranges(&ram.regions, firmware);
    page[E820_COUNT] = map.len() as u8;
    for (i, range) in map.into_iter().enumerate() {
        page[E820 + 20 * i..][..20].copy_from_slice(&memory_map::entry(range));
    }
    let rsdp = Low::new(firmware).rsdp.unwrap_or(0);
    page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&rsdp.to_le_bytes());
    put(ram, ZERO_PAGE, &page)?;
    put(ram, PAGE_TABLES, &registers::identity_tables(PAGE_TABLES))?;
    put(ram, GDT, &registers::gdt())?;
    write_common(boot, ram, firmware)
}

fn word(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| page[at + i]))
}

fn quad(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| page[at + i]))
}

fn set_word(page: &mut [u8], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
