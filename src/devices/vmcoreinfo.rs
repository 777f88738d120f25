//! `-device vmcoreinfo`: the fw_cfg file `etc/vmcoreinfo`, in which a guest says where its crash
//! note lies.
//!
//! | offset | bytes | field, little-endian |
//! |---|---|---|
//! | 0 | 2 | host format: what this VMM can take, 1 (an ELF note) |
//! | 2 | 2 | guest format: what the guest gave, 0 (nothing) or 1 |
//! | 4 | 4 | bytes of the note |
//! | 8 | 8 | its guest-physical address |
//!
//! (docs/specs/vmcoreinfo of QEMU.) The guest writes all 16 bytes at once; whatever else it writes
//! takes back what it said before.

use super::device::Device;
use super::error::Error;
use super::fw_cfg::Writable;
use super::kind::{Kind, Pluggable, SectionKind, lacks, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::args::Keys;
use crate::vmstate::{Layout, Visitor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    sections: &[SectionKind::of::<VmCoreInfoState>(
        "place of the guest's crash note",
        |config, instance| match config.has_device(DRIVER) {
            true => only_one(config, instance),
            false => Some(lacks("-device vmcoreinfo is missing")),
        },
    )],
    device: Some(Pluggable {
        driver: DRIVER,
        help: "lets the guest say where its crash note is (fw_cfg file etc/vmcoreinfo), for dumps",
        bus: "",
        read: |option, pairs| Ok(Arc::new(KEYS.fill(option, pairs)?)),
        properties: || KEYS.parameters(),
        refuses: |others| {
            let one = others.iter().any(|device| device.driver == DRIVER);
            one.then_some("there can be one vmcoreinfo device only")
        },
    }),
    build,
    ..Kind::NONE
};

const DRIVER: &str = "vmcoreinfo";
/// It has no properties.
const KEYS: Keys<Wanted> = Keys { owner: DRIVER, implied: None, table: &[] };

#[derive(Debug, Default, PartialEq)]
struct Wanted;

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !slots.config.has_device(DRIVER) {
        return Ok(Vec::new());
    }
    let device = Arc::new(VmCoreInfo::default());
    slots.items().add_writable_file(FILE, device.clone());
    Ok(vec![device])
}

/// The file's name in fw_cfg.
const FILE: &str = "etc/vmcoreinfo";
const FORMAT_NONE: u16 = 0;
const FORMAT_ELF: u16 = 1;
const BYTES: usize = 16;

/// What the guest said; the section of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmCoreInfoState {
    /// The guest has said where its note is.
    pub present: bool,
    pub host_format: u16,
    pub guest_format: u16,
    pub size: u32,
    pub paddr: u64,
}

impl Layout for VmCoreInfoState {
    const NAME: &'static str = "vmcoreinfo";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("has_vmcoreinfo", &mut self.present)?;
        v.value("vmcoreinfo.host_format", &mut self.host_format)?;
        v.value("vmcoreinfo.guest_format", &mut self.guest_format)?;
        v.value("vmcoreinfo.size", &mut self.size)?;
        v.value("vmcoreinfo.paddr", &mut self.paddr)
    }
}

impl Default for VmCoreInfoState {
    /// As after a reset.
    fn default() -> Self {
        VmCoreInfoState {
            present: false,
            host_format: FORMAT_ELF,
            guest_format: FORMAT_NONE,
            size: 0,
            paddr: 0,
        }
    }
}

impl VmCoreInfoState {
    fn bytes(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&self.host_format.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.guest_format.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..].copy_from_slice(&self.paddr.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BYTES], whole: bool) -> VmCoreInfoState {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let guest_format = half(2);
        VmCoreInfoState {
            present: whole && guest_format != FORMAT_NONE,
            host_format: half(0),
            guest_format,
            size: u32::from_le_bytes(std::array::from_fn(|i| bytes[4 + i])),
            paddr: u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i])),
        }
    }
}

/// The device.
#[derive(Default)]
pub(crate) struct VmCoreInfo(Mutex<VmCoreInfoState>);

impl VmCoreInfo {
    pub(crate) fn state(&self) -> VmCoreInfoState {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, VmCoreInfoState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for VmCoreInfo {
    fn reset(&self) -> Result<(), Error> {
        *self.lock() = VmCoreInfoState::default();
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        sections.push("vmcoreinfo", 0, self.state());
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        *self.lock() = from.sections.get("vmcoreinfo", 0).copied().unwrap_or_default();
        Ok(())
    }
}

impl Writable for VmCoreInfo {
    fn content(&self) -> Vec<u8> {
        self.lock().bytes().to_vec()
    }

    fn write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        let mut bytes = state.bytes();
        let Some(part) = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..data.len())) else {
            return;
        };
        part.copy_from_slice(data);
        *state = VmCoreInfoState::from_bytes(&bytes, data.len() == BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_sixteen_bytes_at_once_count() {
        let device = VmCoreInfo::default();
        assert_eq!(device.content(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let said = [1, 0, 1, 0, 0x20, 1, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];
        device.write(0, &said);
        let found = device.state();
        assert_eq!(
            (found.present, found.guest_format, found.size, found.paddr),
            (true, 1, 0x120, 0x1000)
        );
        assert_eq!(device.content(), said);
        device.write(8, &[0; 8]);
        assert!(!device.state().present);
        device.write(0, &[1, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!device.state().present, "format none takes it back");
        device.write(12, &[0; 8]);
        assert_eq!(device.state().size, 0x0909_0909, "past the end nothing is written");
        device.reset().unwrap();
        assert_eq!(device.state(), VmCoreInfoState::default());
    }
}
