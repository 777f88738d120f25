//! The I/O APIC in the kernel. (The second one, with `acpi=on`, is [`second`].)

pub(crate) mod second;
mod section;

use super::device::Device;
use super::error::Error;
use super::kind::{Kind, SectionKind, lacks, only_one};
use super::sections::{Loading, Sections};
use super::slots::{Built, Slots};
use crate::kvm::{self, Vm};
use kvm_bindings::kvm_ioapic_state;
use section::IoapicState;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind {
    type_name: "ioapic",
    sections: &[SectionKind::of::<IoapicState>("I/O APIC", |config, instance| match instance {
        1 if second::wanted(config) => None,
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
