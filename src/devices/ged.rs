//! The ACPI generic event device of `acpi=on`: a power button, and the registers that switch off and
//! reset, in place of a PC's fixed hardware.
//!
//! | address | bytes | |
//! |---|---|---|
//! | 0xfea00000 | 4 | reading brings the events that happened, and forgets them: bit 1 is the power button |
//! | 0xfea00200 | 1 | sleep control: bit 5 and sleep type 5 in bits 4:2 switch off |
//! | 0xfea00201 | 1 | sleep status: nothing to see |
//! | 0xfea00202 | 1 | reset: 0x42 starts over |
//!
//! An event is an edge on interrupt 9. (docs/specs/acpi_hw_reduced_hotplug of QEMU.)

use super::acpi;
use super::bus::Window;
use super::slots::Place;
use super::{
    Built, Device, DeviceRequest, Error, IrqLine, Kind, Loading, Missing, SectionKind, Sections,
    Slots, lacks, only_one,
};
use crate::arch::x86_64::acpi::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_TYPE_S5, device};
use crate::vmstate::{Layout, Visitor};
use acpi_tables::{Aml, aml};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const KIND: Kind = Kind {
    type_name: "acpi-ged",
    sections: &[SectionKind::of::<GedState>("ACPI generic event device", |config, instance| {
        match acpi::wanted(config) {
            true => only_one(config, instance),
            false => Some(lacks("the stream is of a machine with ACPI; leave acpi=off out")),
        }
    })],
    missing: |config, sections| {
        let lost = acpi::wanted(config) && !sections.contains(GedState::NAME, 0);
        let why = "missing; the stream is of a machine without ACPI, write acpi=off".to_owned();
        lost.then(|| Missing { name: GedState::NAME.into(), instance: 0, why })
    },
    build,
    ..Kind::NONE
};

const EVENTS: u64 = 0xfea0_0000;
const EVENTS_BYTES: u64 = 4;
const REGISTERS_BYTES: u64 = 3;
const IRQ: u32 = 9;
const POWER_BUTTON: u32 = 1 << 1;
/// Of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    if !acpi::wanted(slots.config) {
        return Ok(Vec::new());
    }
    let ged =
        Arc::new(Ged { state: Mutex::new(GedState::empty()), irq: Mutex::new(slots.irq(IRQ)) });
    slots.memory_window(EVENTS, EVENTS_BYTES, Arc::new(Events(ged.clone())))?;
    slots.memory_window(SLEEP_CONTROL, REGISTERS_BYTES, Arc::new(Registers))?;
    slots.describe(Place::Events, describe());
    Ok(vec![ged])
}

/// The device, and the button whose events it brings.
fn describe() -> Vec<u8> {
    let uid = |uid: &dyn Aml| aml::Name::new("_UID".into(), uid);
    let interrupt = aml::Interrupt::new(true, true, false, false, IRQ);
    let (address, bytes) = (EVENTS as u32, EVENTS_BYTES as u8);
    let region =
        aml::OpRegion::new("EREG".into(), aml::OpRegionSpace::SystemMemory, &address, &bytes);
    let field = aml::Field::new(
        "EREG".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![aml::FieldEntry::Named(*b"ESEL", 32)],
    );
    let (events, button) = (aml::Path::new("ESEL"), aml::Path::new("PWRB"));
    let (local, bit) = (aml::Local(0), POWER_BUTTON as u8);
    let read = aml::Store::new(&local, &events);
    let masked = aml::And::new(&aml::ZERO, &local, &bit);
    let pressed = aml::Equal::new(&masked, &bit);
    let notify = aml::Notify::new(&button, &0x80u8);
    let then = aml::If::new(&pressed, vec![&notify]);
    let handler = aml::Method::new("_EVT".into(), 1, true, vec![&read, &then]);
    let ged = device(
        "GED_",
        &"ACPI0013",
        vec![&uid(&"GED")],
        vec![&interrupt],
        vec![&region, &field, &handler],
    );
    let button = device("PWRB", &"PNP0C0C", vec![&uid(&0u8)], vec![], vec![]);
    [ged, button].concat()
}

/// The device.
pub(crate) struct Ged {
    state: Mutex<GedState>,
    irq: Mutex<Box<dyn IrqLine>>,
}

impl Ged {
    fn lock(&self) -> MutexGuard<'_, GedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Ged {
    fn reset(&self) -> Result<(), Error> {
        *self.lock() = GedState::empty();
        Ok(())
    }

    fn power_button(&self) {
        self.lock().events.sel |= POWER_BUTTON;
        let irq = self.irq.lock().unwrap_or_else(PoisonError::into_inner);
        irq.set(true);
        irq.set(false);
    }

    fn save(&self, sections: &mut Sections) -> Result<(), Error> {
        sections.push(GedState::NAME, 0, self.lock().clone());
        Ok(())
    }

    /// An event that was not read yet comes with the interrupt controller's state.
    fn load(&self, from: &mut Loading<'_>) -> Result<(), Error> {
        let brought = from.sections.get::<GedState>(GedState::NAME, 0);
        *self.lock() = brought.cloned().unwrap_or_else(GedState::empty);
        Ok(())
    }
}

/// The register of events.
struct Events(Arc<Ged>);

impl Window for Events {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0 {
            let events = std::mem::take(&mut self.0.lock().events.sel);
            data.iter_mut().zip(events.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Option<DeviceRequest> {
        None
    }
}

/// Sleep and reset.
struct Registers;

impl Window for Registers {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<DeviceRequest> {
        let value = *data.first()?;
        match SLEEP_CONTROL + offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5 => {
                Some(DeviceRequest::Shutdown)
            }
            RESET if value == RESET_VALUE => Some(DeviceRequest::Reset),
            _ => None,
        }
    }
}

/// `acpi-ged`: the generic event device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GedState {
    pub events: GedEvents,
    pub memory_hotplug: Option<GedMemoryHotplug>,
    pub cpu_hotplug: Option<GedCpuHotplug>,
}

impl GedState {
    /// Without events, and with the empty slots for memory that QEMU's has.
    fn empty() -> GedState {
        GedState { memory_hotplug: Some(GedMemoryHotplug::default()), ..GedState::default() }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Edges(Arc<Mutex<Vec<bool>>>);

    impl IrqLine for Edges {
        fn set(&self, high: bool) {
            self.0.lock().unwrap().push(high);
        }
    }

    #[test]
    fn the_button_is_an_edge_and_an_event_that_is_read_once() {
        let edges = Edges::default();
        let (state, irq) =
            (Mutex::new(GedState::empty()), Mutex::new(Box::new(edges.clone()) as _));
        let ged = Arc::new(Ged { state, irq });
        ged.power_button();
        assert_eq!(*edges.0.lock().unwrap(), [true, false]);
        let read = || {
            let mut data = [0xff; 4];
            Events(ged.clone()).read(0, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(), read()), (2, 0));
    }

    #[test]
    fn only_their_values_switch_off_and_reset() {
        assert_eq!(Registers.write(0, &[0x34]), Some(DeviceRequest::Shutdown));
        assert_eq!(Registers.write(2, &[0x42]), Some(DeviceRequest::Reset));
        for (offset, value) in [(0, 0x14), (0, 0x2c), (1, 0x34), (2, 0x34), (2, 0), (0, 0x42)] {
            assert_eq!(Registers.write(offset, &[value]), None, "{offset} {value:#x}");
        }
    }
}
