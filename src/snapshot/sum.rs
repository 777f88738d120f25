//! Checksums: 64-bit XXH3 with seed 0.

use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use twox_hash::XxHash3_64;

/// Of a mapped-ram file, for each of which there is a sum; and read at once.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

pub(crate) fn sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Of bytes that come in parts.
#[derive(Default)]
pub(crate) struct Sum {
    hasher: XxHash3_64,
    bytes: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes came, and their sum; then it begins anew.
    pub(crate) fn take(&mut self) -> (u64, u64) {
        let Sum { hasher, bytes } = std::mem::take(self);
        (bytes, hasher.finish())
    }
}

/// Of `bytes` bytes of a file from `at` on. A hole counts as the zeros that it reads as, and is not
/// read. `buffer` is scratch.
pub(super) fn sum_of(file: &File, at: u64, bytes: u64, buffer: &mut Vec<u8>) -> io::Result<u64> {
    static ZEROS: OnceLock<u64> = OnceLock::new();
    let hole = is_hole(file, at, bytes);
    if hole && bytes == PIECE_BYTES {
        return Ok(*ZEROS.get_or_init(|| sum(&[0; PIECE_BYTES as usize])));
    }
    buffer.resize(PIECE_BYTES as usize, 0);
    let (mut hasher, mut done) = (XxHash3_64::new(), 0);
    while done < bytes {
        let part = &mut buffer[..(bytes - done).min(PIECE_BYTES) as usize];
        match hole {
            true => part.fill(0),
            false => file.read_exact_at(part, at + done)?,
        }
        hasher.write(part);
        done += part.len() as u64;
    }
    Ok(hasher.finish())
}

/// What cannot be asked is read. Others may ask at the same time: nobody uses the position.
fn is_hole(file: &File, at: u64, bytes: u64) -> bool {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data >= at + bytes,
        // None up to the end, which is behind these bytes or found by those who read on.
        Err(Errno::NXIO) => file.metadata().is_ok_and(|is| is.len() >= at + bytes),
        Err(_) => false,
    }
}
