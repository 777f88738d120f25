//! What a guest asks of a disk: a header to be read, data, a status to be written (virtio 1.2,
//! 5.2.6). Nothing of it is believed.

use super::super::queue::{Buffer, Chain, Fault};
use super::options::Wanted;
use crate::block::{Operation, Pass};
use crate::memory::GuestRam;
use std::time::Instant;

const HEADER_BYTES: usize = 16;
pub(super) const SECTOR: u64 = 512;
/// The most of one request, as in QEMU: whole sectors of what an `i32` counts.
const BYTES_MAX: u64 = i32::MAX as u64 / SECTOR * SECTOR;
/// Of a request to discard, or to write zeros: le64 sector, le32 count, le32 flags.
const SEGMENT_BYTES: usize = 16;
const UNMAP: u32 = 1;
/// Bytes of a serial number.
const ID_BYTES: usize = 20;

mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
    /// An old way to ask for an order that nobody keeps any more.
    pub(super) const BARRIER: u32 = 1 << 31;
}

/// How a request ended, as the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

/// What is to be done with the image. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes { unmap: bool },
}

impl Action {
    pub(super) fn operation(self) -> Operation {
        match self {
            Action::Read => Operation::Read,
            Action::Write | Action::Zeroes { .. } => Operation::Write,
            Action::Flush => Operation::Flush,
            Action::Discard => Operation::Unmap,
        }
    }
}

/// A request that is being done.
pub(super) struct Request {
    pub queue: u16,
    pub chain: Chain,
    pub action: Action,
    pub at: u64,
    pub bytes: u64,
    /// Of these.
    pub done: u64,
    /// Where in guest memory the data is.
    pub data: Vec<Buffer>,
    pub since: Instant,
    /// How it is done now.
    pub step: Step,
    /// It is under way as long as it has it.
    pub _pass: Option<Pass>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// By the call that is made for it.
    Direct,
    /// Zeros are written out, where the file system knows no better.
    ZerosWritten,
    /// It is done, and flushed because the guest has no write cache.
    FlushAfter,
}

/// What a chain turned out to be.
pub(super) enum Asked {
    Work(Request),
    /// Done already.
    Answered(Status),
    /// Makes no sense, as what it was counts.
    Invalid(Operation),
}

/// Reads a chain.
///
/// # Errors
/// It is no request at all.
pub(super) fn read(
    ram: &GuestRam,
    queue: u16,
    chain: Chain,
    wanted: &Wanted,
    disk_bytes: u64,
) -> Result<(Chain, Asked), Fault> {
    if chain.readable.is_empty() || chain.writable.is_empty() {
        return Err(Fault::Request("a request to a disk has no header, or no status"));
    }
    let mut header = [0; HEADER_BYTES];
    if chain.read(ram, 0, &mut header)? < HEADER_BYTES {
        return Err(Fault::Request("the header of a request to a disk is too short"));
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
    let out = chain.readable_bytes() - HEADER_BYTES as u64;
    let room = chain.writable_bytes() - 1;
    let fits = |bytes: u64, sector: u64| {
        let block = u64::from(wanted.logical_block());
        let at = sector.checked_mul(SECTOR)?;
        let inside = at.checked_add(bytes).is_some_and(|end| end <= disk_bytes);
        let fits = inside && bytes <= BYTES_MAX;
        (fits && bytes.is_multiple_of(block) && at.is_multiple_of(block)).then_some(at)
    };
    let work = |action, at, bytes, data| {
        Asked::Work(Request {
            queue,
            chain: Chain::default(),
            action,
            at,
            bytes,
            done: 0,
            data,
            since: Instant::now(),
            step: Step::Direct,
            _pass: None,
        })
    };
    let asked = match word(0) & !kind::BARRIER {
        kind::IN => match fits(room, sector) {
            Some(at) => work(Action::Read, at, room, part(&chain.writable, 0, room)),
            None => Asked::Invalid(Operation::Read),
        },
        kind::OUT => match fits(out, sector) {
            Some(at) => {
                let data = part(&chain.readable, HEADER_BYTES as u64, out);
                work(Action::Write, at, out, data)
            }
            None => Asked::Invalid(Operation::Write),
        },
        kind::FLUSH => work(Action::Flush, 0, 0, Vec::new()),
        kind::GET_ID => {
            let mut id = wanted.serial.as_bytes().to_vec();
            id.push(0);
            id.truncate(ID_BYTES.min(room as usize));
            chain.write(ram, &id)?;
            Asked::Answered(Status::Ok)
        }
        what @ (kind::DISCARD | kind::WRITE_ZEROES) => {
            let mut segment = [0; SEGMENT_BYTES];
            if chain.read(ram, HEADER_BYTES, &mut segment)? < SEGMENT_BYTES {
                return Err(Fault::Request("the segment of a discard, or of zeros, is too short"));
            }
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| segment[at + i]));
            let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
            let (sectors, flags) = (word(8), word(12));
            let zeroes = what == kind::WRITE_ZEROES;
            let (max, allowed) =
                if zeroes { (wanted.max_zeroes, UNMAP) } else { (wanted.max_discard, 0) };
            let operation = if zeroes { Operation::Write } else { Operation::Unmap };
            let bytes = u64::from(sectors) * SECTOR;
            match fits(bytes, sector) {
                _ if out > SEGMENT_BYTES as u64 || flags & !allowed != 0 => {
                    Asked::Answered(Status::Unsupported)
                }
                Some(at) if sectors <= max => {
                    let unmap = flags & UNMAP != 0;
                    let action = if zeroes { Action::Zeroes { unmap } } else { Action::Discard };
                    work(action, at, bytes, Vec::new())
                }
                _ => Asked::Invalid(operation),
            }
        }
        _ => Asked::Answered(Status::Unsupported),
    };
    Ok((chain, asked))
}

/// The buffers of `bytes` bytes from byte `skip` on.
pub(super) fn part(buffers: &[Buffer], mut skip: u64, bytes: u64) -> Vec<Buffer> {
    let mut part = Vec::new();
    let mut left = bytes;
    for buffer in buffers {
        let size = u64::from(buffer.bytes);
        if skip >= size {
            skip -= size;
            continue;
        }
        let count = (size - skip).min(left);
        if count == 0 {
            break;
        }
        part.push(Buffer { gpa: buffer.gpa + skip, bytes: count as u32 });
        (skip, left) = (0, left - count);
    }
    part
}

/// Where the status is written: the last byte of all.
pub(super) fn status_at(chain: &Chain) -> Option<u64> {
    chain.writable.last().map(|last| last.gpa + u64::from(last.bytes) - 1)
}
