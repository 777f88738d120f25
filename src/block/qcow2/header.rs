//! The header of a qcow2 image: what it says is checked before memory or time is spent on it.
//!
//! All numbers are big-endian. What QEMU refuses is refused in its words; what is not built yet, by
//! name.

use crate::block::ring::Aligned;
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const MAGIC: &[u8] = b"QFI\xfb";
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// As QEMU bounds them: bytes of the first level's table, of the refcount table, of a name.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNTS_BYTES_MAX: u64 = 8 << 20;
const NAME_BYTES_MAX: usize = 1023;
/// Refcount blocks for clusters that could not be written: a block comes before what it counts.
const BLOCKS_BEHIND_MAX: usize = 4;

/// Bits of the features that a reader must know.
mod incompatible {
    /// Refcounts may be lower than what refers to a cluster.
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}
const INCOMPATIBLE_AT: u64 = 72;
/// The byte of the dirty bit: the last of a number with the highest byte first.
const DIRTY_AT: u64 = INCOMPATIBLE_AT + 7;
const LAZY_REFCOUNTS: u64 = 1;
/// Of those that a writer who does not know them takes away.
const BITMAPS: u64 = 1;

mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
}

/// What is said of the image below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// As the guest sees it.
    pub bytes: u64,
    pub refcount_bits: u32,
    pub lazy_refcounts: bool,
    pub backing: Option<Backing>,
    /// Somebody has it open for writing, or ended without closing it.
    pub is_dirty: bool,
    has_bitmaps: bool,
    refcounts_at: u64,
    refcounts_bytes: u64,
}

