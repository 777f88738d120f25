//! What every boot protocol puts into guest RAM.

use super::error::BootError;
use super::memory_map::{BIOS, Low};
use super::places::{CMDLINE, HIGH_MEMORY, INITRD_END_MAX};
use super::room::{Room, bytes_of, copy, put, seek};
use super::{Firmware, mptable};
use crate::config::Boot;
use std::fs::File;
use std::path::Path;

/// An initrd's name and its open file.
pub(super) type Initrd<'a> = Option<(&'a Path, &'a mut File)>;

/// The parts every protocol has: command line, MP table, and ACPI's tables if there are any.
pub(super) fn write_common(
    boot: &Boot,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
) -> Result<(), BootError> {
    put(ram, CMDLINE, &[boot.cmdline.as_bytes(), b"\0"].concat())?;
    let low = Low::new(firmware);
    if let (Some(acpi), Some(rsdp_at)) = (firmware.acpi, low.rsdp) {
        let (tables, rsdp) = acpi.place(low.tables);
        put(ram, low.tables, &tables)?;
        put(ram, rsdp_at, &rsdp)?;
    }
    if let Some(smbios) = firmware.smbios {
        put(ram, BIOS, &smbios.place(BIOS))?;
    }
    let table = mptable::build(firmware.cpus);
    put(ram, low.mptable, &mptable::at(low.mptable, &table))?;
    // BIOS data area: where the EBDA starts, and how many KiB of RAM end there.
    put(ram, 0x40e, &((low.ebda >> 4) as u16).to_le_bytes())?;
    put(ram, 0x413, &((low.ebda >> 10) as u16).to_le_bytes())
}

/// Reads the initrd to the highest place that suits; returns (address, bytes), zeros without one.
pub(super) fn load_initrd(
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    end_max: u64,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let Some((path, file)) = initrd else { return Ok((0, 0)) };
    let bytes = bytes_of(file, path)?;
    seek(file, path, 0)?;
    let top = ram.low_bytes().min(end_max).min(INITRD_END_MAX);
    let start = top.saturating_sub(bytes) & !0xfff;
    if start < kernel_end.max(HIGH_MEMORY) {
        let needs = kernel_end.max(HIGH_MEMORY) + bytes;
        return Err(BootError::NoRoom { what: path.into(), needs, has: ram.bytes() });
    }
    copy(ram, path, file, start, bytes)?;
    Ok((start, bytes))
}
