//! The paths: one way through the codec for each instruction set, and the one-time choice among them.
//!
//! Unsafe, because the functions for live memory hand on their caller's promises.
#![allow(unsafe_code)]

use std::fmt;

use crate::format::check_page_size;
use crate::outcome::{DecodeError, Outcome};
use crate::{PAGE_SIZE, decode, live, scalar};

/// One implementation of the codec. All paths give the same results, byte for byte.
///
/// A program needs no `Path`: the functions of the crate use [`Path::best`]. Tests and benchmarks name one.
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
}

impl Path {
    /// The paths that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Path> {
        [Path::Scalar].into_iter()
    }

    /// The fastest path that this CPU can run, chosen on the first call.
    pub fn best() -> Path {
        Path::Scalar
    }

    /// The path of this name, if this CPU can run it.
    pub fn named(name: &str) -> Option<Path> {
        Self::available().find(|path| path.name() == name)
    }

    /// `scalar`, `sse2` or `avx2`.
    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
        }
    }

    /// [`encode`](crate::encode) on this path.
    pub fn encode<const N: usize>(self, old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
        const { check_page_size::<N>() };
        check_room::<N>(out);
        match self {
            Path::Scalar => scalar::encode(old, new, out),
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
        const { check_page_size::<N>() };
        check_room::<N>(out);
        match self {
            Path::Scalar => {
                // SAFETY: the caller's promise.
                let changed = unsafe { live::update(cached, live) };
                scalar::encode_changed(&changed, cached, out)
            }
        }
    }

    /// [`copy_live`](crate::copy_live) on this path.
    ///
    /// # Safety
    ///
    /// As for [`copy_live`](crate::copy_live).
    pub unsafe fn copy_live<const N: usize>(self, to: &mut [u8; N], live: *const u8) {
        match self {
            // SAFETY: the caller's promise.
            Path::Scalar => unsafe { live::copy(to, live) },
        }
    }

    /// [`decode`](crate::decode) on this path.
    pub fn decode<const N: usize>(self, delta: &[u8], page: &mut [u8; N]) -> Result<(), DecodeError> {
        match self {
            // SAFETY: `page` is a page of `N` bytes, borrowed for writing, so `delta` is no part of it.
            Path::Scalar => unsafe { decode::decode_at::<N>(delta, page.as_mut_ptr()) },
        }
    }

    /// [`decode_at`](crate::decode_at) on this path.
    ///
    /// # Safety
    ///
    /// As for [`decode_at`](crate::decode_at).
    pub unsafe fn decode_at(self, delta: &[u8], page: *mut u8) -> Result<(), DecodeError> {
        match self {
            // SAFETY: the caller's promise.
            Path::Scalar => unsafe { decode::decode_at::<PAGE_SIZE>(delta, page) },
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
        match self {
            // SAFETY: the caller's promise.
            Path::Scalar => unsafe { live::is_zero(live, len) },
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn check_room<const N: usize>(out: &[u8]) {
    assert!(out.len() >= N, "the output has room for {} bytes, less than a page of {N}", out.len());
}
