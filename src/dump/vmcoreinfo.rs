//! VMCOREINFO: the note in which a Linux guest describes itself.
//!
//! The guest's `qemu_fw_cfg` driver writes its address to the fw_cfg file `etc/vmcoreinfo`. It is
//! an ordinary ELF note in guest memory; what it holds is text, one `KEY=VALUE` on a line.

use super::note::GuestNote;
use super::ranges::PAGE;
use super::view::{GuestView, ReadFailed};

/// The only format known: an ELF note.
const FORMAT_ELF: u16 = 1;
/// Header of an ELF note: three u32.
const HEADER_BYTES: u32 = 12;
/// QEMU's limit for a guest's note.
const NOTE_BYTES_MAX: u32 = 1 << 20;

/// What the guest wrote to `etc/vmcoreinfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmCoreInfo {
    pub guest_format: u16,
    pub size: u32,
    pub address: u64,
}

/// Why a guest's note was left out of its dump.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoteRefused {
    #[error("guest note format {0} is not an ELF note")]
    Format(u16),
    #[error("guest note of {0} bytes; 12 to {NOTE_BYTES_MAX} are possible")]
    Size(u32),
    #[error("guest note is not present: {0}")]
    Unreadable(#[from] ReadFailed),
    #[error(
        "guest note with a name of {name} and a descriptor of {desc} bytes does not fit its {size} bytes"
    )]
    Header { name: u32, desc: u32, size: u32 },
}

impl VmCoreInfo {
    /// The note in guest memory, checked to be whole.
    pub(super) fn read(self, view: &dyn GuestView) -> Result<GuestNote, NoteRefused> {
        if self.guest_format != FORMAT_ELF {
            return Err(NoteRefused::Format(self.guest_format));
        }
        if !(HEADER_BYTES..=NOTE_BYTES_MAX).contains(&self.size) {
            return Err(NoteRefused::Size(self.size));
        }
        let mut bytes = vec![0; self.size as usize];
        read_memory(view, self.address, &mut bytes)?;
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (name, desc) = (word(0), word(4));
        let padded = |len: u32| u64::from(len).next_multiple_of(4);
        let used = u64::from(HEADER_BYTES) + padded(name) + padded(desc);
        if used > u64::from(self.size) {
            return Err(NoteRefused::Header { name, desc, size: self.size });
        }
        bytes.truncate(used as usize);
        let start = HEADER_BYTES as usize + padded(name) as usize;
        Ok(GuestNote { bytes, desc: start..start + desc as usize })
    }
}

/// Reads from an address that the guest chose: it may lie anywhere.
fn read_memory(view: &dyn GuestView, address: u64, out: &mut [u8]) -> Result<(), ReadFailed> {
    let outside = || ReadFailed { address, reason: "no memory there".into() };
    let end = address.checked_add(out.len() as u64).ok_or_else(outside)?;
    let ranges = super::ranges::cut(view.ranges(), None);
    if !ranges.iter().any(|range| range.start <= address && end <= range.end()) {
        return Err(outside());
    }
    out.chunks_mut(PAGE)
        .zip((address..).step_by(PAGE))
        .try_for_each(|(part, at)| view.read(at, part))
}

/// The value of `key` in the text of a note.
pub(super) fn value<'t>(text: &'t [u8], key: &str) -> Option<&'t str> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| {
        line.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
    })?;
    std::str::from_utf8(line).ok()
}

/// Where the kernel's text was moved to, as kdump readers want it: Linux prints a signed decimal,
/// and a kernel placed below its link address has a negative one.
pub(super) fn phys_base(text: &[u8]) -> Option<i64> {
    value(text, "NUMBER(phys_base)")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::view::Slices;

    fn note(name: &[u8], desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [name.len() as u32, desc.len() as u32, 0] {
            out.extend(word.to_le_bytes());
        }
        for part in [name, desc] {
            out.extend_from_slice(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    fn read(at: VmCoreInfo, memory: &[u8]) -> Result<GuestNote, NoteRefused> {
        at.read(&Slices::new([(0x1000, memory)]))
    }

    #[test]
    fn a_whole_note_is_taken_with_its_text() {
        let memory = note(b"VMCOREINFO\0", b"A=1\nNUMBER(phys_base)=-721420288\n");
        let at = VmCoreInfo { guest_format: 1, size: memory.len() as u32, address: 0x1000 };
        let found = read(at, &memory).unwrap();
        assert_eq!(found.bytes, memory);
        let text = &found.bytes[found.desc];
        assert_eq!(value(text, "A"), Some("1"));
        assert_eq!(phys_base(text).map(|base| base as u64), Some(0xffff_ffff_d500_0000));
    }

    #[test]
    fn a_note_that_lies_about_itself_is_refused() {
        let memory = note(b"VMCOREINFO\0", b"text");
        let good = VmCoreInfo { guest_format: 1, size: memory.len() as u32, address: 0x1000 };
        let refused = |at: VmCoreInfo| read(at, &memory).unwrap_err().to_string();
        assert!(refused(VmCoreInfo { guest_format: 2, ..good }).contains("format 2"));
        assert!(refused(VmCoreInfo { size: 11, ..good }).contains("11 bytes"));
        assert!(refused(VmCoreInfo { size: u32::MAX, ..good }).contains("bytes"));
        assert!(refused(VmCoreInfo { size: good.size - 4, ..good }).contains("does not fit"));
        assert!(refused(VmCoreInfo { address: u64::MAX - 4, ..good }).contains("not present"));
        assert!(refused(VmCoreInfo { address: 0x1004, ..good }).contains("not present"));
        let endless = note(b"", b"")[..4].iter().chain(&[0xff; 8]).copied().collect::<Vec<_>>();
        let at = VmCoreInfo { size: 12, ..good };
        assert!(read(at, &endless).is_err());
    }
}
