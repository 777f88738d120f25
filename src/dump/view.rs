//! Guest memory as a dump sees it.

use super::ranges::Range;
use crate::pages::Extent;

/// Guest memory could not be read at this guest-physical address.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read guest memory at {address:#x}: {reason}")]
pub struct ReadFailed {
    pub address: u64,
    pub reason: String,
}

/// Guest-physical memory that holds still while it is dumped, or a snapshot that does.
pub trait GuestView: Sync {
    /// The ranges that hold memory; their order does not matter.
    fn ranges(&self) -> &[Range];

    /// Fills `out` from guest-physical `address`. The whole of it lies within one or several
    /// touching ranges.
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), ReadFailed>;

    /// Fails if what was read so far need not be the guest's memory. Asked once all is read, before a
    /// dump counts as whole.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// What to read next, if it matters: whole pages that the view would like to be rid of. Asked
    /// between chunks.
    fn urgent(&self) -> Option<Range> {
        None
    }

    /// The bytes of `range`, and of every page that it touches, were read and will not be asked for
    /// again.
    fn release(&self, range: Range) {
        let _ = range;
    }

    /// Is there anything at `address`? The answer covers at most `len` bytes.
    fn extent(&self, address: u64, len: u64) -> Extent {
        let _ = address;
        Extent::Data(len)
    }
}

/// Memory in a few byte slices: migration files turned into dumps, and tests.
pub struct Slices<'a> {
    ranges: Vec<Range>,
    bytes: Vec<&'a [u8]>,
}

impl<'a> Slices<'a> {
    /// Each slice with its guest-physical address. They must not overlap.
    pub fn new(parts: impl IntoIterator<Item = (u64, &'a [u8])>) -> Slices<'a> {
        let mut parts: Vec<_> = parts.into_iter().collect();
        parts.sort_by_key(|(start, _)| *start);
        let ranges =
            parts.iter().map(|(start, bytes)| Range { start: *start, len: bytes.len() as u64 });
        Slices { ranges: ranges.collect(), bytes: parts.iter().map(|(_, bytes)| *bytes).collect() }
    }
}

impl GuestView for Slices<'_> {
    fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), ReadFailed> {
        let mut done = 0;
        while done < out.len() {
            let at = address + done as u64;
            let slice = self.ranges.partition_point(|range| range.end() <= at);
            let found = self.ranges.get(slice).filter(|range| range.start <= at);
            let Some(range) = found else {
                return Err(ReadFailed { address: at, reason: "no memory there".into() });
            };
            let from = &self.bytes[slice][(at - range.start) as usize..];
            let count = from.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }
}
