//! The ACPI generic event device of `acpi=on`, as streams have it; it is not built yet.

use super::kind::{Kind, SectionKind, lacks};
use crate::vmstate::{Layout, Visitor};

pub(crate) const KIND: Kind = Kind {
    type_name: "acpi-ged",
    sections: &[SectionKind::of::<GedState>("ACPI generic event device", |_, _| {
        Some(lacks("the ACPI event device, part of acpi=on"))
    })],
    ..Kind::NONE
};

/// `acpi-ged`: the generic event device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedState {
    pub events: GedEvents,
    pub memory_hotplug: Option<GedMemoryHotplug>,
    pub cpu_hotplug: Option<GedCpuHotplug>,
}

impl Layout for GedState {
    const NAME: &'static str = "acpi-ged";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("ged_state", &mut self.events)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.memory_hotplug)?;
        v.subsection(&mut self.cpu_hotplug)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedEvents {
    /// Events not yet read by the guest.
    pub sel: u32,
}

impl Layout for GedEvents {
    const NAME: &'static str = "acpi-ged-state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("sel", &mut self.sel)
    }
}

/// No slots on a microvm, so only the selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedMemoryHotplug {
    pub state: GedMemorySelector,
}

impl Layout for GedMemoryHotplug {
    const NAME: &'static str = "acpi-ged/memhp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("memhp_state", &mut self.state)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedMemorySelector {
    pub selector: u32,
}

impl Layout for GedMemorySelector {
    const NAME: &'static str = "memory hotplug state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("selector", &mut self.selector)
    }
}

/// No hotpluggable vCPUs on a microvm, so only selector and command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedCpuHotplug {
    pub state: GedCpuSelector,
}

impl Layout for GedCpuHotplug {
    const NAME: &'static str = "acpi-ged/cpuhp";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.structure("cpuhp_state", &mut self.state)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedCpuSelector {
    pub selector: u32,
    pub command: u8,
}

impl Layout for GedCpuSelector {
    const NAME: &'static str = "CPU hotplug state";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("selector", &mut self.selector)?;
        v.value("command", &mut self.command)
    }
}
