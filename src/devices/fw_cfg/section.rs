//! fw_cfg as streams have it.

use super::{Items, Selection};
use crate::vmstate::{Layout, Visitor};

/// `fw_cfg`: which item the guest reads, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FwCfgState {
    pub cur_entry: u16,
    pub cur_offset: u32,
    pub dma: Option<FwCfgDma>,
    /// Sizes of the ACPI tables, with `acpi=on`.
    pub acpi: Option<FwCfgAcpi>,
}

impl Layout for FwCfgState {
    const NAME: &'static str = "fw_cfg";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("cur_entry", &mut self.cur_entry)?;
        v.value("cur_offset[1]", &mut self.cur_offset)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.dma)?;
        v.subsection(&mut self.acpi)
    }
}

/// The only subsection whose version is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FwCfgDma {
    pub dma_addr: u64,
}

impl Layout for FwCfgDma {
    const NAME: &'static str = "fw_cfg/dma";
    const VERSION: u32 = 0;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("dma_addr", &mut self.dma_addr)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FwCfgAcpi {
    pub table_bytes: u64,
    pub linker_bytes: u64,
    pub rsdp_bytes: u64,
}

impl Layout for FwCfgAcpi {
    const NAME: &'static str = "fw_cfg/acpi_mr";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("table_mr_size", &mut self.table_bytes)?;
        v.value("linker_mr_size", &mut self.linker_bytes)?;
        v.value("rsdp_mr_size", &mut self.rsdp_bytes)
    }
}

pub(super) fn of(from: &Selection, items: &Items) -> FwCfgState {
    let dma = Some(FwCfgDma { dma_addr: from.dma_addr });
    let bytes = |name: &str| items.file_bytes(name);
    let acpi = bytes("etc/acpi/tables").map(|table_bytes| FwCfgAcpi {
        table_bytes,
        linker_bytes: bytes("etc/table-loader").unwrap_or(0),
        rsdp_bytes: bytes("etc/acpi/rsdp").unwrap_or(0),
    });
    FwCfgState { cur_entry: from.key, cur_offset: from.offset, dma, acpi }
}

pub(super) fn selection(from: &FwCfgState) -> Selection {
    let dma_addr = from.dma.map_or(0, |dma| dma.dma_addr);
    Selection { key: from.cur_entry, offset: from.cur_offset, dma_addr }
}
