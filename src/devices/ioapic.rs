//! The I/O APIC in the kernel. (The second one, with `acpi=on`, is `second_ioapic`.)

use super::device::Device;
use super::error::Error;
use super::kind::{Kind, SectionKind, lacks, only_one};
use super::second_ioapic;
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::kvm::{self, Vm};
use crate::vmstate::{Layout, Visitor};
use kvm_bindings::kvm_ioapic_state;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind {
    type_name: "ioapic",
    sections: &[SectionKind::of::<IoapicState>("I/O APIC", |config, instance| match instance {
        1 if second_ioapic::wanted(config) => None,
        1 => Some(lacks("the second I/O APIC of acpi=on and ioapic2=on")),
        _ => only_one(config, instance),
    })],
    build,
    ..Kind::NONE
};

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let vm = slots.vm.clone();
    Ok(vec![Arc::new(Ioapic { power_on: vm.read_ioapic()?, vm })])
}

struct Ioapic {
    vm: Arc<Vm>,
    power_on: kvm_ioapic_state,
}

impl Device for Ioapic {
    fn reset(&self) -> Result<(), Error> {
        Ok(self.vm.write_ioapic(&self.power_on)?)
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        sections.push("ioapic", 0, ioapic(&self.vm.read_ioapic()?));
        Ok(())
    }

    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let mut state = self.power_on;
        if let Some(ioapic) = from.sections.get("ioapic", 0) {
            from_ioapic(ioapic, &mut state);
        }
        Ok(self.vm.write_ioapic(&state)?)
    }
}

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

fn ioapic(from: &kvm_ioapic_state) -> IoapicState {
    IoapicState {
        id: from.id as u8,
        ioregsel: from.ioregsel as u8,
        irr: from.irr,
        redirections: kvm::redirections(from),
    }
}

/// Puts the stream's I/O APIC over `ioapic`, which holds a fresh one.
fn from_ioapic(from: &IoapicState, ioapic: &mut kvm_ioapic_state) {
    ioapic.id = from.id.into();
    ioapic.ioregsel = from.ioregsel.into();
    ioapic.irr = from.irr;
    for (entry, bits) in ioapic.redirtbl.iter_mut().zip(from.redirections) {
        entry.bits = bits;
    }
}
