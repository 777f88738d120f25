//! AVX2: a block is two vectors.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::path::walk_for;

walk_for!(
    /// Proof that this CPU runs AVX2, and the bit-scanning instructions that came with it. Only
    /// [`Avx2::detect`] makes one.
    Avx2 = TwoVectors,
    "avx2,bmi1,bmi2,lzcnt,popcnt",
    ["avx2", "bmi1", "bmi2", "lzcnt", "popcnt"]
);

pub(super) enum TwoVectors {}

// Each function is inlined into one that is compiled for AVX2; nothing else calls them.
impl Lanes for TwoVectors {
    const ALIGN: usize = 32;

    type Block = [__m256i; 2];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Block {
        let from = from.cast::<__m256i>();
        // SAFETY: the contract of `Lanes`.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }

    #[inline(always)]
    unsafe fn load_live(from: *const u8) -> Self::Block {
        let from = from.cast::<__m256i>();
        // SAFETY: the contract of `Lanes`, which asks for 32-byte alignment here.
        unsafe { [from.read_volatile(), from.add(1).read_volatile()] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, [low, high]: Self::Block) {
        let to = to.cast::<__m256i>();
        // SAFETY: the contract of `Lanes`.
        unsafe {
            _mm256_storeu_si256(to, low);
            _mm256_storeu_si256(to.add(1), high);
        }
    }

    #[inline(always)]
    unsafe fn differ(a: Self::Block, b: Self::Block) -> u64 {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        let (low, high) = unsafe {
            (
                _mm256_movemask_epi8(_mm256_cmpeq_epi8(a[0], b[0])) as u32,
                _mm256_movemask_epi8(_mm256_cmpeq_epi8(a[1], b[1])) as u32,
            )
        };
        !(u64::from(low) | u64::from(high) << 32)
    }

    #[inline(always)]
    unsafe fn all_equal(a: &[Self::Block; 4], b: *const u8) -> bool {
        let b = b.cast::<__m256i>();
        // SAFETY: the contract of `Lanes`.
        unsafe {
            let mut equal = _mm256_set1_epi8(-1);
            for (i, block) in a.iter().enumerate() {
                let low = _mm256_cmpeq_epi8(block[0], _mm256_loadu_si256(b.add(2 * i)));
                let high = _mm256_cmpeq_epi8(block[1], _mm256_loadu_si256(b.add(2 * i + 1)));
                equal = _mm256_and_si256(equal, _mm256_and_si256(low, high));
            }
            _mm256_movemask_epi8(equal) == -1
        }
    }

    #[inline(always)]
    unsafe fn is_zero([low, high]: Self::Block) -> bool {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        unsafe {
            let any = _mm256_or_si256(low, high);
            _mm256_testz_si256(any, any) == 1
        }
    }

    #[inline(always)]
    unsafe fn copy_half(to: *mut u8, from: *const u8) {
        // SAFETY: the contract of `Lanes`.
        unsafe { _mm256_storeu_si256(to.cast(), _mm256_loadu_si256(from.cast())) }
    }
}
