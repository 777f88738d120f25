//! The board while it is put together: what devices are built from and where they are put.

use super::bus::{Bus, Window};
use super::device::{Device, DiskEvents, IrqLine, PortEvents};
use super::error::Error;
use super::fw_cfg::items::Items;
use super::host_cpu::HostCpu;
use super::line::Lines;
use super::network::Networks;
use super::virtio::balloon::control::BalloonControl;
use super::virtual_clock::VirtualClock;
use crate::arch::x86_64::acpi::SECOND_IOAPIC_GSI;
use crate::block::Images;
use crate::config::{Config, Properties};
use crate::kvm::{self, Vm};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// I/O ports of a PC.
const PORTS: u64 = 1 << 16;

/// The devices that a [`super::Kind`] put on the board, in the order of their sections.
pub(crate) type Built = Vec<Arc<dyn Device>>;

/// Where a device stands in the tables of ACPI: as in QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    FirmwareConfiguration,
    Serial,
    Clock,
    Events,
    Virtio,
}

/// Gives the interrupt line of a number.
type LineOf = Box<dyn Fn(u32) -> Box<dyn IrqLine>>;

/// What devices are built from, and what they are connected to.
pub(crate) struct Slots<'a> {
    pub config: &'a Config,
    pub vm: &'a Arc<Vm>,
    pub vcpus: &'a Arc<Vec<kvm::Shared>>,
    pub clock: &'a Arc<VirtualClock>,
    /// The output of the first serial port; `None` loses it.
    pub console: Option<Box<dyn Write + Send>>,
    /// What ports are connected to.
    pub lines: Lines,
    /// What disks are made of.
    pub(crate) images: Arc<Images>,
    /// Who hears of what the host could not do for them.
    pub disk_events: DiskEvents,
    /// Who hears of what guests do with the ports of virtio-serial.
    pub port_events: PortEvents,
    /// What others do with the guest's balloon, if it has one.
    pub balloon: Arc<BalloonControl>,
    /// What network cards are connected to.
    pub networks: Arc<dyn Networks>,
    /// I/O ports and memory addresses at which somebody answers.
    pub ports: Bus,
    pub mmio: Bus,
    pub(super) items: Arc<Mutex<Items>>,
    /// What ACPI says of the devices, each with its place.
    pub(super) described: Vec<(Place, Vec<u8>)>,
    /// The lines from [`SECOND_IOAPIC_GSI`] on, counted from there, where there are any.
    pub(super) further_lines: Option<LineOf>,
}

impl<'a> Slots<'a> {
    pub(crate) fn new(
        config: &'a Config,
        vm: &'a Arc<Vm>,
        vcpus: &'a Arc<Vec<kvm::Shared>>,
        clock: &'a Arc<VirtualClock>,
        console: Option<Box<dyn Write + Send>>,
        lines: Lines,
        networks: Arc<dyn Networks>,
    ) -> Slots<'a> {
        let (ports, mmio) = (Bus::default(), Bus::default());
        let items = Arc::new(Mutex::new(Items::new()));
        let (images, disk_events) = (Arc::default(), Arc::new(|_| {}));
        Slots {
            config,
            vm,
            vcpus,
            clock,
            console,
            lines,
            networks,
            images,
            disk_events,
            port_events: Arc::new(|_, _| {}),
            balloon: Arc::new(BalloonControl::new(config.memory.bytes)),
            ports,
            mmio,
            items,
            described: Vec::new(),
            further_lines: None,
        }
    }

    /// Puts `device` at the I/O ports from `first` on.
    pub(crate) fn port_window(
        &mut self,
        first: u64,
        ports: u64,
        device: Arc<dyn Window>,
    ) -> Result<(), Error> {
        let free = first.saturating_add(ports) <= PORTS && self.ports.insert(first, ports, device);
        free.then_some(()).ok_or(Error::Taken { what: "I/O ports", start: first, count: ports })
    }

    /// Puts `device` at guest-physical addresses.
    pub(crate) fn memory_window(
        &mut self,
        start: u64,
        bytes: u64,
        device: Arc<dyn Window>,
    ) -> Result<(), Error> {
        let free = self.mmio.insert(start, bytes, device);
        free.then_some(()).ok_or(Error::Taken { what: "guest addresses", start, count: bytes })
    }

    /// The interrupt line of this number.
    pub(crate) fn irq(&self, gsi: u32) -> Box<dyn IrqLine> {
        match (&self.further_lines, gsi.checked_sub(SECOND_IOAPIC_GSI)) {
            (Some(line), Some(pin)) => line(pin),
            _ => Box::new(Gsi { vm: self.vm.clone(), gsi }),
        }
    }

    /// Adds the AML of a device to what ACPI tells the guest, if it tells anything.
    pub(crate) fn describe(&mut self, place: Place, aml: Vec<u8>) {
        self.described.push((place, aml));
    }

    /// What fw_cfg tells the guest.
    pub(crate) fn items(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn host(&self) -> HostCpu {
        HostCpu::from_cpuid(self.vm.cpuid().as_slice())
    }

    /// The properties of each `-device DRIVER`.
    pub(crate) fn wanted<T: Properties>(&self, driver: &str) -> Vec<&'a T> {
        let devices = self.config.devices.iter().filter(|device| device.driver == driver);
        devices.filter_map(|device| device.properties.downcast_ref()).collect()
    }
}

struct Gsi {
    vm: Arc<Vm>,
    gsi: u32,
}

impl IrqLine for Gsi {
    fn set(&self, high: bool) {
        self.vm.set_irq(self.gsi, high);
    }
}
