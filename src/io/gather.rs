//! One vectored write: own bytes, pieces of guest memory and of buffers, in the order they go out.
//!
//! A vCPU may write a piece of guest memory while the kernel reads it, which is harmless: a page
//! written after its dirty bit was cleared is dirty again. What the pieces lie in is held until the
//! write is over, so that it stays mapped.

use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::memory::RamBlock;

/// Pieces one write takes at most (`UIO_MAXIOV`).
pub(crate) const PIECES_MAX: usize = 1024;
/// Bytes of a [`Buffer`]: a write large enough for any disk.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

/// Room that is filled by any threads, and parts of which are written then.
pub(crate) struct Buffer(MmapMut);

/// Buffers, of which there are never more than so many: who wants one waits for a write to end.
pub(crate) struct Pool {
    /// Not made yet.
    unmade: usize,
    given_back: Vec<Arc<Buffer>>,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Pool {
    pub(crate) fn new(buffers: usize) -> Self {
        Self { unmade: buffers, given_back: Vec::new() }
    }

    /// A buffer that nothing is written from, with anything in it. `None` while there is none.
    pub(crate) fn take(&mut self) -> std::io::Result<Option<Buffer>> {
        let free = self.given_back.iter().position(|buffer| Arc::strong_count(buffer) == 1);
        if let Some(buffer) = free.and_then(|at| Arc::into_inner(self.given_back.swap_remove(at))) {
            return Ok(Some(buffer));
        }
        if self.unmade == 0 {
            return Ok(None);
        }
        self.unmade -= 1;
        Ok(Some(Buffer(MmapMut::map_anon(BUFFER_BYTES)?)))
    }

    /// Gives back a buffer, which is free again once nobody holds what is returned.
    pub(crate) fn give_back(&mut self, buffer: Buffer) -> Arc<Buffer> {
        let buffer = Arc::new(buffer);
        self.given_back.push(buffer.clone());
        buffer
    }
}

/// Bytes to write, in order. Reused from batch to batch, so that its buffer is allocated once.
#[derive(Default)]
pub(crate) struct Gather {
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// Own bytes up to here belong to an earlier piece.
    sealed: usize,
    bytes: usize,
    /// What the pieces lie in.
    blocks: Vec<RamBlock>,
    buffers: Vec<Arc<Buffer>>,
}

enum Piece {
    Own { start: usize, end: usize },
    Memory { address: usize, bytes: usize },
}

impl Gather {
    /// The buffer for own bytes; what is appended to it goes out here.
    pub(crate) fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends a range (bytes) of a block, written from where it is.
    ///
    /// # Panics
    /// When it does not lie in the block.
    pub(crate) fn memory(&mut self, block: &RamBlock, range: Range<u64>) {
        assert!(range.start <= range.end && range.end <= block.bytes());
        if !self.blocks.iter().any(|held| held.is(block)) {
            self.blocks.push(block.clone());
        }
        let address = block.host() as usize + range.start as usize;
        self.append(address, (range.end - range.start) as usize);
    }

    /// Appends a part of a buffer, written from where it is.
    pub(crate) fn part(&mut self, buffer: &Arc<Buffer>, range: Range<usize>) {
        if !self.buffers.last().is_some_and(|held| Arc::ptr_eq(held, buffer)) {
            self.buffers.push(buffer.clone());
        }
        let bytes = &buffer.bytes()[range];
        self.append(bytes.as_ptr() as usize, bytes.len());
    }

    fn append(&mut self, address: usize, bytes: usize) {
        self.seal();
        self.bytes += bytes;
        match self.pieces.last_mut() {
            Some(Piece::Memory { address: before, bytes: have }) if *before + *have == address => {
                *have += bytes
            }
            _ => self.pieces.push(Piece::Memory { address, bytes }),
        }
    }

    /// Bytes in it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.own.len() - self.sealed
    }

    /// Pieces in it, so that a caller stays below [`PIECES_MAX`].
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len() + usize::from(self.own.len() > self.sealed)
    }

    pub(crate) fn clear(&mut self) {
        self.own.clear();
        self.pieces.clear();
        self.blocks.clear();
        self.buffers.clear();
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
        assert_eq!(gather.bytes(), 0);
    }
}
