//! What the walk asks of an instruction set.

use std::hint::select_unpredictable;

use super::changed::{Changed, Edges};
use super::walk::Records;

/// 64 bytes in vector registers, and what can be done with them.
///
/// # Safety
///
/// Of all functions: they are called only, and always inlined, where the CPU is known to have the
/// instruction set. Pointers are valid for the 64 bytes that are read or written, and need no
/// alignment unless it is said.
pub(super) trait Lanes {
    /// The alignment that makes each vector of a block one load.
    const ALIGN: usize;

    /// 64 bytes.
    type Block: Copy;

    unsafe fn load(from: *const u8) -> Self::Block;

    /// Loads each vector of the block once, by a volatile load, from memory that may be written
    /// meanwhile.
    ///
    /// `from` is aligned to [`Self::ALIGN`].
    unsafe fn load_live(from: *const u8) -> Self::Block;

    unsafe fn store(to: *mut u8, block: Self::Block);

    /// Stores the block, of which `differ` says where it differs from the 64 bytes at `to`.
    ///
    /// If it does not, it is stored where nobody reads it: a branch would be mispredicted often,
    /// and a store to the old page in any case would dirty lines for nothing.
    #[inline(always)]
    unsafe fn store_changed(to: *mut u8, block: Self::Block, differ: u64, nobody_reads: *mut u8) {
        // SAFETY: both may be written, by the contract.
        unsafe { Self::store(select_unpredictable(differ != 0, to, nobody_reads), block) }
    }

    /// One bit for each byte, byte `i` in bit `i`; one means that the blocks differ there.
    unsafe fn differ(a: Self::Block, b: Self::Block) -> u64;

    /// Whether four blocks equal the 256 bytes at `b`.
    unsafe fn all_equal(a: &[Self::Block; 4], b: *const u8) -> bool;

    unsafe fn is_zero(block: Self::Block) -> bool;

    /// Copies 32 bytes, which do not overlap.
    unsafe fn copy_half(to: *mut u8, from: *const u8);

    /// Finds the runs in `changed`, all of whose words are set, with gaps of one and two bytes
    /// closed.
    #[inline(always)]
    unsafe fn find_runs<const N: usize>(changed: &Changed<N>, edges: &mut Edges<N>) {
        // SAFETY: the contract.
        unsafe { changed.find_runs(edges) }
    }

    /// As [`Records::push_short_runs`].
    #[inline(always)]
    unsafe fn push_short_runs<const N: usize>(
        records: &mut Records<N>,
        edges: &Edges<N>,
        first: usize,
    ) -> usize
    where
        Self: Sized,
    {
        // SAFETY: the contract.
        unsafe { records.push_short_runs::<Self>(edges, first) }
    }
}
