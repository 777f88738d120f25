//! Applies a delta to a page, with exactly the rules of QEMU's decoder.
//!
//! Unsafe, because the page may be guest memory, to which no reference may be formed: it is written
//! through a pointer.
#![allow(unsafe_code)]

use crate::outcome::DecodeError;

/// Applies `delta` to the page of `N` bytes at `page`.
///
/// On error the page may be partly changed. Bytes outside it are neither read nor written.
///
/// # Safety
///
/// * `page` is valid for writes of `N` bytes.
/// * `delta` does not overlap those bytes.
pub(crate) unsafe fn decode_at<const N: usize>(
    delta: &[u8],
    page: *mut u8,
) -> Result<(), DecodeError> {
    if delta.len() > N {
        return Err(DecodeError::TooLong { delta_bytes: delta.len(), page_bytes: N });
    }
    let mut at = At { offset: 0, position: 0 };
    while at.offset < delta.len() {
        // SAFETY: the caller's promise.
        at = unsafe { record::<N>(delta, page, at)? };
    }
    Ok(())
}

/// How far the decoder has come.
#[derive(Clone, Copy)]
pub(crate) struct At {
    /// Bytes into the delta.
    pub(crate) offset: usize,
    /// Bytes into the page, at most its size.
    pub(crate) position: usize,
}

/// Applies the record at `at`, and returns where the next one is.
///
/// # Safety
///
/// As for [`decode_at`], and `at.position <= N`.
pub(crate) unsafe fn record<const N: usize>(
    delta: &[u8],
    page: *mut u8,
    at: At,
) -> Result<At, DecodeError> {
    let At { offset: gap_at, mut position } = at;
    let (gap, run_at) = length_at(delta, gap_at)?;
    if gap == 0 && gap_at != 0 {
        return Err(DecodeError::EmptyRun { offset: gap_at });
    }
    if gap > N - position {
        return Err(DecodeError::RunPastPage {
            offset: gap_at,
            run_bytes: gap,
            position,
            page_bytes: N,
        });
    }
    position += gap;
    let (run, bytes_at) = length_at(delta, run_at)?;
    if run == 0 {
        return Err(DecodeError::EmptyRun { offset: run_at });
    }
    if run > N - position {
        return Err(DecodeError::RunPastPage {
            offset: run_at,
            run_bytes: run,
            position,
            page_bytes: N,
        });
    }
    let Some(bytes) = delta.get(bytes_at..bytes_at + run) else {
        return Err(DecodeError::RunPastDelta {
            offset: run_at,
            run_bytes: run,
            delta_bytes: delta.len(),
        });
    };
    // SAFETY: `position + run <= N` was checked above, so the bytes written lie in the page, which
    // the caller says is writable and not part of `delta`; `bytes` is `run` bytes long.
    unsafe { page.add(position).copy_from_nonoverlapping(bytes.as_ptr(), run) };
    Ok(At { offset: bytes_at + run, position: position + run })
}

/// The run length at `offset`, and the offset of what follows it.
///
/// A length is asked for only where at least one more byte has to follow it, so a delta that ends
/// after one byte is refused even if that byte is a whole length.
fn length_at(delta: &[u8], offset: usize) -> Result<(usize, usize), DecodeError> {
    let Some(&[low, high]) =
        delta.get(offset..offset + 2).and_then(|bytes| bytes.first_chunk::<2>())
    else {
        return Err(DecodeError::Truncated { offset });
    };
    if low < 128 {
        Ok((low.into(), offset + 1))
    } else if high < 128 {
        Ok((usize::from(low & 0x7f) | usize::from(high) << 7, offset + 2))
    } else {
        Err(DecodeError::LengthPast14Bits { offset })
    }
}
