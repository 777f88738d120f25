//! Guest memory copied, by guest address.

use crate::memory::{Error, GuestRam, PAGE_BYTES};

/// Pieces in which holes are asked for.
const PIECE_BYTES: u64 = 1 << 20;

/// Copies guest memory at `gpa` into `out` and makes none: holes are zeros, and stay holes. What is
/// no RAM is zeros, too.
///
/// # Errors
/// Where the memory is gone, as with a file that was cut short.
pub(crate) fn read(ram: &GuestRam, gpa: u64, out: &mut [u8]) -> Result<(), Error> {
    out.fill(0);
    let main = ram.main();
    let end = u128::from(gpa) + out.len() as u128;
    for region in main.regions() {
        let (low, high) = (gpa.max(region.gpa), end.min(u128::from(region.gpa + region.bytes)));
        let mut at = u128::from(low);
        let mut known = 0..0;
        while at < high {
            let piece_end = (at as u64 / PIECE_BYTES + 1) * PIECE_BYTES;
            let piece_end = u128::from(piece_end).min(high);
            let offset = |gpa: u128| region.offset + (gpa as u64 - region.gpa);
            let wanted = offset(at)..offset(piece_end - 1) + 1;
            let pages =
                wanted.start / PAGE_BYTES * PAGE_BYTES..wanted.end.next_multiple_of(PAGE_BYTES);
            let mut result = Ok(());
            main.data_in(pages, &mut known, |data| {
                let part = data.start.max(wanted.start)..data.end.min(wanted.end);
                if result.is_ok() && !part.is_empty() {
                    let part_gpa = region.gpa + (part.start - region.offset);
                    let to = (part_gpa - gpa) as usize;
                    let bytes = (part.end - part.start) as usize;
                    result = ram.read(part_gpa, &mut out[to..to + bytes]);
                }
            })?;
            result?;
            at = piece_end;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::for_tests;

    #[test]
    fn what_is_there_is_copied_and_what_is_not_stays_so() {
        let ram = for_tests((3 << 30) + (4 << 20));
        ram.main().small_pages();
        ram.write(0x5ffe, b"godwit").unwrap();
        ram.write((4 << 30) + 8, b"high").unwrap();
        let mut out = vec![7; 5 << 20];
        read(&ram, 0x5000, &mut out).unwrap();
        assert_eq!(&out[0xffe..0x1004], b"godwit");
        assert_eq!(out.iter().filter(|byte| **byte != 0).count(), 6);
        for (start, found) in [((4 << 30) - 4, 12), ((4 << 30) + 8, 0), ((3 << 30) - 2, 99)] {
            let mut out = [7; 16];
            read(&ram, start, &mut out).unwrap();
            let expected: Vec<u8> = (0..16)
                .map(|at: usize| *b"high".get(at.wrapping_sub(found)).unwrap_or(&0))
                .collect();
            assert_eq!(out[..], expected[..], "{start:#x}");
        }
        let mut out = [7; 64];
        read(&ram, u64::MAX - 10, &mut out).unwrap();
        assert_eq!(out, [0; 64]);
        assert_eq!(ram.main().data_pages().unwrap().count(), 3);
    }
}
