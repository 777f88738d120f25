//! AVX2: a block is two vectors.

use std::arch::x86_64::*;

use super::decode;
use super::lanes::Lanes;
use super::walk::{self, Pages, Rest};
use crate::Ahead;
use crate::outcome::{DecodeError, Outcome};

/// Proof that this CPU runs AVX2, and the bit-scanning instructions that came with it. Only [`Avx2::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, if the CPU gives it.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }

    pub(crate) fn encode<const N: usize>(self, old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
        let pages = Pages { old: old.as_ptr().cast_mut(), new: new.as_ptr(), ahead: None };
        // SAFETY: `self` exists, so the CPU has all that the function asks for. Without `LIVE`, nothing is written.
        unsafe { encode::<false, N>(pages, out) }
    }

    /// # Safety
    ///
    /// As for [`encode_live`](crate::encode_live), and `live` is aligned to 32 bytes.
    pub(crate) unsafe fn encode_live<const N: usize>(
        self,
        cached: &mut [u8; N],
        live: *const u8,
        out: &mut [u8],
        ahead: Option<Ahead>,
    ) -> Outcome {
        let pages = Pages { old: cached.as_mut_ptr(), new: live, ahead };
        // SAFETY: `self` exists, so the CPU has all that the function asks for; the rest is the caller's promise.
        unsafe { encode::<true, N>(pages, out) }
    }

    /// # Safety
    ///
    /// As for [`walk::copy_live`].
    pub(crate) unsafe fn copy_live<const N: usize>(self, to: &mut [u8; N], live: *const u8) {
        #[target_feature(enable = "avx2")]
        unsafe fn copy_live<const N: usize>(to: &mut [u8; N], live: *const u8) {
            // SAFETY: this function is compiled for AVX2; the rest is the caller's promise.
            unsafe { walk::copy_live::<TwoVectors, N>(to, live) }
        }
        // SAFETY: `self` exists, so the CPU has AVX2; the rest is the caller's promise.
        unsafe { copy_live(to, live) }
    }

    /// The decoder of SSE2, which every x86-64 CPU has. Compiled for AVX2 and its companions it gained nothing on long
    /// deltas, and could not be inlined any more: a delta of four bytes took a third longer.
    ///
    /// # Safety
    ///
    /// As for [`decode_at`](crate::decode::decode_at).
    #[inline(always)]
    pub(crate) unsafe fn decode_at<const N: usize>(
        self,
        delta: &[u8],
        page: *mut u8,
    ) -> Result<(), DecodeError> {
        // SAFETY: the caller's promise.
        unsafe { decode::decode_at::<N>(delta, page) }
    }

    /// # Safety
    ///
    /// As for [`walk::is_zero`].
    pub(crate) unsafe fn is_zero(self, live: *const u8, len: usize) -> bool {
        #[target_feature(enable = "avx2")]
        unsafe fn is_zero(live: *const u8, len: usize) -> bool {
            // SAFETY: this function is compiled for AVX2; the rest is the caller's promise.
            unsafe { walk::is_zero::<TwoVectors>(live, len) }
        }
        // SAFETY: `self` exists, so the CPU has AVX2; the rest is the caller's promise.
        unsafe { is_zero(live, len) }
    }
}

/// # Safety
///
/// As for [`walk::encode`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn encode<const LIVE: bool, const N: usize>(pages: Pages<LIVE, N>, out: &mut [u8]) -> Outcome {
    // SAFETY: this function is compiled for AVX2, and so is `rest`; the rest is the caller's promise.
    unsafe { walk::encode::<TwoVectors, LIVE, N>(pages, out, rest) }
}

/// # Safety
///
/// As for [`walk::encode_rest`].
#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn rest<const LIVE: bool, const N: usize>(
    pages: Pages<LIVE, N>,
    out: &mut [u8],
    rest: Option<Rest<TwoVectors>>,
) -> Outcome {
    // SAFETY: this function is compiled for AVX2; the rest is the caller's promise.
    unsafe { walk::encode_rest::<TwoVectors, LIVE, N>(pages, out, rest) }
}

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
