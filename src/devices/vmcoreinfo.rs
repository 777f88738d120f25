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

use super::fw_cfg::Writable;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file's name in fw_cfg.
pub const FILE: &str = "etc/vmcoreinfo";
const FORMAT_NONE: u16 = 0;
const FORMAT_ELF: u16 = 1;
const BYTES: usize = 16;

/// What a migration carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmCoreInfoState {
    /// The guest has said where its note is.
    pub present: bool,
    pub host_format: u16,
    pub guest_format: u16,
    pub size: u32,
    pub paddr: u64,
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
pub struct VmCoreInfo(Mutex<VmCoreInfoState>);

impl VmCoreInfo {
    pub fn reset(&self) {
        self.set_state(VmCoreInfoState::default());
    }

    pub fn state(&self) -> VmCoreInfoState {
        *self.lock()
    }

    pub fn set_state(&self, state: VmCoreInfoState) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, VmCoreInfoState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        device.reset();
        assert_eq!(device.state(), VmCoreInfoState::default());
    }
}
