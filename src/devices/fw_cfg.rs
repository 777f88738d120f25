//! fw_cfg, the interface by which firmware and kernels ask the VMM for items by key.

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
