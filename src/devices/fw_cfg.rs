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

use super::bus::Device;
use crate::memory::GuestRam;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// First port, and how many.
pub const PORT: u64 = 0x510;
pub const PORTS: u64 = 12;

/// Keys with a meaning of their own.
pub mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const NB_CPUS: u16 = 0x05;
    pub const CMDLINE_SIZE: u16 = 0x14;
    pub const CMDLINE_DATA: u16 = 0x15;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const FILE_DIR: u16 = 0x19;
    /// Named files are numbered from here.
    pub const FILE_FIRST: u16 = 0x20;
    pub const E820: u16 = 0x8003;
}

/// The item named by a file's name may be this long, with its NUL.
const FILE_NAME_BYTES: usize = 56;
const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");
/// Traditional interface and DMA.
const VERSION: u32 = 3;
/// "Nothing selected", after reset.
const INVALID: u16 = 0xffff;

/// Control word of a DMA request.
const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

/// What a migration carries of fw_cfg; the items themselves are made anew on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FwCfgState {
    /// Key selected.
    pub entry: u16,
    /// Offset of the next byte of that item.
    pub offset: u32,
    /// High half of a DMA address written so far.
    pub dma_addr: u64,
}

/// An item that the guest may write. Its length never changes.
pub trait Writable: Send + Sync {
    fn content(&self) -> Vec<u8>;

    /// Takes `data`, which the guest wrote at `offset`; it lies within the item.
    fn write(&self, offset: usize, data: &[u8]);
}

enum Item {
    Fixed(Vec<u8>),
    Writable(Arc<dyn Writable>),
}

impl Item {
    fn content(&self) -> Cow<'_, [u8]> {
        match self {
            Item::Fixed(data) => Cow::Borrowed(data),
            Item::Writable(item) => Cow::Owned(item.content()),
        }
    }
}

/// What there is to ask for.
#[derive(Default)]
pub struct Items {
    by_key: BTreeMap<u16, Item>,
    files: Vec<(String, u16, u32)>,
}

impl Items {
    /// The items every guest may expect: signature and version.
    pub fn new() -> Items {
        let mut items = Items::default();
        items.add(key::SIGNATURE, b"QEMU".to_vec());
        items.add(key::ID, VERSION.to_le_bytes().to_vec());
        items
    }

    pub fn add(&mut self, key: u16, data: Vec<u8>) {
        self.by_key.insert(key, Item::Fixed(data));
    }

    /// Adds a named file, under the next free key.
    ///
    /// # Panics
    /// If the name has 56 bytes or more.
    pub fn add_file(&mut self, name: &str, data: Vec<u8>) {
        self.add_named(name, Item::Fixed(data));
    }

    /// Adds a named file that the guest may write.
    ///
    /// # Panics
    /// As [`Items::add_file`].
    pub fn add_writable_file(&mut self, name: &str, item: Arc<dyn Writable>) {
        self.add_named(name, Item::Writable(item));
    }

    fn add_named(&mut self, name: &str, item: Item) {
        assert!(name.len() < FILE_NAME_BYTES, "{name}");
        let key = key::FILE_FIRST + self.files.len() as u16;
        self.files.push((name.into(), key, item.content().len() as u32));
        self.by_key.insert(key, item);
    }

    /// The directory: big-endian count, then size, key, reserved and name of each file, by name.
    fn directory(&self) -> Vec<u8> {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort();
        let mut dir = (files.len() as u32).to_be_bytes().to_vec();
        for (name, key, bytes) in files {
            dir.extend(bytes.to_be_bytes());
            dir.extend(key.to_be_bytes());
            dir.extend([0, 0]);
            let mut padded = [0; FILE_NAME_BYTES];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            dir.extend(padded);
        }
        dir
    }
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Item>,
    state: Mutex<FwCfgState>,
    ram: GuestRam,
}

impl FwCfg {
    pub fn new(mut items: Items, ram: GuestRam) -> FwCfg {
        items.add(key::FILE_DIR, items.directory());
        let device = FwCfg { items: items.by_key, state: Mutex::default(), ram };
        device.reset();
        device
    }

    pub fn reset(&self) {
        self.set_state(FwCfgState::default());
    }

    pub fn state(&self) -> FwCfgState {
        *self.lock()
    }

    pub fn set_state(&self, state: FwCfgState) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, FwCfgState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, state: &mut FwCfgState, key: u16) {
        state.offset = 0;
        state.entry = if self.items.contains_key(&key) { key } else { INVALID };
    }

    /// The selected item from the current offset on.
    fn rest(&self, state: &FwCfgState) -> Cow<'_, [u8]> {
        let from = state.offset as usize;
        match self.items.get(&state.entry).map(Item::content) {
            Some(Cow::Borrowed(data)) => Cow::Borrowed(data.get(from..).unwrap_or(&[])),
            Some(Cow::Owned(mut data)) => Cow::Owned(data.split_off(from.min(data.len()))),
            None => Cow::Borrowed(&[]),
        }
    }

    fn next_byte(&self, state: &mut FwCfgState) -> u8 {
        let Some(&byte) = self.rest(state).first() else { return 0 };
        state.offset += 1;
        byte
    }

    /// Carries out the request at `gpa`: be32 control, be32 length, be64 address; the control word
    /// is overwritten with the outcome.
    fn dma(&self, state: &mut FwCfgState, gpa: u64) {
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
    fn dma_read(&self, state: &mut FwCfgState, address: u64, length: u32) -> Result<(), ()> {
        let rest = self.rest(state);
        let have = rest.len().min(length as usize);
        self.ram.write(address, &rest[..have]).map_err(drop)?;
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
    fn dma_write(&self, state: &mut FwCfgState, address: u64, length: u32) -> Result<(), ()> {
        let Some(Item::Writable(item)) = self.items.get(&state.entry) else { return Err(()) };
        if length as usize > self.rest(state).len() {
            return Err(());
        }
        let mut data = vec![0; length as usize];
        self.ram.read(address, &mut data).map_err(drop)?;
        item.write(state.offset as usize, &data);
        state.offset += length;
        Ok(())
    }
}

impl Device for FwCfg {
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

    fn write(&self, offset: u64, data: &[u8]) {
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
    }
}

#[cfg(test)]
mod tests {
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
        FwCfg::new(items, GuestRam::new(&memory).unwrap())
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
        assert_eq!(device.state().offset, 2);
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
