//! One vectored send: own bytes and pieces of guest memory, in the order they go out.
//!
//! A vCPU may write a piece of guest memory while the kernel reads it, which is harmless: a page
//! written after its dirty bit was cleared is dirty again. The blocks that the pieces lie in are
//! held until the send is over, so that they stay mapped.

use std::ops::Range;

use crate::memory::RamBlock;

/// Pieces one `sendmsg` takes at most (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// Bytes to send, in order. Reused from batch to batch, so that its buffer is allocated once.
#[derive(Default)]
pub struct Gather {
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// Own bytes up to here belong to an earlier piece.
    sealed: usize,
    bytes: usize,
    /// The blocks of the pieces of memory.
    held: Vec<RamBlock>,
}

enum Piece {
    Own { start: usize, end: usize },
    Memory { address: usize, bytes: usize },
}

impl Gather {
    /// The buffer for own bytes; what is appended to it goes out here.
    pub fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends a range (bytes) of a block, sent from where it is.
    ///
    /// # Panics
    /// When it does not lie in the block.
    pub fn memory(&mut self, block: &RamBlock, range: Range<u64>) {
        assert!(range.start <= range.end && range.end <= block.bytes());
        self.seal();
        if !self.held.iter().any(|held| held.is(block)) {
            self.held.push(block.clone());
        }
        let address = block.host() as usize + range.start as usize;
        let bytes = (range.end - range.start) as usize;
        self.bytes += bytes;
        match self.pieces.last_mut() {
            Some(Piece::Memory { address: before, bytes: have }) if *before + *have == address => {
                *have += bytes
            }
            _ => self.pieces.push(Piece::Memory { address, bytes }),
        }
    }

    /// Bytes in it.
    pub fn bytes(&self) -> usize {
        self.bytes + self.own.len() - self.sealed
    }

    /// Pieces in it, so that a caller stays below [`PIECES_MAX`].
    pub fn pieces(&self) -> usize {
        self.pieces.len() + usize::from(self.own.len() > self.sealed)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    pub fn clear(&mut self) {
        self.own.clear();
        self.pieces.clear();
        self.held.clear();
        (self.sealed, self.bytes) = (0, 0);
    }

    fn seal(&mut self) {
        let end = self.own.len();
        if end > self.sealed {
            self.pieces.push(Piece::Own { start: self.sealed, end });
            self.bytes += end - self.sealed;
            self.sealed = end;
        }
    }

    /// The kernel's view. Valid until the gather is changed.
    pub(super) fn iovecs(&mut self, out: &mut Vec<libc::iovec>) {
        self.seal();
        out.clear();
        out.extend(self.pieces.iter().map(|piece| match *piece {
            Piece::Own { start, end } => {
                let bytes = &self.own[start..end];
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            }
            Piece::Memory { address, bytes } => {
                libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes }
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_neighbours_in_memory_become_one_piece() {
        let ram = crate::memory::for_tests(1 << 20);
        let block = ram.main();
        let mut gather = Gather::default();
        gather.own().extend_from_slice(b"head");
        gather.memory(block, 0..16);
        gather.memory(block, 16..32);
        gather.own().extend_from_slice(b"tail");
        assert_eq!((gather.bytes(), gather.pieces()), (40, 3));
        let mut iovecs = Vec::new();
        gather.iovecs(&mut iovecs);
        assert_eq!(iovecs.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [4, 32, 4]);
        gather.clear();
        assert!(gather.is_empty());
    }
}
