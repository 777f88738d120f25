//! SSE2, which every x86-64 has: a block is four vectors.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::path::walk_for;

walk_for!(
    /// Proof that this CPU runs SSE2. Only [`Sse2::detect`] makes one.
    Sse2 = FourVectors,
    "sse2",
    ["sse2"]
);

pub(super) enum FourVectors {}

impl Lanes for FourVectors {
    const ALIGN: usize = 16;

    type Block = [__m128i; 4];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Block {
        let from = from.cast::<__m128i>();
        // SAFETY: the contract of `Lanes`.
        unsafe {
            [
                _mm_loadu_si128(from),
                _mm_loadu_si128(from.add(1)),
                _mm_loadu_si128(from.add(2)),
                _mm_loadu_si128(from.add(3)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_live(from: *const u8) -> Self::Block {
        let from = from.cast::<__m128i>();
        // SAFETY: the contract of `Lanes`, which asks for 16-byte alignment here.
        unsafe {
            [
                from.read_volatile(),
                from.add(1).read_volatile(),
                from.add(2).read_volatile(),
                from.add(3).read_volatile(),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, block: Self::Block) {
        let to = to.cast::<__m128i>();
        // SAFETY: the contract of `Lanes`.
        unsafe {
            _mm_storeu_si128(to, block[0]);
            _mm_storeu_si128(to.add(1), block[1]);
            _mm_storeu_si128(to.add(2), block[2]);
            _mm_storeu_si128(to.add(3), block[3]);
        }
    }

    #[inline(always)]
    unsafe fn differ(a: Self::Block, b: Self::Block) -> u64 {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        let equal = unsafe {
            [
                _mm_movemask_epi8(_mm_cmpeq_epi8(a[0], b[0])),
                _mm_movemask_epi8(_mm_cmpeq_epi8(a[1], b[1])),
                _mm_movemask_epi8(_mm_cmpeq_epi8(a[2], b[2])),
                _mm_movemask_epi8(_mm_cmpeq_epi8(a[3], b[3])),
            ]
        };
        !(equal[0] as u64
            | (equal[1] as u64) << 16
            | (equal[2] as u64) << 32
            | (equal[3] as u64) << 48)
    }

    #[inline(always)]
    unsafe fn all_equal(a: &[Self::Block; 4], b: *const u8) -> bool {
        let b = b.cast::<__m128i>();
        // SAFETY: the contract of `Lanes`.
        unsafe {
            let mut equal = _mm_set1_epi8(-1);
            for (i, block) in a.iter().enumerate() {
                for (j, &vector) in block.iter().enumerate() {
                    let same = _mm_cmpeq_epi8(vector, _mm_loadu_si128(b.add(4 * i + j)));
                    equal = _mm_and_si128(equal, same);
                }
            }
            _mm_movemask_epi8(equal) == 0xffff
        }
    }

    #[inline(always)]
    unsafe fn is_zero(block: Self::Block) -> bool {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        unsafe {
            let any =
                _mm_or_si128(_mm_or_si128(block[0], block[1]), _mm_or_si128(block[2], block[3]));
            _mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) == 0xffff
        }
    }

    #[inline(always)]
    unsafe fn copy_half(to: *mut u8, from: *const u8) {
        let (to, from) = (to.cast::<__m128i>(), from.cast::<__m128i>());
        // SAFETY: the contract of `Lanes`.
        unsafe {
            _mm_storeu_si128(to, _mm_loadu_si128(from));
            _mm_storeu_si128(to.add(1), _mm_loadu_si128(from.add(1)));
        }
    }
}
