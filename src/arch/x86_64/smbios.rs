//! SMBIOS tables (DMTF DSP0134, 3.0): who the machine is to a guest. Little-endian throughout.

use crate::config::SystemInformation;

const SYSTEM: u8 = 1;
const END: u8 = 127;
const SYSTEM_BYTES: u8 = 27;
const END_BYTES: u8 = 4;
const ANCHOR_BYTES: usize = 24;
/// Where the tables follow the anchor when both lie together.
const TABLES_AT: usize = 32;
const BY_POWER_SWITCH: u8 = 6;

/// The files of fw_cfg: the anchor holds the address of the tables, 0 before they lie anywhere.
#[derive(Debug)]
pub(crate) struct Tables {
    pub tables: Vec<u8>,
}

impl Tables {
    /// `uuid` is the machine's, for a system without one of its own.
    pub(crate) fn new(system: &SystemInformation, uuid: [u8; 16]) -> Tables {
        let texts = [
            &system.manufacturer,
            &system.product,
            &system.version,
            &system.serial,
            &system.sku,
            &system.family,
        ];
        // Strings are numbered from 1 in the order in which they follow the structure; 0 is none.
        let mut strings = Vec::new();
        let numbers = texts.map(|text| match text.is_empty() {
            true => 0,
            false => {
                strings.push(text.as_bytes());
                strings.len() as u8
            }
        });
        let [manufacturer, product, version, serial, sku, family] = numbers;
        let mut tables = vec![SYSTEM, SYSTEM_BYTES, 0, 1, manufacturer, product, version, serial];
        tables.extend(wire(system.system_uuid.unwrap_or(uuid)));
        tables.extend([BY_POWER_SWITCH, sku, family]);
        for text in &strings {
            tables.extend(*text);
            tables.push(0);
        }
        // Two zeros end the strings, of which there may be none.
        tables.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        tables.extend([END, END_BYTES, 1, 1, 0, 0]);
        Tables { tables }
    }

    /// The entry point, for tables that lie at `address`.
    pub(crate) fn anchor(&self, address: u64) -> Vec<u8> {
        let mut anchor = b"_SM3_".to_vec();
        // Sum, length, version 3.0.0, revision of the entry point, reserved.
        anchor.extend([0, ANCHOR_BYTES as u8, 3, 0, 0, 1, 0]);
        anchor.extend((self.tables.len() as u32).to_le_bytes());
        anchor.extend(address.to_le_bytes());
        anchor[5] = super::checksum(&anchor);
        anchor
    }

    /// Both, as they lie in memory from `address` on.
    pub(crate) fn place(&self, address: u64) -> Vec<u8> {
        let mut bytes = self.anchor(address + TABLES_AT as u64);
        bytes.resize(TABLES_AT, 0);
        bytes.extend(&self.tables);
        bytes
    }
}

/// The first three fields of a UUID are little-endian here.
fn wire(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_strings_are_where_a_reader_looks() {
        let system = SystemInformation {
            product: "Flock".into(),
            family: "Limosa".into(),
            ..SystemInformation::default()
        };
        let uuid = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let Tables { tables } = Tables::new(&system, uuid);
        assert_eq!(tables[..8], [1, 27, 0, 1, 0, 1, 0, 0]);
        assert_eq!(tables[8..16], [3, 2, 1, 0, 5, 4, 7, 6]);
        assert_eq!(tables[24..27], [6, 0, 2]);
        assert_eq!(&tables[27..], b"Flock\0Limosa\0\0\x7f\x04\x01\x01\0\0");
        let empty = Tables::new(&SystemInformation::default(), [0; 16]);
        assert_eq!(empty.tables[27..], [0, 0, 127, 4, 1, 1, 0, 0]);
    }

    #[test]
    fn the_anchor_sums_up_to_zero_and_leads_to_the_tables() {
        let tables = Tables::new(&SystemInformation::default(), [0; 16]);
        let bytes = tables.place(0xf_0000);
        assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(bytes[16..24], 0xf_0020u64.to_le_bytes());
        assert_eq!(bytes[32..], tables.tables);
    }
}
