//! virtio over virtio-mmio.
//!
//! | file | what |
//! |---|---|
//! | `transport` | a transport with its device: window, lock, interrupt line, and `worker`, its thread |
//! | `mmio` | the registers, legacy and modern |
//! | `queue` | a queue, its ring and what is in it, none of it believed |
//! | `model` | what a kind of device has to bring, each in a file of its own (`rng`, `console`, `net`) |
//! | `vhost_user` | queues that another process has (`fs`) |
//! | `section`, `parts`, `state` | the state in QEMU's layout, and how it is made and taken |
//!
//! The first `-device` has the last transport, as in QEMU.

pub(super) mod balloon;
mod blk;
mod console;
mod element;
mod fs;
mod mmio;
mod model;
mod net;
mod parts;
mod queue;
mod rng;
mod saved;
mod section;
mod state;
mod transport;
mod vhost_user;
mod worker;

pub(crate) use balloon::Balloon;
pub use balloon::BalloonControl;
pub(crate) use parts::*;
pub(crate) use section::*;
pub(crate) use transport::Transport;

use super::acpi;
use super::bus::Window;
use super::ioapic::second;
use super::slots::Place;
use super::{
    Built, DeviceRequest, Error, Kind, Misfit, Missing, Pluggable, SectionKind, Sections, Slots,
    lacks,
};
use crate::args::{Key, OptionError, Problem, value};
use crate::config::{Config, Device, Properties};
use acpi_tables::aml;
pub use blk::HostileDisks;
use mmio::{
    EVENT_IDX, INDIRECT_DESC, NOTIFY_ON_EMPTY, QUEUE_NOTIFY, Registers, VERSION_1, WINDOW_BYTES,
    offered,
};
use model::{Model, Wake};
use std::sync::Arc;

/// The first transport.
const TRANSPORTS: u64 = 0xfeb0_0000;

/// How many transports there are, and the interrupt of the first, which the others' follow.
fn transports(config: &Config) -> (usize, u32) {
    match (acpi::wanted(config), second::wanted(config)) {
        (_, true) => (24, 24),
        (true, false) => (8, 16),
        (false, false) => (8, 5),
    }
}

const NO_PACKED: &str = "packed rings are not built; write packed=off";
const NO_IOMMU: &str = "there is no IOMMU; write iommu_platform=off";

pub(crate) const TRANSPORT: Kind = Kind {
    machine: &[Key::set("auto-kernel-cmdline", "on|off", |switches, text| {
        switches.set(AUTO_CMDLINE, value::switch(text)?);
        Ok(())
    })],
    globals: &[Key::set(FORCE_LEGACY, "on|off", |switches, text| {
        switches.set(FORCE_LEGACY, value::switch(text)?);
        Ok(())
    })],
    missing,
    complete,
    build,
    ..Kind::NONE
};
pub(crate) const BLOCK: Kind = Kind {
    sections: &[section_kind!(VirtioKind::Block, |config, _| lacks_driver(config, blk::DRIVER))],
    device: Some(Pluggable {
        driver: blk::DRIVER,
        bus: "virtio-mmio-bus",
        help: "a disk over an image (-drive if=none, -blockdev)",
        read: |option, pairs| Ok(Arc::new(blk::KEYS.fill(option, pairs)?)),
        properties: || blk::KEYS.parameters(),
        refuses: |_| None,
    }),
    complete: blk::complete,
    ..Kind::NONE
};
pub(crate) const NET: Kind = Kind {
    sections: &[section_kind!(VirtioKind::Net, |config, _| lacks_driver(config, net::DRIVER))],
    device: Some(Pluggable {
        driver: net::DRIVER,
        bus: "virtio-mmio-bus",
        help: "a network card, connected to what -netdev says",
        read: |option, pairs| Ok(Arc::new(net::KEYS.fill(option, pairs)?)),
        properties: || net::KEYS.parameters(),
        refuses: |_| None,
    }),
    complete: net::complete,
    ..Kind::NONE
};
pub(crate) const CONSOLE: Kind = Kind {
    sections: &[section_kind!(VirtioKind::Console, |config, _| {
        lacks_driver(config, console::CONTROLLER)
    })],
    device: Some(Pluggable {
        driver: console::CONTROLLER,
        bus: "virtio-mmio-bus",
        help: "a controller of ports, each a virtconsole or a virtserialport behind it",
        read: |option, pairs| Ok(Arc::new(console::CONTROLLER_KEYS.fill(option, pairs)?)),
        properties: || console::CONTROLLER_KEYS.parameters(),
        refuses: |_| None,
    }),
    complete: console::complete,
    ..Kind::NONE
};
pub(crate) const VIRTCONSOLE: Kind = port!(console::CONSOLE, "a console on a virtio-serial-device");
pub(crate) const VIRTSERIALPORT: Kind =
    port!(console::PORT, "a named port on a virtio-serial-device");
