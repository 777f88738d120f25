//! The paths: one way through the codec for each instruction set, and the one-time choice among
//! them.
//!
//! Unsafe, because the functions for live memory hand on their caller's promises.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::OnceLock;

use crate::ahead::Ahead;
use crate::choice::Choice;
use crate::format::check_page_size;
use crate::outcome::{DecodeError, Outcome};
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{Avx2, Avx512, Sse2};
use crate::{PAGE_SIZE, decode, live, scalar};

/// One implementation of the codec. All paths give the same results, byte for byte.
///
/// A program needs no `Path`: the functions of the crate use [`Path::best`]. Tests and benchmarks
/// name one.
///
/// ```
/// use xbzrle::{Outcome, Path};
///
/// let (old, mut new) = ([0; 4096], [0; 4096]);
/// new[4095] = 1;
/// let mut out = [0; 4096];
/// for path in Path::available() {
///     assert_eq!(path.encode(&old, &new, &mut out), Outcome::Delta(4), "{path}");
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// Plain Rust: the definition.
    Scalar,
    /// 16 bytes at a time, on every x86-64.
    #[cfg(target_arch = "x86_64")]
    Sse2(Sse2),
    /// 32 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Path {
    /// The paths that this CPU can run, narrowest first.
    pub fn available() -> impl Iterator<Item = Path> {
        let paths = [
            Some(Path::Scalar),
            #[cfg(target_arch = "x86_64")]
            Sse2::detect().map(Path::Sse2),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Path::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Path::Avx512),
        ];
        paths.into_iter().flatten()
    }

    /// The path that encodes fastest here, found on the first call, in at most 3 ms: see [`Choice`].
    pub fn best() -> Path {
        Choice::of_this_process().path
    }

    /// The path with the widest vectors that this CPU can run. Where nothing is encoded it is as
    /// good as the best, and costs no trial.
    pub fn widest() -> Path {
        static WIDEST: OnceLock<Path> = OnceLock::new();
        *WIDEST.get_or_init(|| Self::available().last().unwrap_or(Path::Scalar))
    }

    /// The path of this name, if this CPU can run it.
    pub fn named(name: &str) -> Option<Path> {
        Self::available().find(|path| path.name() == name)
    }

    /// `scalar`, `sse2`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Path::Sse2(_) => "sse2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => "avx512",
        }
    }

    /// [`encode`](crate::encode) on this path.
    pub fn encode<const N: usize>(self, old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
        const { check_page_size::<N>() };
        check_room::<N>(out);
        match self {
            Path::Scalar => scalar::encode(old, new, out),
            #[cfg(target_arch = "x86_64")]
            Path::Sse2(sse2) => sse2.encode(old, new, out),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(avx2) => avx2.encode(old, new, out),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(avx512) => avx512.encode(old, new, out),
        }
    }

    /// [`encode_live`](crate::encode_live) on this path.
    ///
    /// # Safety
    ///
    /// As for [`encode_live`](crate::encode_live).
    pub unsafe fn encode_live<const N: usize>(
        self,
        cached: &mut [u8; N],
        live: *const u8,
        out: &mut [u8],
    ) -> Outcome {
        // SAFETY: the caller's promise.
        unsafe { self.encode_page_live(cached, live, out, None) }
    }

    /// [`encode_live_ahead`](crate::encode_live_ahead) on this path.
    ///
    /// # Safety
    ///
    /// As for [`encode_live`](crate::encode_live).
    pub unsafe fn encode_live_ahead<const N: usize>(
        self,
        cached: &mut [u8; N],
        live: *const u8,
        out: &mut [u8],
        ahead: Ahead,
    ) -> Outcome {
        // SAFETY: the caller's promise.
        unsafe { self.encode_page_live(cached, live, out, Some(ahead)) }
    }

    /// # Safety
    ///
    /// As for [`encode_live`](crate::encode_live).
    unsafe fn encode_page_live<const N: usize>(
        self,
        cached: &mut [u8; N],
        live: *const u8,
        out: &mut [u8],
        ahead: Option<Ahead>,
    ) -> Outcome {
        const { check_page_size::<N>() };
        check_room::<N>(out);
        if !self.reads_in_place(live) {
            let mut still = StillPage([0; N]);
            // SAFETY: the caller's promise.
            return unsafe {
                self.copy_live(&mut still.0, live);
                self.encode_page_live(cached, still.0.as_ptr(), out, ahead)
            };
        }
        // SAFETY: the caller's promise, and the alignment that was looked at.
        unsafe {
            match self {
                Path::Scalar => {
                    let changed = live::update(cached, live);
                    scalar::encode_changed(&changed, cached, out)
                }
                #[cfg(target_arch = "x86_64")]
                Path::Sse2(sse2) => sse2.encode_live(cached, live, out, ahead),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2(avx2) => avx2.encode_live(cached, live, out, ahead),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512(avx512) => avx512.encode_live(cached, live, out, ahead),
            }
        }
    }

    /// [`copy_live`](crate::copy_live) on this path.
    ///
    /// # Safety
    ///
    /// As for [`copy_live`](crate::copy_live).
    pub unsafe fn copy_live<const N: usize>(self, to: &mut [u8; N], live: *const u8) {
        // SAFETY: the caller's promise, and the alignment that was looked at.
        unsafe {
            match self {
                Path::Scalar => live::copy(to, live),
                #[cfg(target_arch = "x86_64")]
                _ if !self.reads_in_place(live) => crate::x86_64::copy_live_unaligned(to, live),
                #[cfg(target_arch = "x86_64")]
                Path::Sse2(sse2) => sse2.copy_live(to, live),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2(avx2) => avx2.copy_live(to, live),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512(avx512) => avx512.copy_live(to, live),
            }
        }
    }

    /// Has `live` the alignment that makes each vector one volatile load? Guest pages have. A page
    /// that has not is copied aside, and then encoded from the copy.
    fn reads_in_place(self, live: *const u8) -> bool {
        self == Path::Scalar || live.addr().is_multiple_of(64)
    }

    /// [`decode()`](crate::decode()) on this path.
    // Inlined with all it calls: a call costs half of what a delta of four bytes does.
    #[inline(always)]
    pub fn decode<const N: usize>(
        self,
        delta: &[u8],
        page: &mut [u8; N],
    ) -> Result<(), DecodeError> {
        let page = page.as_mut_ptr();
        // SAFETY: `page` is a page of `N` bytes, borrowed for writing, so `delta` is no part of it.
        unsafe { self.decode_page::<N>(delta, page) }
    }

    /// [`decode_at`](crate::decode_at) on this path.
    ///
    /// # Safety
    ///
    /// As for [`decode_at`](crate::decode_at).
    #[inline(always)]
    pub unsafe fn decode_at(self, delta: &[u8], page: *mut u8) -> Result<(), DecodeError> {
        // SAFETY: the caller's promise.
        unsafe { self.decode_page::<PAGE_SIZE>(delta, page) }
    }

    /// # Safety
    ///
    /// As for [`decode_at`](crate::decode_at), with a page of `N` bytes.
    #[inline(always)]
    unsafe fn decode_page<const N: usize>(
        self,
        delta: &[u8],
        page: *mut u8,
    ) -> Result<(), DecodeError> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Path::Scalar => decode::decode_at::<N>(delta, page),
                #[cfg(target_arch = "x86_64")]
                Path::Sse2(_) | Path::Avx2(_) | Path::Avx512(_) => {
                    crate::x86_64::decode_at::<N>(delta, page)
                }
            }
        }
    }

    /// [`is_zero`](crate::is_zero) on this path.
    pub fn is_zero(self, bytes: &[u8]) -> bool {
        // SAFETY: a slice is valid for reads of its length.
        unsafe { self.is_zero_live(bytes.as_ptr(), bytes.len()) }
    }

    /// [`is_zero_live`](crate::is_zero_live) on this path.
    ///
    /// # Safety
    ///
    /// As for [`is_zero_live`](crate::is_zero_live).
    pub unsafe fn is_zero_live(self, live: *const u8, len: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Path::Scalar => live::is_zero(live, len),
                #[cfg(target_arch = "x86_64")]
                Path::Sse2(sse2) => sse2.is_zero(live, len),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2(avx2) => avx2.is_zero(live, len),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512(avx512) => avx512.is_zero(live, len),
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A page at an address that every path reads in place.
#[repr(align(64))]
struct StillPage<const N: usize>([u8; N]);

fn check_room<const N: usize>(out: &[u8]) {
    assert!(out.len() >= N, "the output has room for {} bytes, less than a page of {N}", out.len());
}
