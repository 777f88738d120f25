//! `acpi=on`, which is the default: tables that name the devices of the machine, as the files that
//! QEMU's firmware reads through fw_cfg, and in guest memory, where the kernel is told of them.
//!
//! The files travel in a stream as memory that the guest does not see, as QEMU's do. A guest that
//! arrives keeps those of its source until it is reset.

use super::fw_cfg::{FwCfgAcpi, FwCfgState, Items};
use super::{Built, Device, Error, Kind, Loading, Sections, Slots};
use crate::arch::x86_64::acpi::{RSDP, TABLES, Tables};
use crate::args::switch_or_auto;
use crate::config::Config;
use crate::memory::{GuestRam, PAGE_BYTES, RamBlock};
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind { machine: &[switch_or_auto!(SWITCH)], build, ..Kind::NONE };

const SWITCH: &str = "acpi";
/// The linker script's file in fw_cfg.
const SCRIPT: &str = "etc/table-loader";

/// Whether the machine has ACPI. `auto`, QEMU's own default, means on.
pub(crate) fn wanted(config: &Config) -> bool {
    config.machine.switches.get(SWITCH, true)
}

/// After all other devices, which have described themselves.
fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !wanted(slots.config) {
        return Ok(Vec::new());
    }
    let config = slots.config;
    let mut described = std::mem::take(&mut slots.described);
    described.sort_by_key(|(place, _)| *place);
    let devices = described.into_iter().flat_map(|(_, aml)| aml).collect();
    let second_ioapic = slots.further_lines.is_some();
    let tables = Tables::new(&config.machine.oem, &config.cpu, second_ioapic, devices);
    for (name, content) in files(&tables) {
        // The blocks of a guest that arrives are its source's.
        if config.incoming.is_none() {
            keep(slots.vm.ram(), name, &content)?;
        }
        slots.items().add_file(name, content);
    }
    let (ram, items) = (slots.vm.ram().clone(), slots.items.clone());
    Ok(vec![Arc::new(Acpi { tables: Arc::new(tables), ram, items })])
}

/// What the guest reads through fw_cfg.
fn files(tables: &Tables) -> [(&'static str, Vec<u8>); 3] {
    [(TABLES, tables.tables.clone()), (RSDP, tables.rsdp.clone()), (SCRIPT, tables.script())]
}

/// The block of a file.
fn block(name: &str) -> String {
    format!("/rom@{name}")
}

/// Makes a block of whole pages of `content`.
fn keep(ram: &GuestRam, name: &str, content: &[u8]) -> Result<(), Error> {
    let bytes = content.len().next_multiple_of(PAGE_BYTES as usize) as u64;
    let kept = ram.keep_block(&block(name), bytes).map_err(|source| failed(name, source))?;
    fill(kept, name, content)
}

/// Puts as much of `content` into a block as it holds: one that came with its guest has the size that
/// the file had at the source.
fn fill(block: &RamBlock, name: &str, content: &[u8]) -> Result<(), Error> {
    let mut pages = content.to_vec();
    pages.resize(block.bytes() as usize, 0);
    block.fill(0, &mut [IoSlice::new(&pages)]).map_err(|source| failed(name, source))
}

fn failed(name: &str, source: crate::memory::Error) -> Error {
    let source = std::io::Error::other(source.to_string());
    Error::Host { what: format!("memory for {name}"), source }
}

/// The tables of a machine.
pub(crate) struct Acpi {
    tables: Arc<Tables>,
    ram: GuestRam,
    items: Arc<Mutex<Items>>,
}

impl Acpi {
    /// What a kernel that is started here is given.
    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    fn items(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Acpi {
    /// The files are this machine's again, and so is what goes along with the guest when it moves on.
    fn reset(&self) -> Result<(), Error> {
        for (name, content) in files(&self.tables) {
            if let Some(block) = self.ram.block(&block(name)) {
                fill(block, name, &content)?;
            }
            self.items().replace_file(name, content);
        }
        Ok(())
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), Error> {
        Ok(())
    }

    /// The files are as they were at the source, as long as its section of fw_cfg says.
    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let brought = from.sections.get::<FwCfgState>("fw_cfg", 0).and_then(|state| state.acpi);
        let Some(FwCfgAcpi { table_bytes, linker_bytes, rsdp_bytes }) = brought else {
            return self.reset();
        };
        for (name, bytes) in [(TABLES, table_bytes), (SCRIPT, linker_bytes), (RSDP, rsdp_bytes)] {
            if let Some(block) = self.ram.block(&block(name)) {
                let mut content = vec![0; bytes.min(block.bytes()) as usize];
                block.copy_out(0, &mut content);
                self.items().replace_file(name, content);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cpu, Oem};

    #[test]
    fn a_reset_brings_this_machines_tables_back_for_the_guest_and_for_its_next_host() {
        let ram = crate::memory::for_tests(1 << 20);
        let tables = Tables::new(&Oem::default(), &Cpu::cores(1), true, Vec::new());
        let mut items = Items::new();
        for (name, content) in files(&tables) {
            keep(&ram, name, b"the source's").unwrap();
            items.add_file(name, content);
        }
        let acpi = Acpi { tables: Arc::new(tables), ram, items: Arc::new(Mutex::new(items)) };
        acpi.reset().unwrap();
        for (name, mut content) in files(&acpi.tables) {
            let mut found = vec![0; PAGE_BYTES as usize];
            acpi.ram.block(&block(name)).unwrap().copy_out(0, &mut found);
            content.resize(found.len(), 0);
            assert!(found == content, "{name}");
        }
    }
}
