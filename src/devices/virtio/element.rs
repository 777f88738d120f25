//! A chain of buffers that the device holds, as QEMU's streams have it: `VirtQueueElementOld`,
//! native to x86, that is little-endian.
//!
//! | offset | what |
//! |---|---|
//! | 0 | u32 head, number of buffers to be read, number of buffers to be written, padding |
//! | 16 | u64 addresses of 1024 buffers to be written, then of 1024 to be read |
//! | 16400 | the same of (u64 zero, u64 length) |

use super::Element;
use super::queue::{Buffer, CHAIN_MAX, Chain};
use crate::memory::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryBackend};

const WRITE_ADDRESSES: usize = 16;
const READ_ADDRESSES: usize = WRITE_ADDRESSES + 8 * CHAIN_MAX;
const WRITE_LENGTHS: usize = READ_ADDRESSES + 8 * CHAIN_MAX;
const READ_LENGTHS: usize = WRITE_LENGTHS + 16 * CHAIN_MAX;

pub(super) fn encode(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; Element::BYTES];
    let numbers = [chain.head.into(), chain.readable.len() as u32, chain.writable.len() as u32];
    for (at, number) in numbers.into_iter().enumerate() {
        bytes[4 * at..][..4].copy_from_slice(&number.to_le_bytes());
    }
    let mut put = |buffers: &[Buffer], addresses: usize, lengths: usize| {
        for (at, buffer) in buffers.iter().enumerate() {
            bytes[addresses + 8 * at..][..8].copy_from_slice(&buffer.gpa.to_le_bytes());
            let length = u64::from(buffer.bytes).to_le_bytes();
            bytes[lengths + 16 * at + 8..][..8].copy_from_slice(&length);
        }
    };
    put(&chain.writable, WRITE_ADDRESSES, WRITE_LENGTHS);
    put(&chain.readable, READ_ADDRESSES, READ_LENGTHS);
    bytes
}

/// # Errors
/// Too many buffers, or buffers that are not memory.
pub(super) fn decode(bytes: &[u8], ram: &GuestRam) -> Result<Chain, String> {
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * at + i]));
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let buffers = |count: u32, addresses: usize, lengths: usize| {
        if count as usize > CHAIN_MAX {
            return Err(format!("{count} buffers in one chain, {CHAIN_MAX} at most"));
        }
        let buffer = |at: usize| {
            let (gpa, length) = (long(addresses + 8 * at), long(lengths + 16 * at + 8));
            let there = |bytes: &u32| {
                *bytes > 0 && ram.mem().check_range(GuestAddress(gpa), *bytes as usize)
            };
            let bytes = u32::try_from(length).ok().filter(there);
            let bytes = bytes.ok_or(format!("{length} bytes at {gpa:#x} are not memory"))?;
            Ok(Buffer { gpa, bytes })
        };
        (0..count as usize).map(buffer).collect()
    };
    let head = u16::try_from(number(0)).map_err(|_| format!("no descriptor {}", number(0)))?;
    Ok(Chain {
        head,
        readable: buffers(number(1), READ_ADDRESSES, READ_LENGTHS)?,
        writable: buffers(number(2), WRITE_ADDRESSES, WRITE_LENGTHS)?,
    })
}
