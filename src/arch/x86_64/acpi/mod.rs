//! The ACPI tables of a machine, as QEMU's microvm has them: hardware-reduced, with a generic event
//! device in place of the fixed hardware.
//!
//! They are made as the three files that firmware reads through fw_cfg (`loader` says how it links
//! them). There is no firmware here: [`Tables::place`] does its part, and [`super::boot`] tells the
//! kernel where the root pointer is.

mod loader;
mod resource;

pub(crate) use loader::{RSDP, TABLES};
pub(crate) use resource::{Irq, device};

use crate::config::{Cpu, Oem, Topology};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};
use loader::{Command, File};

/// Addresses and value of the registers that stand in the FADT.
pub(crate) const SLEEP_CONTROL: u64 = 0xfea0_0200;
pub(crate) const SLEEP_STATUS: u64 = SLEEP_CONTROL + 1;
pub(crate) const RESET: u64 = SLEEP_CONTROL + 2;
pub(crate) const RESET_VALUE: u8 = 0x42;
/// What goes into the sleep control register, shifted, to switch off.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
pub(crate) const SECOND_IOAPIC: u32 = 0xfec1_0000;
/// The first interrupt of the second I/O APIC.
pub(crate) const SECOND_IOAPIC_GSI: u32 = 24;

/// AML's opcode of a scope; the length that follows counts itself, and is one byte below 64.
const SCOPE: u8 = 0x10;

/// Offsets in the header of a table, and in the FADT.
const HEADER_BYTES: usize = 36;
const CHECKSUM: usize = 9;
const CREATOR: usize = 28;
const FADT_BYTES: u32 = 268;
const FADT_DSDT: usize = 40;
const FADT_FLAGS: usize = 112;
const FADT_RESET: usize = 116;
const FADT_RESET_VALUE: usize = 128;
const FADT_X_DSDT: usize = 140;
const FADT_SLEEP_CONTROL: usize = 244;
const FADT_SLEEP_STATUS: usize = 256;
/// Flags of the FADT: there is a reset register; there is no fixed hardware.
const RESET_SUPPORTED: u32 = 1 << 10;
const HARDWARE_REDUCED: u32 = 1 << 20;

/// The root pointer's XSDT address, its two checksums, and what they cover.
const RSDP_BYTES: u32 = 36;
const RSDP_V1_BYTES: u32 = 20;
const RSDP_XSDT: u32 = 24;
const RSDP_CHECKSUM: u32 = 8;
const RSDP_EXTENDED_CHECKSUM: u32 = 32;

/// The tables as files: nothing in them depends on where they will lie.
#[derive(Debug)]
pub(crate) struct Tables {
    pub tables: Vec<u8>,
    pub rsdp: Vec<u8>,
    script: Vec<Command>,
}

impl Tables {
    /// `devices` is the AML of every device, one after the other.
    pub(crate) fn new(oem: &Oem, cpus: &Cpu, second_ioapic: bool, devices: Vec<u8>) -> Tables {
        let mut files = Tables { tables: Vec::new(), rsdp: rsdp(oem), script: Vec::new() };
        files.allocate(File::Rsdp, 16, true);
        files.allocate(File::Tables, 64, false);
        let dsdt = files.add(dsdt(oem, devices), &[]);
        let fadt = fadt(oem, dsdt);
        let fadt = files.add(fadt, &[(FADT_DSDT, 4), (FADT_X_DSDT, 8)]);
        let madt = files.add(madt(oem, cpus, second_ioapic), &[]);
        let entries = [(HEADER_BYTES, 8), (HEADER_BYTES + 8, 8)];
        let xsdt = files.add(xsdt(oem, &[fadt, madt]), &entries);
        let at = RSDP_XSDT as usize;
        files.rsdp[at..at + 8].copy_from_slice(&u64::from(xsdt).to_le_bytes());
        files.rsdp_checksum(RSDP_CHECKSUM, RSDP_V1_BYTES);
        files.script.push(Command::Pointer { file: File::Rsdp, offset: RSDP_XSDT, bytes: 8 });
        files.rsdp_checksum(RSDP_EXTENDED_CHECKSUM, RSDP_BYTES);
        files
    }

    /// The file `etc/table-loader`.
    pub(crate) fn script(&self) -> Vec<u8> {
        self.script.iter().flat_map(|command| command.encode()).collect()
    }

