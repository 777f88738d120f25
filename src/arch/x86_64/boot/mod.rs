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
//! | 0x9fc00 | MP table (lower with more than 40 vCPUs); reserved from here to 0xa0000 |
//! | 0x100000 | kernel |
//! | top, below 2 GiB | initrd |

mod elf;
mod error;
mod linux;
mod memory_map;
mod mptable;
mod pvh;
mod registers;

pub use error::BootError;
pub use memory_map::e820_file;
pub use registers::Entry;

use crate::config::{Boot, Kernel};
use crate::memory::GuestRam;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

const PVH_INFO: u64 = 0x6000;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const GDT: u64 = 0x500;
const CMDLINE: u64 = 0x2_0000;
const CMDLINE_BYTES_MAX: usize = 0x1_0000;
/// Kernels and initrds stay out of the first MiB.
const HIGH_MEMORY: u64 = 0x10_0000;
/// Linux finds an initrd anywhere below this, whatever its bootloader was told.
const INITRD_END_MAX: u64 = 2 << 30;

/// A kernel image: a file, or bytes in memory.
trait Image: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> Image for T {}

/// Puts everything into guest RAM, and says where the first vCPU starts.
pub fn load(boot: &Boot, ram: &GuestRam, cpus: u32) -> Result<Entry, BootError> {
    match &boot.kernel {
        Kernel::Builtin => {
            load_image(boot, ram, cpus, "builtin".as_ref(), &mut Cursor::new(crate::builtin::elf()))
        }
        Kernel::File(path) => {
            let open = |source| BootError::Open { path: path.clone(), source };
            let mut file = File::open(path).map_err(open)?;
            if file.metadata().map_err(open)?.is_dir() {
                return Err(open(std::io::ErrorKind::IsADirectory.into()));
            }
            load_image(boot, ram, cpus, path, &mut file)
        }
    }
}

fn load_image(
    boot: &Boot,
    ram: &GuestRam,
    cpus: u32,
    path: &Path,
    image: &mut impl Image,
) -> Result<Entry, BootError> {
    if boot.cmdline.len() >= CMDLINE_BYTES_MAX {
        return Err(BootError::Cmdline { bytes: boot.cmdline.len(), max: CMDLINE_BYTES_MAX - 1 });
    }
    let mut magic = [0; 4];
    let _ = image.read(&mut magic);
    rewind(image, path)?;
    if &magic != elf::MAGIC {
        return linux::load_bzimage(boot, ram, cpus, path, image);
    }
    let kernel = elf::load(ram, path, image)?;
    match kernel.pvh_entry {
        Some(entry) => pvh::prepare(boot, ram, cpus, entry, kernel.end),
        None if kernel.wide => linux::prepare_vmlinux(boot, ram, cpus, kernel.entry, kernel.end),
        None => Err(BootError::NoPvhNote(path.into())),
    }
}

/// The parts every protocol has: command line and MP table.
fn write_common(boot: &Boot, ram: &GuestRam, cpus: u32) -> Result<(), BootError> {
    put(ram, CMDLINE, &[boot.cmdline.as_bytes(), b"\0"].concat())?;
    let table = mptable::build(cpus);
    let start = memory_map::low_end(cpus);
    put(ram, start, &mptable::at(start, &table))?;
    // BIOS data area: where the EBDA starts, and how many KiB of RAM end there.
    put(ram, 0x40e, &((start >> 4) as u16).to_le_bytes())?;
    put(ram, 0x413, &((start >> 10) as u16).to_le_bytes())
}

/// Reads the initrd to the highest place that suits; returns (address, bytes), zeros without one.
fn load_initrd(
    boot: &Boot,
    ram: &GuestRam,
    end_max: u64,
    kernel_end: u64,
) -> Result<(u64, u64), BootError> {
    let Some(path) = &boot.initrd else { return Ok((0, 0)) };
    let open = |source| BootError::Open { path: path.clone(), source };
    let mut file = File::open(path).map_err(open)?;
    let bytes = file.metadata().map_err(open)?.len();
    let top = low_ram(ram).min(end_max).min(INITRD_END_MAX);
    let start = top.saturating_sub(bytes) & !0xfff;
    if start < kernel_end.max(HIGH_MEMORY) {
        let needs = kernel_end.max(HIGH_MEMORY) + bytes;
        return Err(BootError::NoRoom { what: path.clone(), needs, has: ram.bytes() });
    }
    copy(ram, path, &mut file, start, bytes)?;
    Ok((start, bytes))
}

/// Bytes of RAM below the hole at 4 GiB.
fn low_ram(ram: &GuestRam) -> u64 {
    ram.main().regions()[0].bytes
}

/// Copies `bytes` from where `image` stands.
fn copy(
    ram: &GuestRam,
    path: &Path,
    image: &mut impl Image,
    gpa: u64,
    bytes: u64,
) -> Result<(), BootError> {
    if gpa
        .checked_add(bytes)
        .is_none_or(|end| ram.main().offset(gpa).is_none() || end > ram_end(ram, gpa))
    {
        return Err(BootError::NoRoom {
            what: path.into(),
            needs: gpa.saturating_add(bytes),
            has: ram.bytes(),
        });
    }
    let _leave = ram.ask_to_write(gpa, bytes);
    let done = ram.mem().read_exact_volatile_from(GuestAddress(gpa), image, bytes as usize);
    done.map_err(|e| BootError::Read {
        path: path.into(),
        source: std::io::Error::other(e.to_string()),
    })
}

/// End of the region that holds `gpa`.
fn ram_end(ram: &GuestRam, gpa: u64) -> u64 {
    let holds = ram.main().regions().iter().find(|r| (r.gpa..r.gpa + r.bytes).contains(&gpa));
    holds.map_or(0, |r| r.gpa + r.bytes)
}

fn put(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    let needs = gpa + bytes.len() as u64;
    ram.write(gpa, bytes).map_err(|_| BootError::NoRoom {
        what: "the boot information".into(),
        needs,
        has: ram.bytes(),
    })
}

fn rewind(image: &mut impl Image, path: &Path) -> Result<(), BootError> {
    seek(image, path, 0)
}

fn seek(image: &mut impl Image, path: &Path, offset: u64) -> Result<(), BootError> {
    let done = image.seek(SeekFrom::Start(offset));
    done.map(drop).map_err(|source| BootError::Read { path: path.into(), source })
}

fn read_at(
    image: &mut impl Image,
    path: &Path,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), BootError> {
    seek(image, path, offset)?;
    image.read_exact(buf).map_err(|source| BootError::Read { path: path.into(), source })
}
