//! Loading what the guest starts from, as firmware would have left it: kernel, initrd, command
//! line, memory map and MP table in guest RAM, and the registers of the first vCPU.
//!
//! | guest address | what |
//! |---|---|
//! | 0x500 | GDT |
//! | 0x6000 | PVH start info, module list, memory map |
//! | 0x7000 | Linux' zero page |
//! | 0x9000 | page tables of the 64-bit boot protocol, the first 4 GiB one to one |
//! | 0x20000 | command line, up to 64 KiB |
//! | 0x9f000 | ACPI tables, with `acpi=on` (lower where they need more) |
//! | 0x9fc00 | ACPI's root pointer, and the MP table (lower with many vCPUs); reserved from here to 0xa0000 |
//! | 0xf0000 | SMBIOS tables, with `-smbios` |
//! | 0xffff0 | what starts the machine over (`devices::reset_vector`) |
//! | 0x100000 | kernel |
//! | top, below 2 GiB | initrd |

mod common;
mod elf;
mod error;
mod linux;
mod memory_map;
mod mptable;
mod places;
mod pvh;
mod registers;
mod room;

pub(crate) use error::BootError;
pub(crate) use memory_map::e820_file;
pub(crate) use registers::Entry;

use crate::arch::x86_64::{acpi, smbios};
use crate::config::{Boot, Cpu, Kernel};
use crate::memory::{GuestRam, layout};
use common::Initrd;
use places::CMDLINE_BYTES_MAX;
use room::{Image, Room, seek};
use std::fs::File;
use std::io::Cursor;
use std::path::Path;

/// What the guest starts from, open for as long as the machine lives: a reset needs it again, and
/// must not fail because a file was removed or replaced, or because no descriptor is left.
pub(crate) struct Images {
    boot: Boot,
    /// `None`: the guest inside this binary.
    kernel: Option<File>,
    initrd: Option<File>,
}

impl Images {
    pub(crate) fn open(boot: &Boot) -> Result<Images, BootError> {
        let kernel = match &boot.kernel {
            Kernel::Builtin => None,
            Kernel::File(path) => Some(open(path)?),
        };
        let initrd = boot.initrd.as_deref().map(open).transpose()?;
        Ok(Images { boot: boot.clone(), kernel, initrd })
    }

    /// Whether [`Images::load`] would work with so much RAM, which need not be there yet: everything
    /// is there and fits. Writes nothing.
    pub(crate) fn check(
        &mut self,
        ram_bytes: u64,
        firmware: &Firmware<'_>,
    ) -> Result<(), BootError> {
        self.load_into(&Room { ram: None, regions: layout(ram_bytes) }, firmware).map(drop)
    }

    /// Puts everything into guest RAM, and says where the first vCPU starts.
    pub(crate) fn load(
        &mut self,
        ram: &GuestRam,
        firmware: &Firmware<'_>,
    ) -> Result<Entry, BootError> {
        self.load_into(&Room { ram: Some(ram), regions: ram.main().regions().to_vec() }, firmware)
    }

    fn load_into(&mut self, ram: &Room<'_>, firmware: &Firmware<'_>) -> Result<Entry, BootError> {
        let Images { boot, kernel, initrd } = self;
        let initrd = boot.initrd.as_deref().zip(initrd.as_mut());
        match (&boot.kernel, kernel) {
            (Kernel::File(path), Some(file)) => load_image(boot, initrd, ram, firmware, path, file),
            _ => {
                let mut image = Cursor::new(crate::builtin::elf());
                load_image(boot, initrd, ram, firmware, "builtin".as_ref(), &mut image)
            }
        }
    }
}

/// What firmware would have found out, for the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Firmware<'a> {
    pub cpus: &'a Cpu,
    /// `None`: the machine has no ACPI.
    pub acpi: Option<&'a acpi::Tables>,
    pub smbios: Option<&'a smbios::Tables>,
}

fn open(path: &Path) -> Result<File, BootError> {
    let failed = |source| BootError::Open { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_dir() {
        true => Err(failed(std::io::ErrorKind::IsADirectory.into())),
        false => Ok(file),
    }
}

fn load_image(
    boot: &Boot,
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    firmware: &Firmware<'_>,
    path: &Path,
    image: &mut impl Image,
) -> Result<Entry, BootError> {
    if boot.cmdline.len() >= CMDLINE_BYTES_MAX {
        return Err(BootError::Cmdline { bytes: boot.cmdline.len(), max: CMDLINE_BYTES_MAX - 1 });
    }
    let mut magic = [0; 4];
    seek(image, path, 0)?;
    let _ = image.read(&mut magic);
    if &magic != elf::MAGIC {
        return linux::load_bzimage(boot, initrd, ram, firmware, path, image);
    }
    let kernel = elf::load(ram, path, image)?;
    match kernel.pvh_entry {
        Some(entry) => pvh::prepare(boot, initrd, ram, firmware, entry, kernel.end),
        None if kernel.wide => {
            linux::prepare_vmlinux(boot, initrd, ram, firmware, kernel.entry, kernel.end)
        }
        None => Err(BootError::NoPvhNote(path.into())),
    }
}