    /// The tables for `address`, and a root pointer to them.
    pub(crate) fn place(&self, address: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut tables, mut rsdp) = (self.tables.clone(), self.rsdp.clone());
        for command in &self.script {
            command.apply(File::Tables, &mut tables, address);
            command.apply(File::Rsdp, &mut rsdp, address);
        }
        (tables, rsdp)
    }

    fn allocate(&mut self, file: File, alignment: u32, below_1m: bool) {
        self.script.push(Command::Allocate { file, alignment, below_1m });
    }

    fn rsdp_checksum(&mut self, place: u32, bytes: u32) {
        self.script.push(Command::Checksum { file: File::Rsdp, place, start: 0, bytes });
    }

    /// Appends a table; returns where it lies. `pointers` are offsets and sizes of addresses in it.
    fn add(&mut self, table: Sdt, pointers: &[(usize, u8)]) -> u32 {
        let start = self.tables.len() as u32;
        let bytes = table.len() as u32;
        self.tables.extend(table.as_slice());
        // Sums are left to the script, which changes what they are made of.
        self.tables[start as usize + CHECKSUM] = 0;
        for (offset, bytes) in pointers {
            let offset = start + *offset as u32;
            self.script.push(Command::Pointer { file: File::Tables, offset, bytes: *bytes });
        }
        let place = start + CHECKSUM as u32;
        self.script.push(Command::Checksum { file: File::Tables, place, start, bytes });
        start
    }
}

/// An empty table.
fn table(signature: &[u8; 4], bytes: u32, revision: u8, oem: &Oem) -> Sdt {
    let mut table = Sdt::new(*signature, bytes, revision, oem.id(), oem.table_id(), 1);
    table.write_bytes(CREATOR, Oem::CREATOR);
    table.write_u32(CREATOR + 4, 1);
    table
}

fn dsdt(oem: &Oem, devices: Vec<u8>) -> Sdt {
    let mut dsdt = table(b"DSDT", HEADER_BYTES as u32, 2, oem);
    dsdt.append_slice(&aml::Scope::raw("_SB_".into(), devices));
    // In the root's scope, whose name is empty.
    let mut root = vec![b'\\', 0];
    let soft_off = aml::Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    aml::Name::new("_S5_".into(), &soft_off).to_aml_bytes(&mut root);
    dsdt.append_slice(&[SCOPE, root.len() as u8 + 1]);
    dsdt.append_slice(&root);
    dsdt
}

fn fadt(oem: &Oem, dsdt: u32) -> Sdt {
    let mut fadt = table(b"FACP", FADT_BYTES, 5, oem);
    fadt.write_u32(FADT_DSDT, dsdt);
    fadt.write_u32(FADT_FLAGS, RESET_SUPPORTED | HARDWARE_REDUCED);
    fadt.write_bytes(FADT_RESET, &byte_at(RESET));
    fadt.write_u8(FADT_RESET_VALUE, RESET_VALUE);
    fadt.write_u64(FADT_X_DSDT, dsdt.into());
    fadt.write_bytes(FADT_SLEEP_CONTROL, &byte_at(SLEEP_CONTROL));
    fadt.write_bytes(FADT_SLEEP_STATUS, &byte_at(SLEEP_STATUS));
    fadt
}

/// A generic address structure: a register of eight bits in memory.
fn byte_at(address: u64) -> [u8; 12] {
    let mut structure = [0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    structure[4..].copy_from_slice(&address.to_le_bytes());
    structure
}

fn madt(oem: &Oem, cpus: &Cpu, second_ioapic: bool) -> Sdt {
    const PC_AT_COMPATIBLE: u32 = 1;
    let mut madt = table(b"APIC", HEADER_BYTES as u32, 3, oem);
    madt.append_slice(&LAPIC.to_le_bytes());
    madt.append_slice(&PC_AT_COMPATIBLE.to_le_bytes());
    let Topology { sockets, .. } = cpus.topology;
    for index in 0..u32::from(sockets) * cpus.topology.per_socket() {
        let is_there = index < cpus.count.into();
        let id = cpus.topology.apic_id(index) as u8;
        madt.append_slice(&[0, 8, index as u8, id, is_there.into(), 0, 0, 0]);
    }
    let mut ioapic = |id: u8, address: u32, first: u32| {
        madt.append_slice(&[1, 12, id, 0]);
        madt.append_slice(&address.to_le_bytes());
        madt.append_slice(&first.to_le_bytes());
    };
    ioapic(0, IOAPIC, 0);
    if second_ioapic {
        ioapic(1, SECOND_IOAPIC, SECOND_IOAPIC_GSI);
    }
    // NMIs arrive at LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

fn xsdt(oem: &Oem, tables: &[u32]) -> Sdt {
    let mut xsdt = table(b"XSDT", HEADER_BYTES as u32, 1, oem);
    for table in tables {
        xsdt.append_slice(&u64::from(*table).to_le_bytes());
    }
    xsdt
}

/// Without its checksums and the XSDT's address.
fn rsdp(oem: &Oem) -> Vec<u8> {
    const REVISION: u8 = 2;
    let mut rsdp = b"RSD PTR \0".to_vec();
    rsdp.extend(oem.id());
    rsdp.push(REVISION);
    rsdp.extend([0; 4]);
    rsdp.extend(RSDP_BYTES.to_le_bytes());
    rsdp.resize(RSDP_BYTES as usize, 0);
    rsdp
}

#[cfg(test)]
mod tests;
