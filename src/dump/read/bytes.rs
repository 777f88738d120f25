//! Numbers, pieces and notes out of a file that may end anywhere.

/// What a file lacks to be what it says it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at offset {offset:#x}: {what}")]
pub struct BadFile {
    pub offset: u64,
    pub what: &'static str,
}

/// A note: name without its NUL, type, descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub name: String,
    pub kind: u32,
    pub desc: Vec<u8>,
}

/// `len` bytes at `offset`.
pub(super) fn slice(file: &[u8], offset: u64, len: u64) -> Result<&[u8], BadFile> {
    let end = offset.checked_add(len).filter(|end| *end <= file.len() as u64);
    let end = end.ok_or(BadFile { offset, what: "beyond the end of the file" })?;
    Ok(&file[offset as usize..end as usize])
}

/// A little-endian number of `N` bytes at `offset`.
pub(super) fn number<const N: usize>(file: &[u8], offset: u64) -> Result<u64, BadFile> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(slice(file, offset, N as u64)?);
    Ok(u64::from_le_bytes(wide))
}

/// The notes in the bytes of a `PT_NOTE` segment.
pub fn notes(bytes: &[u8]) -> Result<Vec<Note>, BadFile> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() as u64 {
        let name_len = number::<4>(bytes, at)?;
        let desc_len = number::<4>(bytes, at + 4)?;
        let kind = number::<4>(bytes, at + 8)? as u32;
        let name = slice(bytes, at + 12, name_len)?;
        let desc_at = at + 12 + name_len.next_multiple_of(4);
        let desc = slice(bytes, desc_at, desc_len)?.to_vec();
        at = desc_at + desc_len.next_multiple_of(4);
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
        out.push(Note { name, kind, desc });
    }
    Ok(out)
}
