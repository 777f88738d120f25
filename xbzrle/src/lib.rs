//! XBZRLE page deltas: the format in which QEMU's live migration sends a memory page that changed
//! since it was last sent.
//!
//! A delta says, from left to right, how many bytes of the page stay as they are and which bytes
//! replace those that follow:
//!
//! ```text
//! delta   = { record }
//! record  = length of a gap, length of a run, the run's bytes
//! length  = one byte n below 128, or two bytes: (n & 0x7f) | 0x80, n >> 7
//! ```
//!
//! The first gap may be empty; every other gap and every run has at least one byte; equal bytes
//! after the last run are left out. The bytes are the new ones, not an exclusive or. A page without
//! a change is an empty delta.
//!
//! ```
//! let old = [0; xbzrle::PAGE_SIZE];
//! let mut new = old;
//! new[200..203].copy_from_slice(b"new");
//!
//! let mut out = [0; xbzrle::PAGE_SIZE];
//! let xbzrle::Outcome::Delta(len) = xbzrle::encode(&old, &new, &mut out) else { panic!() };
//! assert_eq!(&out[..len], b"\xc8\x01\x03new");
//!
//! let mut page = old;
//! xbzrle::decode(&out[..len], &mut page)?;
//! assert_eq!(page, new);
//! # Ok::<(), xbzrle::DecodeError>(())
//! ```
//!
//! # Two encoders
//!
//! [`encode`] compares two pages that stay as they are. [`encode_live`] compares a page that a
//! guest is writing with the copy in a page cache, and brings that copy up to date in the same
//! pass. Its invariant, whatever the guest does meanwhile: **after the call the cached page is
//! exactly what the receiver holds** once it has applied what the outcome says to send (nothing,
//! the delta, or the cached page whole).
//!
//! Both write the same bytes for the same change, on every [`Path`]: never more than the plain
//! encoder with maximal runs ([`plain::encode`], which is QEMU's), because short gaps are sent
//! along where that is cheaper. Every delta decodes with QEMU's decoder.
//!
//! # Cost
//!
//! No function allocates, makes a system call or copies a page aside. Unchanged pages take the time
//! of a `memcmp`.
#![allow(unsafe_code)] // declares the functions for live memory, whose promises are the caller's

mod ahead;
pub mod cache;
mod choice;
mod decode;
mod dispatch;
mod format;
mod live;
mod mask;
mod outcome;
pub mod parallel;
pub mod plain;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use ahead::{Ahead, Fetch};
pub use cache::{Cache, CacheError};
pub use choice::{Choice, PATH_VARIABLE, Reason};
pub use dispatch::Path;
pub use format::PAGE_BYTES_MAX;
pub use outcome::{DecodeError, Outcome};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Avx2, Avx512, Sse2};

/// Bytes of a page on x86-64. The functions below take other even sizes, up to [`PAGE_BYTES_MAX`].
pub const PAGE_SIZE: usize = 4096;

/// Writes the delta from `old` to `new` to the start of `out`.
///
/// A delta has at most `N` bytes, and at most as many as QEMU's encoder would write.
///
/// # Panics
///
/// If `out` is shorter than a page. A page of an odd size or of more than [`PAGE_BYTES_MAX`] bytes
/// is refused by the compiler.
pub fn encode<const N: usize>(old: &[u8; N], new: &[u8; N], out: &mut [u8]) -> Outcome {
    Path::best().encode(old, new, out)
}

/// Writes the delta from `cached` to the page at `live` to the start of `out`, and makes `cached`
/// equal to that page.
///
/// The page is read once, a vector at a time, while it may be written. What was read is what
/// `cached` holds afterwards, and the delta is made from `cached`. So `cached` is always what the
/// receiver will have, given that it had the old `cached` and that the outcome is obeyed:
///
/// * [`Unchanged`](Outcome::Unchanged): send nothing; `cached` was not written.
/// * [`Delta`](Outcome::Delta): send the delta.
/// * [`TooLong`](Outcome::TooLong): send `cached`, never the live page, which may be another one by
///   now.
///
/// Only parts of `cached` that differ are written.
///
/// # Panics
///
/// As [`encode`].
///
/// # Safety
///
/// * `live` is valid for reads of `N` bytes for the length of the call.
/// * Those bytes are no part of `cached` or `out`.
///
/// They may be written at any time by a guest, a device, or another thread (by atomic or volatile
/// stores). `live` needs no alignment; a page that is not aligned to 64 bytes is first copied aside,
/// which costs about 0.1 µs.
pub unsafe fn encode_live<const N: usize>(
    cached: &mut [u8; N],
    live: *const u8,
    out: &mut [u8],
) -> Outcome {
    // SAFETY: the caller's promise is the same.
    unsafe { Path::best().encode_live(cached, live, out) }
}

/// [`encode_live`], which also fetches the pages that will be encoded next. Use it where they are
/// known: it hides most of the time that memory takes.
///
/// # Panics
///
/// As [`encode`].
///
/// # Safety
///
/// As for [`encode_live`]; `ahead` may be anything.
pub unsafe fn encode_live_ahead<const N: usize>(
    cached: &mut [u8; N],
    live: *const u8,
    out: &mut [u8],
    ahead: Ahead,
) -> Outcome {
    // SAFETY: the caller's promise is the same.
    unsafe { Path::best().encode_live_ahead(cached, live, out, ahead) }
}

/// Copies the page at `live` into `to`, reading it once while it may be written.
///
/// # Safety
///
/// As for [`encode_live`], with `to` in place of `cached`.
pub unsafe fn copy_live<const N: usize>(to: &mut [u8; N], live: *const u8) {
    // SAFETY: the caller's promise is the same.
    unsafe { Path::widest().copy_live(to, live) }
}

/// Applies `delta` to `page`.
///
/// Takes what QEMU 10 takes: lengths need not be in their shortest form, and an empty delta leaves
/// the page as it is.
///
/// # Errors
///
/// See [`DecodeError`]. The page may then be partly changed.
pub fn decode<const N: usize>(delta: &[u8], page: &mut [u8; N]) -> Result<(), DecodeError> {
    Path::widest().decode(delta, page)
}

/// Applies `delta` to the page of [`PAGE_SIZE`] bytes at `page`, for memory to which no reference
/// may be formed.
///
/// # Errors
///
/// As [`decode()`].
///
/// # Safety
///
/// * `page` is valid for reads and writes of [`PAGE_SIZE`] bytes, and needs no alignment.
/// * `delta` is no part of it.
/// * Nothing else writes the page meanwhile: it would not be a data race only if it were a guest,
///   and then the guest's bytes may be lost.
pub unsafe fn decode_at(delta: &[u8], page: *mut u8) -> Result<(), DecodeError> {
    // SAFETY: the caller's promise is the same.
    unsafe { Path::widest().decode_at(delta, page) }
}

/// Whether all of `bytes` are zero; true for none.
pub fn is_zero(bytes: &[u8]) -> bool {
    Path::widest().is_zero(bytes)
}

/// Whether all `len` bytes at `live` are zero, each as it was when it was read.
///
/// # Safety
///
/// `live` is valid for reads of `len` bytes for the length of the call. They may be written
/// meanwhile.
pub unsafe fn is_zero_live(live: *const u8, len: usize) -> bool {
    // SAFETY: the caller's promise is the same.
    unsafe { Path::widest().is_zero_live(live, len) }
}
