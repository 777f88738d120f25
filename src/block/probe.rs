//! What the first sector of a file looks like. A guest writes that sector, so a format that was
//! guessed from it is never believed over `raw`, and a write that would make the guess come out
//! differently is refused, as in QEMU.

/// Bytes that are looked at.
pub(crate) const BYTES: usize = 512;

/// Bytes at an offset, and the format that has them.
const MAGIC: [(usize, &[u8], &str); 13] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (64, &0xbeda_107fu32.to_le_bytes(), "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format", "cloop"),
];

/// The format other than raw that `start`, the first bytes of a file, shows.
pub(crate) fn format(start: &[u8]) -> Option<&'static str> {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|from| from.starts_with(magic));
    MAGIC.iter().find(|(at, magic, _)| has(*at, magic)).map(|(.., format)| *format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(format(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(format(&[0; BYTES]), None);
        assert_eq!(format(b""), None);
        let mut vdi = [0; BYTES];
        vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(format(&vdi), Some("vdi"));
    }
}
