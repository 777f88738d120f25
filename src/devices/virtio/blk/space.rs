//! The configuration space of a disk (virtio 1.2, 5.2.4), with QEMU's values.

use super::options::Wanted;

/// Of the guest's switch for its write cache.
pub(super) const WRITE_CACHE_AT: u64 = 32;

/// What QEMU guesses where nothing tells: 16 heads, 63 sectors a track.
const HEADS: u64 = 16;
const SECTORS: u64 = 63;
const CYLINDERS_MAX: u64 = 16383;

/// What changes while the disk is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// Of 512 bytes.
    pub sectors: u64,
    pub write_cache: bool,
}

pub(super) fn bytes(wanted: &Wanted, now: Now) -> Vec<u8> {
    let block = wanted.logical_block();
    let (cylinders, heads, track) = geometry(wanted, now.sectors);
    let seg_max = if wanted.seg_max_adjust { u32::from(wanted.queue_size) - 2 } else { 126 };
    let mut space = Vec::with_capacity(60);
    space.extend(now.sectors.to_le_bytes());
    space.extend(0u32.to_le_bytes());
    space.extend(seg_max.to_le_bytes());
    space.extend(cylinders.to_le_bytes());
    space.extend([heads, track]);
    space.extend(block.to_le_bytes());
    space.extend([(wanted.physical_block() / block).trailing_zeros() as u8, 0]);
    space.extend(((wanted.min_io / block) as u16).to_le_bytes());
    space.extend((wanted.opt_io / block).to_le_bytes());
    space.extend([now.write_cache.into(), 0]);
    space.extend(wanted.queues.to_le_bytes());
    // As long as the last feature that it has asks for.
    if wanted.discard || wanted.write_zeroes {
        let granularity = wanted.discard_granularity.filter(|_| wanted.report_granularity);
        let discard = [wanted.max_discard, 1, granularity.unwrap_or(block) >> 9];
        let discard = if wanted.discard { discard } else { [0; 3] };
        space.extend(discard.into_iter().flat_map(u32::to_le_bytes));
    }
    if wanted.write_zeroes {
        space.extend(wanted.max_zeroes.to_le_bytes());
        space.extend(1u32.to_le_bytes());
        space.push(1);
    }
    space
}

fn geometry(wanted: &Wanted, sectors: u64) -> (u16, u8, u8) {
    if let (cylinders @ 1.., heads @ 1.., track @ 1..) = wanted.geometry {
        return (cylinders as u16, heads as u8, track as u8);
    }
    let cylinders = (sectors / (HEADS * SECTORS)).clamp(2, CYLINDERS_MAX);
    let block_sectors = u64::from(wanted.logical_block() / 512);
    // Whole blocks, where the tracks would cut some.
    let cut = !(sectors / HEADS / SECTORS).is_multiple_of(block_sectors.max(1));
    let track = if cut { SECTORS & !(block_sectors - 1) } else { SECTORS };
    (cylinders as u16, HEADS as u8, track as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_is_qemus() {
        let now = Now { sectors: 16384, write_cache: true };
        let space = bytes(&Wanted::default(), now);
        assert_eq!(space.len(), 57);
        assert_eq!(space[..8], 16384u64.to_le_bytes());
        assert_eq!(space[12..16], 254u32.to_le_bytes());
        assert_eq!(space[16..20], [16, 0, 16, 63]);
        assert_eq!(space[20..24], 512u32.to_le_bytes());
        assert_eq!((space[32], space[34]), (1, 1));
        assert_eq!(space[36..40], 4_194_303u32.to_le_bytes());
        assert_eq!(space[44..48], 1u32.to_le_bytes());
        let short = Wanted { write_zeroes: false, ..Wanted::default() };
        assert_eq!(bytes(&short, now).len(), 48);
        let shortest = Wanted { write_zeroes: false, discard: false, ..Wanted::default() };
        assert_eq!(bytes(&shortest, now).len(), 36);
    }
}
