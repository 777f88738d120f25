//! Images read, and guest RAM that is written with them, or only measured.

use super::error::BootError;
use crate::memory::{self, GuestRam, PAGE_BYTES, Region};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

/// A kernel image: a file, or bytes in memory.
pub(super) trait Image: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> Image for T {}

/// Guest RAM that is written, or, without any, only measured.
pub(super) struct Room<'a> {
    pub(super) ram: Option<&'a GuestRam>,
    pub(super) regions: Vec<Region>,
}

impl Room<'_> {
    pub(super) fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Bytes of RAM below the hole at 4 GiB.
    pub(super) fn low_bytes(&self) -> u64 {
        self.regions[0].bytes
    }

    /// Whether the range lies in one region.
    pub(super) fn holds(&self, gpa: u64, bytes: u64) -> bool {
        let around = |r: &&Region| (r.gpa..r.gpa + r.bytes).contains(&gpa);
        let end = self.regions.iter().find(around).map_or(0, |r| r.gpa + r.bytes);
        gpa.checked_add(bytes).is_some_and(|needed| needed <= end)
    }
}

/// Copies `bytes` from where `image` stands.
pub(super) fn copy(
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
    let _guard = ram.ask_to_write(gpa, bytes);
    // Memory that is missing is told by name here; reading into it would only fail.
    if let Some(offset) = ram.main().offset(gpa).filter(|_| bytes > 0) {
        let pages = offset / PAGE_BYTES * PAGE_BYTES..(offset + bytes).next_multiple_of(PAGE_BYTES);
        ram.main().populate(pages)?;
    }
    let done = ram.mem().read_exact_volatile_from(GuestAddress(gpa), image, bytes as usize);
    done.map_err(|e| unreadable(path, std::io::Error::other(e.to_string())))
}

pub(super) fn put(ram: &Room<'_>, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
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

pub(super) fn no_room(ram: &Room<'_>, what: &Path, gpa: u64, bytes: u64) -> BootError {
    BootError::NoRoom { what: what.into(), needs: gpa.saturating_add(bytes), has: ram.bytes() }
}

pub(super) fn bytes_of(image: &mut impl Image, path: &Path) -> Result<u64, BootError> {
    image.seek(SeekFrom::End(0)).map_err(|source| unreadable(path, source))
}

pub(super) fn seek(image: &mut impl Image, path: &Path, offset: u64) -> Result<(), BootError> {
    image.seek(SeekFrom::Start(offset)).map(drop).map_err(|source| unreadable(path, source))
}

pub(super) fn read_at(
    image: &mut impl Image,
    path: &Path,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), BootError> {
    seek(image, path, offset)?;
    image.read_exact(buf).map_err(|source| unreadable(path, source))
}

pub(super) fn unreadable(path: &Path, source: std::io::Error) -> BootError {
    BootError::Read { path: path.into(), source }
}
