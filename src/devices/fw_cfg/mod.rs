//! fw_cfg, the interface by which firmware and kernels ask the VMM for items by key.
//!
//! | port | access | |
//! |---|---|---|
//! | 0x510 | 2 bytes, write | selects an item, by its key |
//! | 0x511 | 1 byte, read | the item's next byte; zero past its end |
//! | 0x514 | 4 bytes, big-endian | high half of the address of a DMA request; reading gives `QEMU CFG` |
//! | 0x518 | 4 bytes, big-endian | low half; writing it starts the request |
//!
//! (docs/specs/fw_cfg of QEMU.) The guest writes items by DMA only, and only those that are made
//! for it ([`Writable`]).

pub(super) mod items;
mod section;

pub(crate) use items::{Items, Writable};
pub(crate) use section::{FwCfgAcpi, FwCfgState};

use super::bus::Window;
use super::slots::Place;
use super::{
    Built, Device, DeviceRequest, Error, Kind, Loading, SectionKind, Sections, Slots, only_one,
};
use crate::arch::x86_64::acpi;
use crate::config::FirmwareContent;
use crate::memory::GuestRam;
use acpi_tables::aml;
use items::Item;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    type_name: "fw_cfg_io",
    sections: &[SectionKind::of::<FwCfgState>("firmware configuration interface", only_one)],
    build,
    ..Kind::NONE
};

/// First port, and how many.
const PORT: u64 = 0x510;
const PORTS: u64 = 12;

/// Other devices add their files when they are built.
fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    items::describe_machine(&mut slots.items(), slots.config, slots.vm.ram());
    for file in &slots.config.firmware_files {
        let content = match &file.content {
            FirmwareContent::Text(text) => text.clone().into_bytes(),
            FirmwareContent::File(path) => read(path)?,
        };
        slots.items().add_file(&file.name, content);
    }
    let device = Arc::new(FwCfg::new(slots.items.clone(), slots.vm.ram().clone()));
    slots.port_window(PORT, PORTS, device.clone())?;
    slots.describe(Place::FirmwareConfiguration, describe());
    Ok(vec![device])
}

/// A file's size has 32 bits in the directory; this is more than a guest reads byte by byte.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is in a file of the command line.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Host { what: format!("-fw_cfg file={}", path.display()), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    match content.len() as u64 <= FILE_BYTES_MAX {
        true => Ok(content),
        false => Err(failed(std::io::Error::other("256 MiB are the most that a file may have"))),
    }
}

/// How a kernel finds it that looks for devices through ACPI.
fn describe() -> Vec<u8> {
    let status = aml::Name::new("_STA".into(), &0x0bu8);
    let ports = aml::IO::new(PORT as u16, PORT as u16, 1, PORTS as u8);
    acpi::device("FWCF", &"QEMU0002", vec![&status], vec![&ports], vec![])
}

const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");
/// "Nothing selected", after reset.
const INVALID: u16 = 0xffff;

/// Control word of a DMA request.
const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

/// The device.
pub(crate) struct FwCfg {
    items: Arc<Mutex<Items>>,
    selection: Mutex<Selection>,
    ram: GuestRam,
}

/// What the guest is about to read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Selection {
    key: u16,
    /// Of the next byte of that item.
    offset: u32,
    /// High half of a DMA address written so far.
    dma_addr: u64,
}

impl Selection {
    /// After a reset. The item of key 0 is the signature.
    const NONE: Selection = Selection { key: 0, offset: 0, dma_addr: 0 };
}

impl FwCfg {
    pub(crate) fn new(items: Arc<Mutex<Items>>, ram: GuestRam) -> FwCfg {
        FwCfg { items, selection: Mutex::new(Selection::NONE), ram }
    }

    fn lock(&self) -> MutexGuard<'_, Selection> {
        self.selection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn items(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, state: &mut Selection, key: u16) {
        state.offset = 0;
        state.key = if self.items().by_key.contains_key(&key) { key } else { INVALID };
    }

    /// Calls `then` with the selected item from the current offset on.
    fn rest<T>(&self, state: &Selection, then: impl FnOnce(&[u8]) -> T) -> T {
        let items = self.items();
        let content = items.by_key.get(&state.key).map(Item::content).unwrap_or_default();
        then(content.get(state.offset as usize..).unwrap_or(&[]))
    }

