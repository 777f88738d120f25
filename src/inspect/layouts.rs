//! Where device payloads end, also of devices that are not ours: by the description at the end of
//! the stream, or by looking for the footer.

use crate::machine::load::{Known, section_kind};
use crate::stream::{Error, Extent, Layouts, PAYLOAD_BYTES_MAX, Problem, SectionHeader};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of the end of a file is searched for a description.
const TAIL_BYTES: u64 = 4 << 20;

/// Our layouts first, then the stream's own description, then the footer.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnyLayout {
    described: HashMap<(String, u32), usize>,
}

impl AnyLayout {
    /// Finds the description at the end of `file`, if there is one.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let start = bytes.saturating_sub(TAIL_BYTES);
        let mut tail = vec![0; (bytes - start) as usize];
        file.read_exact_at(&mut tail, start)?;
        Ok(Self::of_tail(&tail))
    }

    fn of_tail(tail: &[u8]) -> Self {
        let mut found = Self::default();
        let starts =
            tail.windows(2).enumerate().rev().filter(|(_, two)| *two == b"{\"").map(|(at, _)| at);
        let length = |at: usize| tail[at - 4..at].try_into().map(u32::from_be_bytes).unwrap_or(0);
        let Some(start) = starts
            .filter(|at| *at > 5 && tail[at - 5] == 6)
            .find(|at| length(*at) as usize == tail.len() - at)
        else {
            return found;
        };
        let Ok(json) = serde_json::from_slice::<Value>(&tail[start..]) else { return found };
        for device in json["devices"].as_array().into_iter().flatten() {
            let name = device["name"].as_str().unwrap_or_default().to_owned();
            let instance = device["instance_id"].as_u64().unwrap_or(0) as u32;
            if let Some(bytes) = described_bytes(device) {
                found.described.insert((name, instance), bytes);
            }
        }
        found
    }
}

/// Bytes of a struct: its fields and its subsections.
fn described_bytes(layout: &Value) -> Option<usize> {
    let mut bytes: usize = 0;
    for field in layout["fields"].as_array().into_iter().flatten() {
        let size = usize::try_from(field["size"].as_u64()?).ok()?;
        let count =
            field["array_len"].as_u64().map_or(Some(1), |count| usize::try_from(count).ok())?;
        bytes = bytes.checked_add(size.checked_mul(count)?)?;
    }
    for subsection in layout["subsections"].as_array().into_iter().flatten() {
        let head = 6 + subsection["vmsd_name"].as_str()?.len();
        bytes = bytes.checked_add(head)?.checked_add(described_bytes(subsection)?)?;
    }
    Some(bytes)
}

impl Layouts for AnyLayout {
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, Error> {
        let ours = section_kind(&section.name)
            .map(|(_, ours)| (ours.version(), Known.extent(section, input, offset)));
        if let Some((_, Ok(extent))) = ours {
            return Ok(extent);
        }
        if let Some(bytes) = self.described.get(&(section.name.clone(), section.instance)) {
            return Ok(Extent::Bytes(*bytes));
        }
        match ours {
            // Damage in a section whose form we know is worth its message.
            Some((version, Err(error))) if section.version == version => Err(error),
            _ => by_footer(section, input, offset),
        }
    }
}

/// The payload ends where its footer stands, if something follows that may follow one.
fn by_footer(section: &SectionHeader, input: &[u8], offset: u64) -> Result<Extent, Error> {
    let [a, b, c, d] = section.id.to_be_bytes();
    let footer = [0x7e, a, b, c, d];
    let found = input.windows(6).position(|six| six[..5] == footer && matches!(six[5], 0..=4 | 8));
    match found {
        Some(bytes) => Ok(Extent::Bytes(bytes)),
        None if input.len() < PAYLOAD_BYTES_MAX => {
            Ok(Extent::Need((input.len() + 4096).min(PAYLOAD_BYTES_MAX)))
        }
        None => {
            let problem = Problem::Says("unknown section, and no footer follows".into());
            Err(Error::new(format!("section {section}"), "payload", offset, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str) -> SectionHeader {
        SectionHeader { id: 7, name: name.into(), instance: 0, version: 1 }
    }

    #[test]
    fn unknown_sections_end_by_description_or_footer() {
        let json = br#"{"devices": [{"name": "hpet", "instance_id": 0, "fields": [{"name": "a", "size": 4,
            "array_len": 3}], "subsections": [{"vmsd_name": "hpet/x", "fields": [{"name": "b", "size": 1}]}]}]}"#;
        let mut tail = b"....\x06".to_vec();
        tail.extend_from_slice(&(json.len() as u32).to_be_bytes());
        tail.extend_from_slice(json);
        let mut layout = AnyLayout::of_tail(&tail);
        assert_eq!(layout.extent(&header("hpet"), &[], 0), Ok(Extent::Bytes(12 + 12 + 1)));
        let payload = b"payload\x7e\0\0\0\x07\x04";
        assert_eq!(layout.extent(&header("vga"), payload, 0), Ok(Extent::Bytes(7)));
        assert_eq!(layout.extent(&header("vga"), &payload[..9], 0), Ok(Extent::Need(9 + 4096)));
    }
}
