//! What there is to ask fw_cfg for.

use crate::arch::x86_64::boot;
use crate::config::{Config, Topology};
use crate::memory::GuestRam;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys with a meaning of their own.
pub(crate) mod key {
    pub(crate) const SIGNATURE: u16 = 0x00;
    pub(crate) const ID: u16 = 0x01;
    pub(crate) const UUID: u16 = 0x02;
    pub(crate) const RAM_SIZE: u16 = 0x03;
    pub(crate) const NOGRAPHIC: u16 = 0x04;
    pub(crate) const NB_CPUS: u16 = 0x05;
    pub(crate) const CMDLINE_SIZE: u16 = 0x14;
    pub(crate) const CMDLINE_DATA: u16 = 0x15;
    pub(crate) const BOOT_MENU: u16 = 0x0e;
    pub(crate) const MAX_CPUS: u16 = 0x0f;
    pub(crate) const FILE_DIR: u16 = 0x19;
    /// Named files are numbered from here.
    pub(crate) const FILE_FIRST: u16 = 0x20;
}

/// The item named by a file's name may be this long, with its NUL.
const FILE_NAME_BYTES: usize = 56;
/// Traditional interface and DMA.
const VERSION: u32 = 3;

/// An item that the guest may write. Its length never changes.
pub(crate) trait Writable: Send + Sync {
    fn content(&self) -> Vec<u8>;

    /// Takes `data`, which the guest wrote at `offset`; it lies within the item.
    fn write(&self, offset: usize, data: &[u8]);
}

pub(super) enum Item {
    Fixed(Vec<u8>),
    Writable(Arc<dyn Writable>),
}

impl Item {
    pub(super) fn content(&self) -> Cow<'_, [u8]> {
        match self {
            Item::Fixed(data) => Cow::Borrowed(data),
            Item::Writable(item) => Cow::Owned(item.content()),
        }
    }
}

/// What there is to ask for.
#[derive(Default)]
pub(crate) struct Items {
    pub(super) by_key: BTreeMap<u16, Item>,
    files: Vec<(String, u16, u32)>,
}

impl Items {
    /// The items every guest may expect: signature and version.
    pub(crate) fn new() -> Items {
        let mut items = Items::default();
        items.add(key::SIGNATURE, b"QEMU".to_vec());
        items.add(key::ID, VERSION.to_le_bytes().to_vec());
        items
    }

    pub(crate) fn add(&mut self, key: u16, data: Vec<u8>) {
        self.by_key.insert(key, Item::Fixed(data));
    }

    /// Adds a named file, under the next free key.
    ///
    /// # Panics
    /// If the name has 56 bytes or more.
    pub(crate) fn add_file(&mut self, name: &str, data: Vec<u8>) {
        self.add_named(name, Item::Fixed(data));
    }

    /// Adds a named file that the guest may write.
    ///
    /// # Panics
    /// As [`Items::add_file`].
    pub(crate) fn add_writable_file(&mut self, name: &str, item: Arc<dyn Writable>) {
        self.add_named(name, Item::Writable(item));
    }

    fn add_named(&mut self, name: &str, item: Item) {
        assert!(name.len() < FILE_NAME_BYTES, "{name}");
        let key = key::FILE_FIRST + self.files.len() as u16;
        self.files.push((name.into(), key, item.content().len() as u32));
        self.by_key.insert(key, item);
        self.add(key::FILE_DIR, self.directory());
    }

    /// Gives a file that is there another content.
    pub(crate) fn replace_file(&mut self, name: &str, data: Vec<u8>) {
        if let Some((_, key, bytes)) = self.files.iter_mut().find(|(other, ..)| other == name) {
            *bytes = data.len() as u32;
            self.by_key.insert(*key, Item::Fixed(data));
            self.add(key::FILE_DIR, self.directory());
        }
    }

    /// Bytes of a file; `None` if it is not there.
    pub(crate) fn file_bytes(&self, name: &str) -> Option<u64> {
        let (.., bytes) = self.files.iter().find(|(other, ..)| other == name)?;
        Some((*bytes).into())
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

/// Adds what every machine of this configuration tells its guest.
pub(crate) fn describe_machine(items: &mut Items, config: &Config, ram: &GuestRam) {
    let cpus = u16::from(config.cpu.count);
    // Not how many: one more than the last APIC id.
    let Topology { sockets, .. } = config.cpu.topology;
    let last = u32::from(sockets) * config.cpu.topology.per_socket() - 1;
    let ids = config.cpu.topology.apic_id(last) as u16 + 1;
    items.add(key::UUID, config.identity.uuid.to_vec());
    items.add(key::RAM_SIZE, ram.bytes().to_le_bytes().to_vec());
    items.add(key::NOGRAPHIC, 1u16.to_le_bytes().to_vec());
    items.add(key::BOOT_MENU, 0u16.to_le_bytes().to_vec());
    items.add(key::NB_CPUS, cpus.to_le_bytes().to_vec());
    items.add(key::MAX_CPUS, ids.to_le_bytes().to_vec());
    if let Some(boot) = &config.boot {
        let cmdline = [boot.cmdline.as_bytes(), b"\0"].concat();
        items.add(key::CMDLINE_SIZE, (cmdline.len() as u32).to_le_bytes().to_vec());
        items.add(key::CMDLINE_DATA, cmdline);
    }
    items.add_file("etc/e820", boot::e820_file(ram));
}
