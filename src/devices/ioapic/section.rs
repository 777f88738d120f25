//! An I/O APIC as streams have it.

use crate::vmstate::{Layout, Visitor};

/// `ioapic`: instance 0 is KVM's, instance 1 (with `acpi=on`) a device of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IoapicState {
    pub id: u8,
    pub ioregsel: u8,
    pub irr: u32,
    pub redirections: [u64; 24],
}

impl Layout for IoapicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("id", &mut self.id)?;
        v.value("ioregsel", &mut self.ioregsel)?;
        v.unused("unused", 8)?;
        v.value("irr", &mut self.irr)?;
        v.array("ioredtbl", &mut self.redirections)
    }
}