pub(crate) const RNG: Kind = Kind {
    sections: &[section_kind!(VirtioKind::Rng, |config, _| lacks_driver(config, rng::DRIVER))],
    device: Some(Pluggable {
        driver: rng::DRIVER,
        bus: "virtio-mmio-bus",
        help: "entropy for the guest, from the host's kernel or a file (-object rng-builtin, rng-random)",
        read: |option, pairs| Ok(Arc::new(rng::KEYS.fill(option, pairs)?)),
        properties: || rng::KEYS.parameters(),
        refuses: |_| None,
    }),
    complete: rng::complete,
    ..Kind::NONE
};
pub(crate) const BALLOON: Kind = Kind {
    sections: &[section_kind!(VirtioKind::Balloon, |config, _| {
        lacks_driver(config, balloon::DRIVER)
    })],
    device: Some(Pluggable {
        driver: balloon::DRIVER,
        bus: "virtio-mmio-bus",
        help: "gives memory that the guest does without back to the host",
        read: |option, pairs| Ok(Arc::new(balloon::KEYS.fill(option, pairs)?)),
        properties: || balloon::KEYS.parameters(),
        refuses: |devices| {
            let there = devices.iter().any(|device| device.driver == balloon::DRIVER);
            there.then_some("only one balloon is supported")
        },
    }),
    complete: balloon::complete,
    build: balloon::build,
    ..Kind::NONE
};

pub(crate) const FS: Kind = Kind {
    device: Some(Pluggable {
        driver: fs::DRIVER,
        bus: "virtio-mmio-bus",
        help: "a file system of the host, served by another process (virtiofsd) over -chardev socket",
        read: |option, pairs| Ok(Arc::new(fs::KEYS.fill(option, pairs)?)),
        properties: || fs::KEYS.parameters(),
        refuses: |_| None,
    }),
    complete: fs::complete,
    ..Kind::NONE
};

const AUTO_CMDLINE: &str = "auto-kernel-cmdline";
const FORCE_LEGACY: &str = "virtio-mmio.force-legacy";

macro_rules! section_kind {
    ($kind:expr, $lacks:expr) => {
        SectionKind {
            what: $kind.what(),
            named: |name| match VirtioState::named(name) {
                Some(state) if state.kind == $kind => Some(Box::new(state)),
                _ => None,
            },
            lacks: $lacks,
            check: |_, _| Ok(()),
        }
    };
}
use section_kind;

macro_rules! port {
    ($driver:expr, $help:literal) => {
        Kind {
            device: Some(Pluggable {
                driver: $driver,
                bus: "virtio-serial-bus",
                help: $help,
                read: |option, pairs| Ok(Arc::new(console::PORT_KEYS.fill(option, pairs)?)),
                properties: || console::PORT_KEYS.parameters(),
                refuses: |_| None,
            }),
            ..Kind::NONE
        }
    };
}
use port;

fn lacks_driver(config: &Config, driver: &str) -> Option<Misfit> {
    (!config.has_device(driver)).then(|| lacks(&format!("-device {driver} is missing")))
}

type Opened = Result<Box<dyn Model>, Error>;