    fn next_byte(&self, state: &mut Selection) -> u8 {
        let Some(byte) = self.rest(state, |rest| rest.first().copied()) else { return 0 };
        state.offset += 1;
        byte
    }

    /// Carries out the request at `gpa`: be32 control, be32 length, be64 address; the control word
    /// is overwritten with the outcome.
    fn dma(&self, state: &mut Selection, gpa: u64) {
        let mut request = [0; 16];
        if self.ram.read(gpa, &mut request).is_err() {
            return;
        }
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| request[at + i]));
        let (control, length) = (word(0), word(4));
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & DMA_SELECT != 0 {
            self.select(state, (control >> 16) as u16);
        }
        let done = match control & (DMA_READ | DMA_WRITE | DMA_SKIP) {
            0 => Ok(()),
            c if c & DMA_READ != 0 => self.dma_read(state, address, length),
            c if c & DMA_WRITE != 0 => self.dma_write(state, address, length),
            _ => {
                state.offset = state.offset.saturating_add(length);
                Ok(())
            }
        };
        let outcome = if done.is_ok() { 0 } else { DMA_ERROR };
        let _ = self.ram.write(gpa, &outcome.to_be_bytes());
    }

    /// Copies what is left of the item, then zeros.
    fn dma_read(&self, state: &mut Selection, address: u64, length: u32) -> Result<(), ()> {
        let have = self.rest(state, |rest| {
            let have = rest.len().min(length as usize);
            self.ram.write(address, &rest[..have]).map(|()| have).map_err(drop)
        })?;
        let mut at = address.checked_add(have as u64).ok_or(())?;
        let mut missing = length as usize - have;
        while missing > 0 {
            let zeros = missing.min(4096);
            self.ram.write(at, &[0; 4096][..zeros]).map_err(drop)?;
            at = at.checked_add(zeros as u64).ok_or(())?;
            missing -= zeros;
        }
        state.offset = state.offset.saturating_add(have as u32);
        Ok(())
    }

    /// Takes what the guest writes to the item from the current offset on; all of it must fit.
    fn dma_write(&self, state: &mut Selection, address: u64, length: u32) -> Result<(), ()> {
        if length as usize > self.rest(state, <[u8]>::len) {
            return Err(());
        }
        let items = self.items();
        let Some(Item::Writable(item)) = items.by_key.get(&state.key) else { return Err(()) };
        let mut data = vec![0; length as usize];
        self.ram.read(address, &mut data).map_err(drop)?;
        item.write(state.offset as usize, &data);
        state.offset += length;
        Ok(())
    }
}

impl Device for FwCfg {
    fn reset(&self) -> Result<(), Error> {
        *self.lock() = Selection::NONE;
        Ok(())
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        sections.push("fw_cfg", 0, section::of(&self.lock(), &self.items()));
        Ok(())
    }

    /// The items themselves were made anew here.
    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let brought = from.sections.get("fw_cfg", 0);
        *self.lock() = brought.map_or(Selection::NONE, section::selection);
        Ok(())
    }
}

