//! What a guest is told of its machine in firmware's place.

use std::path::PathBuf;

/// Who is named in ACPI tables as their maker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oem {
    /// At most 6 bytes.
    pub id: String,
    /// At most 8 bytes.
    pub table_id: String,
}

impl Default for Oem {
    /// As in QEMU.
    fn default() -> Oem {
        Oem { id: "BOCHS ".into(), table_id: "BXPC    ".into() }
    }
}

impl Oem {
    /// Whose program made the tables; as in QEMU.
    pub(crate) const CREATOR: &[u8; 4] = b"BXPC";

    pub(crate) fn id(&self) -> [u8; 6] {
        padded(&self.id)
    }

    pub(crate) fn table_id(&self) -> [u8; 8] {
        padded(&self.table_id)
    }
}

/// With zeros behind it.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = text.bytes();
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
}

/// A file in fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    /// At most 55 bytes.
    pub name: String,
    pub content: FirmwareContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirmwareContent {
    Text(String),
    File(PathBuf),
}

/// SMBIOS type 1; what is empty is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemInformation {
    pub manufacturer: String,
    pub product: String,
    pub version: String,
    pub serial: String,
    pub sku: String,
    pub family: String,
    /// Else the machine's.
    pub system_uuid: Option<[u8; 16]>,
}
