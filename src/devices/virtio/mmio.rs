//! virtio-mmio transports.

use crate::devices::DeviceRequest;
use crate::devices::bus::Window;

/// Bytes of the register window of one transport.
pub const WINDOW_BYTES: u64 = 512;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION_LEGACY: u32 = 1;
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");

/// Transports without a device: a driver that probes one reads device id zero and leaves.
pub struct EmptyTransports;

impl Window for EmptyTransports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset % WINDOW_BYTES {
            0x0 => MAGIC,
            0x4 => VERSION_LEGACY,
            0xc => VENDOR,
            _ => 0,
        };
        data.fill(0);
        for (byte, v) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = v;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Option<DeviceRequest> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_transport_has_a_magic_and_no_device() {
        let read = |offset| {
            let mut data = [0; 4];
            EmptyTransports.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(0xe00), 0x7472_6976);
        assert_eq!(read(0xe04), 1);
        assert_eq!(read(0xe08), 0);
        assert_eq!(read(0xe70), 0);
    }
}
