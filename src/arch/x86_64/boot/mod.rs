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

use crate::config::{Boot, Cpu, Kernel};
use crate::memory::{self, GuestRam, PAGE_BYTES, Region, layout};
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

/// What the guest starts from, open for as long as the machine lives: a reset needs it again, and
/// must not fail because a file was removed or replaced, or because no descriptor is left.
pub struct Images {
    boot: Boot,
    /// `None`: the guest inside this binary.
    kernel: Option<File>,
    initrd: Option<File>,
}

impl Images {
    pub fn open(boot: &Boot) -> Result<Images, BootError> {
        let kernel = match &boot.kernel {
            Kernel::Builtin => None,
            Kernel::File(path) => Some(open(path)?),
        };
        let initrd = boot.initrd.as_deref().map(open).transpose()?;
        Ok(Images { boot: boot.clone(), kernel, initrd })
    }

    /// Whether [`Images::load`] would work with so much RAM, which need not be there yet: everything
    /// is there and fits. Writes nothing.
    pub fn check(&mut self, ram_bytes: u64, cpus: &Cpu) -> Result<(), BootError> {
        self.load_into(&Room { ram: None, regions: layout(ram_bytes) }, cpus).map(drop)
    }

    /// Puts everything into guest RAM, and says where the first vCPU starts.
    pub fn load(&mut self, ram: &GuestRam, cpus: &Cpu) -> Result<Entry, BootError> {
        self.load_into(&Room { ram: Some(ram), regions: ram.main().regions().to_vec() }, cpus)
    }

    fn load_into(&mut self, ram: &Room<'_>, cpus: &Cpu) -> Result<Entry, BootError> {
        let Images { boot, kernel, initrd } = self;
        let initrd = boot.initrd.as_deref().zip(initrd.as_mut());
        match (&boot.kernel, kernel) {
            (Kernel::File(path), Some(file)) => load_image(boot, initrd, ram, cpus, path, file),
            _ => {
                let mut image = Cursor::new(crate::builtin::elf());
                load_image(boot, initrd, ram, cpus, "builtin".as_ref(), &mut image)
            }
        }
    }
}

fn open(path: &Path) -> Result<File, BootError> {
    let failed = |source| BootError::Open { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_dir() {
        true => Err(failed(std::io::ErrorKind::IsADirectory.into())),
        false => Ok(file),
    }
}

/// An initrd's name and its open file.
type Initrd<'a> = Option<(&'a Path, &'a mut File)>;

/// Guest RAM that is written, or, without any, only measured.
struct Room<'a> {
    ram: Option<&'a GuestRam>,
    regions: Vec<Region>,
}

impl Room<'_> {
    fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Bytes of RAM below the hole at 4 GiB.
    fn low_bytes(&self) -> u64 {
        self.regions[0].bytes
    }

    /// Whether the range lies in one region.
    fn holds(&self, gpa: u64, bytes: u64) -> bool {
        let around = |r: &&Region| (r.gpa..r.gpa + r.bytes).contains(&gpa);
        let end = self.regions.iter().find(around).map_or(0, |r| r.gpa + r.bytes);
        gpa.checked_add(bytes).is_some_and(|needed| needed <= end)
    }
}

fn load_image(
    boot: &Boot,
    initrd: Initrd<'_>,
    ram: &Room<'_>,
    cpus: &Cpu,
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
        return linux::load_bzimage(boot, initrd, ram, cpus, path, image);
    }
    let kernel = elf::load(ram, path, image)?;
    match kernel.pvh_entry {
        Some(entry) => pvh::prepare(boot, initrd, ram, cpus, entry, kernel.end),
        None if kernel.wide => {
            linux::prepare_vmlinux(boot, initrd, ram, cpus, kernel.entry, kernel.end)
        }
        None => Err(BootError::NoPvhNote(path.into())),
    }
}

/// The parts every protocol has: command line and MP table.
fn write_common(boot: &Boot, ram: &Room<'_>, cpus: &Cpu) -> Result<(), BootError> {
    put(ram, CMDLINE, &[boot.cmdline.as_bytes(), b"\0"].concat())?;
    let table = mptable::build(cpus);
    let start = memory_map::low_end(cpus.count.into());
    put(ram, start, &mptable::at(start, &table))?;
    // BIOS data area: where the EBDA starts, and how many KiB of RAM end there.
    put(ram, 0x40e, &((start >> 4) as u16).to_le_bytes())?;
    put(ram, 0x413, &((start >> 10) as u16).to_le_bytes())
}

/// Reads the initrd to the highest place that suits; returns (address, bytes), zeros without one.
fn load_initrd(
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

/// Copies `bytes` from where `image` stands.
fn copy(
    ram: &Room<'_>,
    path: &Path,
    image: &mut impl Image,
    gpa: u64,
    bytes: u64,
) -> Result<(), BootError> {
    if !ram.holds(gpa, bytes) {
        return Err(no_room(ram, path, gpa, bytes));
    }
    let Some(ram) = ram.ram else {
        let at = image.stream_position().map_err(|source| unreadable(path, source))?;
        return match bytes_of(image, path)?.checked_sub(at) {
            Some(left) if left >= bytes => Ok(()),
            _ => Err(BootError::Damaged { path: path.into(), what: "its end" }),
        };
    };
    let _leave = ram.ask_to_write(gpa, bytes);
    // Memory that is missing is told by name here; reading into it would only fail.
    if let Some(offset) = ram.main().offset(gpa).filter(|_| bytes > 0) {
        let pages = offset / PAGE_BYTES * PAGE_BYTES..(offset + bytes).next_multiple_of(PAGE_BYTES);
        ram.main().populate(pages)?;
    }
    let done = ram.mem().read_exact_volatile_from(GuestAddress(gpa), image, bytes as usize);
    done.map_err(|e| unreadable(path, std::io::Error::other(e.to_string())))
}

fn put(ram: &Room<'_>, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    let what = "the boot information".as_ref();
    let no_room = || no_room(ram, what, gpa, bytes.len() as u64);
    let Some(guest) = ram.ram else {
        return ram.holds(gpa, bytes.len() as u64).then_some(()).ok_or_else(no_room);
    };
    guest.write(gpa, bytes).map_err(|error| match error {
        memory::Error::Address { .. } => no_room(),
        missing => missing.into(),
    })
}

fn no_room(ram: &Room<'_>, what: &Path, gpa: u64, bytes: u64) -> BootError {
    BootError::NoRoom { what: what.into(), needs: gpa.saturating_add(bytes), has: ram.bytes() }
}

fn bytes_of(image: &mut impl Image, path: &Path) -> Result<u64, BootError> {
    image.seek(SeekFrom::End(0)).map_err(|source| unreadable(path, source))
}

fn seek(image: &mut impl Image, path: &Path, offset: u64) -> Result<(), BootError> {
    image.seek(SeekFrom::Start(offset)).map(drop).map_err(|source| unreadable(path, source))
}

fn read_at(
    image: &mut impl Image,
    path: &Path,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), BootError> {
    seek(image, path, offset)?;
    image.read_exact(buf).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> BootError {
    BootError::Read { path: path.into(), source }
}
