//! One vectored send: own bytes and pieces of guest memory, in the order they go out.
//!
//! Unsafe because pieces of guest memory are named by address: a vCPU may write them while the
//! kernel reads, which is harmless (a page written after its dirty bit was cleared is dirty again),
//! but they must stay mapped.
#![allow(unsafe_code)]

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
}

enum Piece {
    Own { start: usize, end: usize },
    Memory { address: *const u8, bytes: usize },
}

// SAFETY: the addresses are only handed to the kernel; whoever put them in promised that they stay
// mapped.
unsafe impl Send for Gather {}

impl Gather {
    /// The buffer for own bytes; what is appended to it goes out here.
    pub fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends `bytes` bytes at `address`, sent from where they are.
    ///
    /// # Safety
    /// The memory stays mapped until the gather was sent or cleared.
    pub unsafe fn memory(&mut self, address: *const u8, bytes: usize) {
        self.seal();
        self.bytes += bytes;
        match self.pieces.last_mut() {
            Some(Piece::Memory { address: before, bytes: have })
                if before.wrapping_add(*have) == address =>
            {
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
                libc::iovec { iov_base: address.cast_mut().cast(), iov_len: bytes }
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_neighbours_in_memory_become_one_piece() {
        let memory = [7u8; 64];
        let mut gather = Gather::default();
        gather.own().extend_from_slice(b"head");
        // SAFETY: `memory` outlives the gather.
        unsafe {
            gather.memory(memory.as_ptr(), 16);
            gather.memory(memory[16..].as_ptr(), 16);
        }
        gather.own().extend_from_slice(b"tail");
        assert_eq!((gather.bytes(), gather.pieces()), (40, 3));
        let mut iovecs = Vec::new();
        gather.iovecs(&mut iovecs);
        assert_eq!(iovecs.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [4, 32, 4]);
        gather.clear();
        assert!(gather.is_empty());
    }
}