impl Window for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (1, 1) => data[0] = self.next_byte(&mut self.lock()),
            (4.., n) => {
                let signature = DMA_SIGNATURE.to_be_bytes();
                let at = offset as usize - 4;
                data.fill(0);
                for (byte, s) in data.iter_mut().zip(signature.iter().skip(at).take(n)) {
                    *byte = *s;
                }
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let mut state = self.lock();
        match (offset, data) {
            (0, &[a, b]) => self.select(&mut state, u16::from_le_bytes([a, b])),
            (4, &[a, b, c, d]) => {
                state.dma_addr = u64::from(u32::from_be_bytes([a, b, c, d])) << 32
            }
            (8, &[a, b, c, d]) => {
                let gpa = state.dma_addr | u64::from(u32::from_be_bytes([a, b, c, d]));
                state.dma_addr = 0;
                self.dma(&mut state, gpa);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::items::key;
    use super::*;
    use crate::config::{Memory, MemoryBackend};

    #[derive(Default)]
    struct Slate(Mutex<[u8; 4]>);

    impl Writable for Slate {
        fn content(&self) -> Vec<u8> {
            self.0.lock().unwrap().to_vec()
        }

        fn write(&self, offset: usize, data: &[u8]) {
            self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn device() -> FwCfg {
        let backend = MemoryBackend::Memfd { share: true, seal: false, huge_pages: None };
        let block = "microvm.ram".into();
        let memory =
            Memory { bytes: 1 << 20, block, backend, prealloc: false, merge: false, dump: true };
        let mut items = Items::new();
        items.add_file("etc/e820", vec![7; 20]);
        items.add_file("bootorder", vec![]);
        items.add_writable_file("slate", Arc::new(Slate::default()));
        FwCfg::new(Arc::new(Mutex::new(items)), GuestRam::new(&memory).unwrap())
    }

    fn read_bytes(device: &FwCfg, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        for byte in &mut out {
            device.read(1, std::slice::from_mut(byte));
        }
        out
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let device = device();
        device.write(0, &key::SIGNATURE.to_le_bytes());
        assert_eq!(read_bytes(&device, 6), b"QEMU\0\0");
        device.write(0, &key::FILE_DIR.to_le_bytes());
        let dir = read_bytes(&device, 4 + 3 * 64);
        assert_eq!(dir[..4], 3u32.to_be_bytes());
        assert_eq!(&dir[12..22], b"bootorder\0");
        assert_eq!(dir[68..72], 20u32.to_be_bytes());
        device.write(0, &[dir[73], dir[72]]);
        assert_eq!(read_bytes(&device, 2), [7, 7]);
        assert_eq!(device.lock().offset, 2);
    }

    /// A DMA request of `length` bytes at 0x2000; the control word afterwards.
    fn dma(device: &FwCfg, key: u16, action: u32, length: u32) -> [u8; 4] {
        let mut request = Vec::new();
        request.extend((u32::from(key) << 16 | DMA_SELECT | action).to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(0x2000u64.to_be_bytes());
        device.ram.write(0x1000, &request).unwrap();
        device.write(4, &[0; 4]);
        device.write(8, &0x1000u32.to_be_bytes());
        let mut control = [0xff; 4];
        device.ram.read(0x1000, &mut control).unwrap();
        control
    }

    #[test]
    fn dma_copies_the_item_and_reports_success() {
        let device = device();
        device.ram.write(0x2000, &[9; 8]).unwrap();
        assert_eq!(dma(&device, key::SIGNATURE, DMA_READ, 6), [0; 4]);
        let mut data = [0; 8];
        device.ram.read(0x2000, &mut data).unwrap();
        assert_eq!(&data, b"QEMU\0\0\x09\x09");
    }

    #[test]
    fn dma_writes_what_is_writable_and_fits() {
        let device = device();
        let slate = key::FILE_FIRST + 2;
        device.ram.write(0x2000, b"chalk").unwrap();
        let refused = DMA_ERROR.to_be_bytes();
        assert_eq!(dma(&device, slate, DMA_WRITE, 5), refused);
        assert_eq!(dma(&device, key::SIGNATURE, DMA_WRITE, 4), refused);
        device.write(0, &slate.to_le_bytes());
        assert_eq!(read_bytes(&device, 4), [0; 4]);
        assert_eq!(dma(&device, slate, DMA_WRITE, 4), [0; 4]);
        device.write(0, &slate.to_le_bytes());
        assert_eq!(read_bytes(&device, 5), b"chal\0");
    }

    #[test]
    fn dma_outside_ram_is_an_error() {
        let device = device();
        let mut request = (DMA_READ).to_be_bytes().to_vec();
        request.extend(4u32.to_be_bytes());
        request.extend(u64::MAX.to_be_bytes());
        device.ram.write(0x1000, &request).unwrap();
        device.write(8, &0x1000u32.to_be_bytes());
        let mut control = [0; 4];
        device.ram.read(0x1000, &mut control).unwrap();
        assert_eq!(control, 1u32.to_be_bytes());
    }

    #[test]
    fn the_dma_port_shows_its_signature() {
        let mut data = [0; 4];
        device().read(4, &mut data);
        assert_eq!(&data, b"QEMU");
    }
}
