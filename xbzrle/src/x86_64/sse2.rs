//! SSE2, which every x86-64 has: a block is four vectors.

use std::arch::x86_64::*;

use super::decode;
use super::lanes::Lanes;
use super::walk::{self, Pages, Rest};
use crate::Ahead;
use crate::outcome::{DecodeError, Outcome};

/// Proof that this CPU runs SSE2. Only [`Sse2::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sse2(());

// SSE2 is part of x86-64, so the walk needs no function that is compiled for it.
impl Sse2 {
    /// The proof, if the CPU gives it.
    pub fn detect() -> Option<Self> {
        is_x86_feature_detected!("sse2").then_some(Self(()))
    }

    pub(crate) fn encode<const N: usize>(self, old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
        let pages = Pages { old: old.as_ptr().cast_mut(), new: new.as_ptr(), ahead: None };
        // SAFETY: `self` exists, so the CPU has SSE2. Without `LIVE`, nothing is written.
        unsafe { walk::encode::<FourVectors, false, N>(pages, out, rest) }
    }

    /// # Safety
    ///
    /// As for [`encode_live`](crate::encode_live), and `live` is aligned to 16 bytes.
    pub(crate) unsafe fn encode_live<const N: usize>(
        self,
        cached: &mut [u8; N],
        live: *const u8,
        out: &mut [u8],
        ahead: Option<Ahead>,
    ) -> Outcome {
        let pages = Pages { old: cached.as_mut_ptr(), new: live, ahead };
        // SAFETY: `self` exists, so the CPU has SSE2; the rest is the caller's promise.
        unsafe { walk::encode::<FourVectors, true, N>(pages, out, rest) }
    }

    /// # Safety
    ///
    /// As for [`walk::copy_live`].
    pub(crate) unsafe fn copy_live<const N: usize>(self, to: &mut [u8; N], live: *const u8) {
        // SAFETY: `self` exists, so the CPU has SSE2; the rest is the caller's promise.
        unsafe { walk::copy_live::<FourVectors, N>(to, live) }
    }

    /// # Safety
    ///
    /// As for [`decode_at`](crate::decode::decode_at).
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
        // SAFETY: `self` exists, so the CPU has SSE2; the rest is the caller's promise.
        unsafe { walk::is_zero::<FourVectors>(live, len) }
    }
}

/// # Safety
///
/// As for [`walk::encode_rest`].
#[inline(never)]
unsafe fn rest<const LIVE: bool, const N: usize>(
    pages: Pages<LIVE, N>,
    out: &mut [u8],
    rest: Option<Rest<FourVectors>>,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { walk::encode_rest::<FourVectors, LIVE, N>(pages, out, rest) }
}

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
        !(equal[0] as u64 | (equal[1] as u64) << 16 | (equal[2] as u64) << 32 | (equal[3] as u64) << 48)
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
            let any = _mm_or_si128(_mm_or_si128(block[0], block[1]), _mm_or_si128(block[2], block[3]));
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