/// Why an image is none, or none that is built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("Image is not in qcow2 format")]
    NoMagic,
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterBits(u32),
    #[error("{0}")]
    Said(&'static str),
    #[error("Unsupported qcow2 feature(s): Unknown incompatible feature: {0:x}")]
    Unknown(u64),
    #[error("{}", crate::io::reason(.0))]
    Io(#[from] io::Error),
}

/// As many bytes as are there.
pub(in crate::block) fn read_up_to(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < to.len() {
        match file.read_at(&mut to[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
}

impl Header {
    /// Reads and checks the first cluster, which `file` gives without `O_DIRECT`.
    pub(in crate::block) fn read(file: &File) -> Result<Header, Why> {
        let mut start = vec![0; V3_BYTES];
        let filled = read_up_to(file, &mut start, 0)?;
        start.truncate(filled);
        if let Some(bits) = Bytes(&start).word(20).filter(|bits| CLUSTER_BITS.contains(bits)) {
            start.resize(1 << bits, 0);
            let filled = read_up_to(file, &mut start, 0)?;
            start.truncate(filled);
        }
        Header::parse(&start)
    }

    /// What `start`, the first cluster, says.
    pub(crate) fn parse(start: &[u8]) -> Result<Header, Why> {
        const SHORT: Why = Why::Said("qcow2 header too short");
        let from = Bytes(start);
        if !start.starts_with(MAGIC) {
            return Err(Why::NoMagic);
        }
        let word = |at| from.word(at).ok_or(SHORT);
        let long = |at| from.long(at).ok_or(SHORT);
        let version = word(4)?;
        if !(2..=3).contains(&version) {
            return Err(Why::Version(version));
        }
        let cluster_bits = word(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Why::ClusterBits(cluster_bits));
        }
        let cluster = 1u64 << cluster_bits;
        if start.len() < V2_BYTES {
            return Err(SHORT);
        }
        let is_new = version >= 3;
        let v3 = |at: usize| if is_new { long(at) } else { Ok(0) };
        let (needed, allowed, dropped) = (v3(72)?, v3(80)?, v3(88)?);
        let refcount_order = if is_new { word(96)? } else { 4 };
        let header_bytes = if is_new { word(100)? as usize } else { V2_BYTES };
        if is_new && header_bytes < V3_BYTES {
            return Err(SHORT);
        }
        if header_bytes as u64 > cluster {
            return Err(Why::Said("qcow2 header exceeds cluster size"));
        }
        if word(32)? != 0 {
            return Err(Why::Said(
                "encrypted images are not built; qemu-img convert makes one that is not",
            ));
        }
        let bit = |bit| needed & bit != 0;
        let known = incompatible::DIRTY
            | incompatible::CORRUPT
            | incompatible::DATA_FILE
            | incompatible::COMPRESSION
            | incompatible::EXTENDED_L2;
        let refused = [
            (incompatible::CORRUPT, "Image is corrupt; qemu-img check -r all may repair it"),
            (
                incompatible::DATA_FILE,
                "external data files are not built; qemu-img convert makes one file of both",
            ),
            (
                incompatible::COMPRESSION,
                "the compression type zstd is not built; qemu-img convert -o compression_type=zlib",
            ),
            (
                incompatible::EXTENDED_L2,
                "extended L2 entries are not built; qemu-img convert -o extended_l2=off",
            ),
        ];
        if needed & !known != 0 {
            return Err(Why::Unknown(needed & !known));
        }
        if let Some((_, why)) = refused.iter().find(|(feature, _)| bit(*feature)) {
            return Err(Why::Said(why));
        }
        if refcount_order > 6 {
            return Err(Why::Said("Reference count entry width too large; may not exceed 64 bits"));
        }
        let bytes = long(24)?;
        let (l1_entries, l1_at) = (u64::from(word(36)?), long(40)?);
        if l1_entries * 8 > L1_BYTES_MAX {
            return Err(Why::Said("Active L1 table too large"));
        }
        let of_l2 = 1u64 << (2 * cluster_bits - 3);
        if bytes.div_ceil(of_l2) > l1_entries {
            return Err(Why::Said("L1 table is too small"));
        }
        let inside = |at: u64, bytes: u64| {
            at.is_multiple_of(cluster) && at.checked_add(bytes).is_some_and(|end| end <= 1 << 56)
        };
        if !inside(l1_at, l1_entries * 8) || (l1_entries > 0 && l1_at == 0) {
            return Err(Why::Said("Active L1 table offset invalid"));
        }
        let (refcounts_at, refcounts_bytes) = (long(48)?, u64::from(word(56)?) * cluster);
        if refcounts_bytes == 0 {
            return Err(Why::Said("Image does not contain a reference count table"));
        }
        if refcounts_bytes > REFCOUNTS_BYTES_MAX {
            return Err(Why::Said("Reference count table too large"));
        }
        if !inside(refcounts_at, refcounts_bytes) || refcounts_at == 0 {
            return Err(Why::Said("Reference count table offset invalid"));
        }
        let (name_at, name_bytes) = (long(8)?, word(16)? as usize);
        let backing = match name_at {
            0 => None,
            _ => Some(Backing {
                name: name(start, cluster, name_at, name_bytes)?,
                format: backing_format(&from, header_bytes, name_at)?,
            }),
        };
        Ok(Header {
            version,
            cluster_bits,
            bytes,
            refcount_bits: 1 << refcount_order,
            lazy_refcounts: allowed & LAZY_REFCOUNTS != 0,
            backing,
            is_dirty: bit(incompatible::DIRTY),
            has_bitmaps: dropped & BITMAPS != 0,
            refcounts_at,
            refcounts_bytes,
        })
    }

    /// What stays as long as it is one image.
    pub(in crate::block) fn shape(&self) -> (u32, u32, Option<&Backing>) {
        (self.version, self.cluster_bits, self.backing.as_ref())
    }

    /// The disk's length, in whole sectors.
    pub(in crate::block) fn whole_bytes(&self) -> u64 {
        self.bytes - self.bytes % 512
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Why it cannot be written, where it could be read.
    pub(in crate::block) fn refuses_writes(&self) -> Result<(), Why> {
        if self.version < 3 {
            return Err(Why::Said(
                "an image of version 2 is not written, for it cannot say that it was not closed; qemu-img amend -f \
                 qcow2 -o compat=1.1 makes it one of version 3, or write readonly=on (read-only=on)",
            ));
        }
        match self.has_bitmaps {
            true => Err(Why::Said(
                "its persistent bitmaps would be wrong after a write; qemu-img bitmap --remove takes them away",
            )),
            false => Ok(()),
        }
    }

    /// Why it cannot be used now, although it may be when whoever has it open has closed it.
    pub(in crate::block) fn refuses_use(&self) -> Result<(), Why> {
        match self.is_dirty {
            true => Err(Why::Said(
                "the image was not closed (its dirty bit is set); qemu-img check -r all repairs it",
            )),
            false => Ok(()),
        }
    }
}

/// Writes into the header of version 3 whether the image is open for writing. `alignment`: what
/// `file` takes, in bytes.
///
/// Whoever finds it open, and nobody who has it, repairs it first: tables reach the file in an order
/// that does not keep refcounts right at every moment.
pub(in crate::block) fn set_dirty(file: &File, alignment: u32, is_dirty: bool) -> io::Result<()> {
    let (at, bytes) = match alignment {
        ..=1 => (INCOMPATIBLE_AT, 8),
        // It is a power of two, and more than the place of the bit.
        more => (0, more.max(512) as usize),
    };
    let mut block = Aligned::new(bytes)?;
    let block = block.get_mut();
    let filled = read_up_to(file, block, at)?;
    if at + filled as u64 <= DIRTY_AT {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    put_dirty(block, at, is_dirty);
    file.write_all_at(block, at)
}

/// Whether the dirty bit is in `bytes` bytes at `at`.
pub(super) fn has_dirty_bit(at: u64, bytes: usize) -> bool {
    (at..at + bytes as u64).contains(&DIRTY_AT)
}

/// Changes the bit in `bytes`, which are at `at`, if it is there.
pub(super) fn put_dirty(bytes: &mut [u8], at: u64, is_dirty: bool) {
    let low = DIRTY_AT.checked_sub(at).and_then(|low| bytes.get_mut(low as usize));
    if let Some(low) = low {
        let bit = incompatible::DIRTY as u8;
        *low = if is_dirty { *low | bit } else { *low & !bit };
    }
}

fn name(start: &[u8], cluster: u64, at: u64, bytes: usize) -> Result<String, Why> {
    if bytes > NAME_BYTES_MAX || at.checked_add(bytes as u64).is_none_or(|end| end > cluster) {
        return Err(Why::Said("Backing file name too long"));
    }
    let name = start.get(at as usize..at as usize + bytes);
    let name = name.ok_or(Why::Said("Could not read backing file name"))?;
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() && !name.contains('\0') => Ok(name.into()),
        _ => Err(Why::Said("the backing file's name is no text")),
    }
}

/// Of the extensions, which end before the backing file's name.
fn backing_format(from: &Bytes<'_>, at: usize, end: u64) -> Result<Option<String>, Why> {
    const LONG: Why = Why::Said("Header extension too large");
    let (mut at, end, mut found) = (at as u64, end.min(from.0.len() as u64), None);
    while at + 8 <= end {
        let word = |at: u64| from.word(at as usize).ok_or(LONG);
        let (kind, bytes) = (word(at)?, u64::from(word(at + 4)?));
        at += 8;
        if kind == extension::END {
            break;
        }
        if bytes > end - at {
            return Err(LONG);
        }
        if kind == extension::BACKING_FORMAT {
            let text = &from.0[at as usize..(at + bytes) as usize];
            let text = std::str::from_utf8(text).ok().filter(|text| text.len() < 16);
            found = Some(text.ok_or(Why::Said("the backing file's format is no name"))?.into());
        }
        at += bytes.next_multiple_of(8);
    }
    Ok(found)
}

/// Looks whether each refcount block is there once, and next to none counts only what is behind the
/// end. Who looks for a free cluster reads each of them, and takes a step for each count: a table that
/// names one block a million times, or full blocks for an image that is not there, would keep it busy
/// for hours. So the steps are bounded by the image's length.
pub(in crate::block) fn refcounts_are_apart(file: &File, header: &Header) -> Result<(), Why> {
    let mut table = vec![0; header.refcounts_bytes as usize];
    let filled = read_up_to(file, &mut table, header.refcounts_at)?;
    let entries = table[..filled].chunks_exact(8);
    let entries = entries.map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()));
    let used: Vec<(usize, u64)> = entries.enumerate().filter(|(_, entry)| *entry != 0).collect();
    // Of a block device, too.
    let bytes = (&*file).seek(SeekFrom::End(0))?;
    let bytes_per_block =
        header.cluster() * (header.cluster() * 8 / u64::from(header.refcount_bits));
    let behind = |(place, _): &&(usize, u64)| {
        (*place as u64).checked_mul(bytes_per_block).is_none_or(|start| start >= bytes)
    };
    if used.iter().filter(behind).count() > BLOCKS_BEHIND_MAX {
        return Err(Why::Said(
            "its refcounts are about clusters far behind its end; qemu-img convert makes one without them",
        ));
    }
    let mut blocks: Vec<u64> = used.into_iter().map(|(_, block)| block).collect();
    blocks.sort_unstable();
    match blocks.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(Why::Said(
            "its refcount table names a block twice; qemu-img check -r all may repair it",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header of 1 MiB in clusters of 64 KiB, and a backing file.
    fn good() -> Vec<u8> {
        let mut start = vec![0; 65536];
        start[..4].copy_from_slice(MAGIC);
        let mut put = |at: usize, bytes: &[u8]| start[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &3u32.to_be_bytes());
        put(8, &0x200u64.to_be_bytes());
        put(16, &4u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 20).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &0x3_0000u64.to_be_bytes());
        put(48, &0x1_0000u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(104, &extension::BACKING_FORMAT.to_be_bytes());
        put(108, &3u32.to_be_bytes());
        put(112, b"raw");
        put(0x200, b"base");
        start
    }

    #[test]
    fn what_a_header_says_is_read_and_what_it_cannot_say_refused() {
        let header = Header::parse(&good()).unwrap();
        assert_eq!((header.bytes, header.cluster(), header.refcount_bits), (1 << 20, 65536, 16));
        let backing = Backing { name: "base".into(), format: Some("raw".into()) };
        assert_eq!(header.backing, Some(backing));
        let refused: [(usize, &[u8], &str); 16] = [
            (0, b"QFIX", "not in qcow2 format"),
            (4, &4u32.to_be_bytes(), "version 4"),
            (20, &22u32.to_be_bytes(), "cluster size"),
            (32, &2u32.to_be_bytes(), "encrypted"),
            (72, &2u64.to_be_bytes(), "corrupt"),
            (72, &4u64.to_be_bytes(), "external data files"),
            (72, &8u64.to_be_bytes(), "zstd"),
            (72, &16u64.to_be_bytes(), "extended L2"),
            (72, &32u64.to_be_bytes(), "feature: 20"),
            (96, &7u32.to_be_bytes(), "64 bits"),
            (36, &u32::MAX.to_be_bytes(), "L1 table too large"),
            (24, &u64::MAX.to_be_bytes(), "L1 table is too small"),
            (40, &0x3_0001u64.to_be_bytes(), "L1 table offset"),
            (56, &u32::MAX.to_be_bytes(), "count table too large"),
            (16, &u32::MAX.to_be_bytes(), "name too long"),
            (108, &u32::MAX.to_be_bytes(), "extension too large"),
        ];
        for (at, bytes, says) in refused {
            let mut bad = good();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            let said = Header::parse(&bad).unwrap_err().to_string();
            assert!(said.contains(says), "{at}: {said}");
        }
    }

    #[test]
    fn an_image_that_is_open_for_writing_says_so() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&good(), 0).unwrap();
        let clean = Header::read(&file).unwrap();
        assert!(clean.refuses_use().is_ok() && clean.refuses_writes().is_ok());
        for alignment in [1, 512, 4096] {
            set_dirty(&file, alignment, true).unwrap();
            let said = Header::read(&file).unwrap().refuses_use().unwrap_err().to_string();
            assert!(said.contains("dirty bit") && said.contains("qemu-img check -r all"), "{said}");
            set_dirty(&file, alignment, false).unwrap();
            assert_eq!(Header::read(&file).unwrap(), clean);
        }
        let mut old = good();
        old[4..8].copy_from_slice(&2u32.to_be_bytes());
        let said = Header::parse(&old).unwrap().refuses_writes().unwrap_err().to_string();
        assert!(said.contains("version 2") && said.contains("compat=1.1"), "{said}");
    }

    #[test]
    fn a_block_of_refcounts_is_there_once() {
        let file = tempfile::tempfile().unwrap();
        let header = Header::parse(&good()).unwrap();
        for (second, is_good) in [(0x3_0000u64, true), (0x2_0000, false)] {
            file.write_all_at(&0x2_0000u64.to_be_bytes(), 0x1_0000).unwrap();
            file.write_all_at(&second.to_be_bytes(), 0x1_0100).unwrap();
            assert_eq!(refcounts_are_apart(&file, &header).is_ok(), is_good);
        }
    }

    #[test]
    fn refcounts_do_not_go_far_behind_the_end() {
        let file = tempfile::tempfile().unwrap();
        let header = Header::parse(&good()).unwrap();
        let block_covers = 65536 * 32768;
        for (blocks, bytes, is_good) in
            [(5, 0x3_0000, true), (6, 0x3_0000, false), (6, block_covers + 1, true)]
        {
            file.set_len(bytes).unwrap();
            for place in 0..blocks {
                let block: u64 = (3 + place) << 16;
                file.write_all_at(&block.to_be_bytes(), 0x1_0000 + 8 * place).unwrap();
            }
            assert_eq!(refcounts_are_apart(&file, &header).is_ok(), is_good, "{blocks} {bytes}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(
            changes in proptest::collection::vec((0usize..640, any::<u8>()), 0..12),
            length in 0usize..700,
        ) {
            let mut start = good();
            for (at, byte) in changes {
                start[at] = byte;
            }
            let _ = Header::parse(&start);
            let _ = Header::parse(&start[..length]);
        }
    }
}