/// A driver that a transport can have.
struct Driver {
    name: &'static str,
    kind: VirtioKind,
    /// The features that it offers beside the transport's.
    features: fn(&dyn Properties, &Config) -> u64,
    /// What it offers beside, and does not offer, to legacy drivers.
    legacy: (u64, u64),
    ring: fn(&dyn Properties) -> RingFeatures,
    /// Why it cannot have its part of a section.
    check: fn(&Device, &Config, &VirtioDevice) -> Result<(), String>,
    open: fn(&Device, &Slots<'_>) -> Opened,
}

static DRIVERS: &[Driver] = &[
    Driver {
        name: blk::DRIVER,
        kind: VirtioKind::Block,
        features: |properties, config| of::<blk::Wanted>(properties).features(config),
        legacy: blk::LEGACY,
        ring: |properties| of::<blk::Wanted>(properties).ring,
        check: |_, _, _| Ok(()),
        open: |device, slots| Ok(Box::new(blk::open(device, of(&*device.properties), slots)?)),
    },
    Driver {
        name: rng::DRIVER,
        kind: VirtioKind::Rng,
        features: |_, _| 0,
        legacy: (0, 0),
        ring: |properties| of::<rng::Wanted>(properties).ring(),
        check: |_, _, _| Ok(()),
        open: |device, slots| {
            Ok(Box::new(rng::open(of(&*device.properties), &slots.config.entropy)?))
        },
    },
    Driver {
        name: balloon::DRIVER,
        kind: VirtioKind::Balloon,
        features: |properties, _| of::<balloon::Wanted>(properties).features(),
        legacy: (0, 0),
        ring: |properties| of::<balloon::Wanted>(properties).ring,
        check: |_, _, part| match part {
            VirtioDevice::Balloon(part) => balloon::check(part),
            _ => Ok(()),
        },
        open: |device, slots| {
            let control = slots.balloon.clone();
            Ok(Box::new(balloon::BalloonModel::new(of(&*device.properties), control)))
        },
    },
    Driver {
        name: fs::DRIVER,
        kind: VirtioKind::Fs,
        features: |_, _| 0,
        // Nobody does it there.
        legacy: (0, NOTIFY_ON_EMPTY),
        ring: |properties| of::<fs::Wanted>(properties).ring,
        check: |_, _, _| Ok(()),
        open: |device, slots| {
            let wanted = of::<fs::Wanted>(&*device.properties);
            let legacy = slots.config.machine.switches.get(FORCE_LEGACY, true);
            let RingFeatures(ring) = wanted.ring;
            let needed = ring | if legacy { 0 } else { VERSION_1 };
            Ok(Box::new(fs::open(wanted, needed, slots.config)?))
        },
    },
    Driver {
        name: console::CONTROLLER,
        kind: VirtioKind::Console,
        features: |properties, _| console::features(of(properties)),
        legacy: (0, 0),
        ring: |properties| of::<console::Controller>(properties).ring,
        check: |device, config, part| match part {
            VirtioDevice::Console(part) => {
                let ports = console::ports_of(config, device);
                console::check(of(&*device.properties), &ports, part)
            }
            _ => Ok(()),
        },
        open: |device, slots| {
            let ports = console::ports_of(slots.config, device);
            let controller = of(&*device.properties);
            Ok(Box::new(console::Console::new(
                controller,
                ports,
                &slots.lines,
                slots.port_events.clone(),
            )))
        },
    },
    Driver {
        name: net::DRIVER,
        kind: VirtioKind::Net,
        features: |properties, config| of::<net::Wanted>(properties).offers(config),
        legacy: (0, 0),
        ring: |properties| of::<net::Wanted>(properties).ring,
        check: |device, config, part| match part {
            VirtioDevice::Net(part) => net::check(of(&*device.properties), config, part),
            _ => Ok(()),
        },
        open: |device, slots| {
            let wanted = of(&*device.properties);
            Ok(Box::new(net::Net::new(wanted, device, slots.config, &*slots.networks)))
        },
    },
];

/// The properties of a device in the type that its own [`Pluggable::read`] made.
fn of<T: Properties>(properties: &dyn Properties) -> &T {
    properties.downcast_ref().expect("a driver's properties are of its type")
}

/// What a device offers of its rings' features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingFeatures(u64);

impl Default for RingFeatures {
    fn default() -> RingFeatures {
        RingFeatures(INDIRECT_DESC | EVENT_IDX)
    }
}

impl RingFeatures {
    pub(crate) fn indirect_desc(&mut self, text: &str) -> Result<(), Problem> {
        self.switch(INDIRECT_DESC, text)
    }

    pub(crate) fn event_idx(&mut self, text: &str) -> Result<(), Problem> {
        self.switch(EVENT_IDX, text)
    }

    fn switch(&mut self, feature: u64, text: &str) -> Result<(), Problem> {
        match value::switch(text)? {
            true => self.0 |= feature,
            false => self.0 &= !feature,
        }
        Ok(())
    }
}

/// A device of the command line, on its transport.
struct Plugged<'a> {
    index: u32,
    gsi: u32,
    driver: &'static Driver,
    device: &'a Device,
    legacy: bool,
}

impl Plugged<'_> {
    fn address(&self) -> u64 {
        TRANSPORTS + u64::from(self.index) * WINDOW_BYTES
    }

    fn describe(&self) -> Vec<u8> {
        let number = aml::Name::new("_UID".into(), &self.index);
        let coherent = aml::Name::new("_CCA".into(), &1u8);
        let window = aml::Memory32Fixed::new(true, self.address() as u32, WINDOW_BYTES as u32);
        let interrupt = aml::Interrupt::new(true, false, false, false, self.gsi);
        crate::arch::x86_64::acpi::device(
            &format!("VR{:02}", self.index),
            &"LNRO0005",
            vec![&number, &coherent],
            vec![&window, &interrupt],
            vec![],
        )
    }

    fn section(&self) -> String {
        self.driver.kind.section_at(self.address())
    }

    fn offered(&self, config: &Config) -> u64 {
        let properties = &*self.device.properties;
        let RingFeatures(ring) = (self.driver.ring)(properties);
        let all = offered(self.legacy, ring, (self.driver.features)(properties, config));
        let (more, not) = if self.legacy { self.driver.legacy } else { (0, 0) };
        (all | more) & !not
    }
}

/// All virtio devices, in the order of the command line, each on the transport below the last.
fn plugged(config: &Config) -> Vec<Plugged<'_>> {
    let legacy = config.machine.switches.get(FORCE_LEGACY, true);
    let known = |device: &Device| DRIVERS.iter().find(|driver| driver.name == device.driver);
    let devices = config.devices.iter().filter_map(|device| Some((known(device)?, device)));
    let (count, first) = transports(config);
    let plugged = (0..count as u32).rev().zip(devices);
    let plugged = plugged.map(|(index, (driver, device))| {
        let gsi = first + index;
        Plugged { index, gsi, driver, device, legacy }
    });
    plugged.collect()
}

/// Refuses more devices than there are transports, and tells the kernel where the others are.
fn complete(config: &mut Config) -> Result<(), OptionError> {
    let ours = |device: &&Device| DRIVERS.iter().any(|driver| driver.name == device.driver);
    let (count, _) = transports(config);
    if let Some(device) = config.devices.iter().filter(ours).nth(count) {
        let reason = match count {
            8 => "the machine has eight virtio transports, and each has a device",
            _ => "the machine has 24 virtio transports, and each has a device",
        };
        return Err(Problem::Refused(reason).at(format!("-device {}", device.driver)));
    }
    let has_acpi = acpi::wanted(config);
    let told: String = plugged(config)
        .iter()
        .map(|p| format!(" virtio_mmio.device={WINDOW_BYTES}@{:#x}:{}", p.address(), p.gsi))
        .collect();
    if let Some(boot) = config
        .boot
        .as_mut()
        .filter(|_| !has_acpi && config.machine.switches.get(AUTO_CMDLINE, true))
    {
        boot.cmdline += &told;
    }
    Ok(())
}

/// Compares the devices of a stream with those that are here.
fn missing(config: &Config, sections: &Sections) -> Option<Missing> {
    let here = plugged(config);
    let missing = |name: String, why: String| Some(Missing { name, instance: 0, why });
    for (header, section) in sections.iter() {
        let Some(state) = section.downcast_ref::<VirtioState>() else { continue };
        let Some(plugged) = here.iter().find(|plugged| plugged.section() == header.name) else {
            let why = "this machine has another device there, or none; give the -device options of the source, in \
                       the same order";
            return missing(header.name.clone(), why.into());
        };
        if let Err((field, why)) = saved::check(state, plugged.offered(config)) {
            return missing(header.name.clone(), format!("{field}: {why}"));
        }
        if let Err(why) = (plugged.driver.check)(plugged.device, config, &state.device) {
            return missing(header.name.clone(), why);
        }
    }
    let lost = here.iter().find(|plugged| !sections.contains(&plugged.section(), 0))?;
    missing(lost.section(), format!("missing; this machine has -device {}", lost.driver.name))
}

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let legacy = slots.config.machine.switches.get(FORCE_LEGACY, true);
    let plugged = plugged(slots.config);
    let (count, _) = transports(slots.config);
    let empty = (count - plugged.len()) as u64;
    if empty > 0 {
        slots.memory_window(
            TRANSPORTS,
            empty * WINDOW_BYTES,
            Arc::new(EmptyTransports { legacy }),
        )?;
    }
    let mut built: Built = Vec::new();
    for plugged in plugged {
        let model = (plugged.driver.open)(plugged.device, slots)?;
        let registers = Registers::new(legacy, plugged.offered(slots.config));
        let (ram, irq) = (slots.vm.ram().clone(), slots.irq(plugged.gsi));
        let transport = Transport::new(plugged.address(), registers, model, ram, irq)?;
        let transport = Arc::new(transport);
        slots.memory_window(plugged.address(), WINDOW_BYTES, transport.clone())?;
        slots.vm.ring_on_write(plugged.address() + QUEUE_NOTIFY, transport.bell())?;
        slots.describe(Place::Virtio, plugged.describe());
        built.push(transport);
    }
    Ok(built)
}

/// Transports without a device: a driver that probes one reads device id zero and leaves.
struct EmptyTransports {
    legacy: bool,
}

impl Window for EmptyTransports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = mmio::empty(self.legacy, offset % WINDOW_BYTES);
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Option<DeviceRequest> {
        None
    }
}

#[cfg(test)]
mod tests;
