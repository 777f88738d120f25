//! The list of all there is on the board, and what is done with the whole of it.

use super::global_state;
use crate::block;
use crate::devices::bus::Bus;
use crate::devices::{
    Built, Device, DeviceRequest, Error, Kind, LoadReport, Loading, Sections, Slots, acpi, clock,
    debug_exit, fw_cfg, ged, ioapic, kvmclock, pic, pit, processors, reset_vector, rtc, serial,
    smbios, virtio, vmcoreinfo,
};
use crate::kvm::Exit;
use crate::kvm::state::ForeignTsc;
use crate::memory::{self, GuestRam};
use std::any::Any;

/// Every kind of device, in the order in which QEMU has their sections.
pub(crate) static PARTS: &[&Kind] = &[
    &clock::KIND,
    &fw_cfg::KIND,
    &processors::KIND,
    &ioapic::KIND,
    &ioapic::second::KIND,
    &kvmclock::KIND,
    &ged::KIND,
    &pic::KIND,
    &pit::KIND,
    &rtc::KIND,
    &serial::KIND,
    &vmcoreinfo::KIND,
    &debug_exit::KIND,
    &block::KIND,
    &virtio::TRANSPORT,
    &virtio::BLOCK,
    &virtio::NET,
    &virtio::CONSOLE,
    &virtio::VIRTCONSOLE,
    &virtio::VIRTSERIALPORT,
    &virtio::RNG,
    &virtio::BALLOON,
    &virtio::FS,
    &smbios::KIND,
    &reset_vector::KIND,
    // Its tables name those before it.
    &acpi::KIND,
    &global_state::KIND,
];

/// The devices of one machine.
pub(crate) struct Board {
    ram: GuestRam,
    ports: Bus,
    mmio: Bus,
    devices: Built,
    /// Of what kind each of them is.
    kinds: Vec<&'static Kind>,
}

impl Board {
    pub(crate) fn new(mut slots: Slots<'_>) -> Result<Board, Error> {
        let (mut devices, mut kinds) = (Vec::new(), Vec::new());
        for kind in PARTS {
            devices.extend((kind.build)(&mut slots)?);
            kinds.resize(devices.len(), *kind);
        }
        let ram = slots.vm.ram().clone();
        Ok(Board { ram, ports: slots.ports, mmio: slots.mmio, devices, kinds })
    }

    /// The first device of this type.
    pub(crate) fn device<D: Device>(&self) -> Option<&D> {
        self.devices.iter().find_map(|device| (&**device as &dyn Any).downcast_ref())
    }

    /// All that stands on it.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static Kind, &dyn Device)> {
        self.kinds.iter().copied().zip(self.devices.iter().map(|device| &**device))
    }

    /// Serves an access.
    ///
    /// KVM makes an access to RAM whose page it cannot have (a full tmpfs, a file cut short) one to
    /// a device, or ends the run with `EFAULT`.
    pub(crate) fn serve(&self, exit: Exit<'_>) -> Result<(), UnhandledExit> {
        let request = match exit {
            Exit::MmioRead { gpa, .. } | Exit::MmioWrite { gpa, .. }
                if self.ram.main().offset(gpa).is_some() =>
            {
                return Err(self.no_memory(Some(gpa)));
            }
            Exit::NoMemory { gpa } => return Err(self.no_memory(gpa)),
            Exit::PortIn { port, size, data } => {
                self.ports.read(port.into(), size, data);
                None
            }
            Exit::PortOut { port, size, data } => self.ports.write(port.into(), size, data),
            Exit::MmioRead { gpa, data } => {
                self.mmio.read(gpa, data.len(), data);
                None
            }
            Exit::MmioWrite { gpa, data } => self.mmio.write(gpa, data.len(), data),
            Exit::Interrupted => return Err(UnhandledExit::Interrupted),
            Exit::RingFull => return Err(UnhandledExit::RingFull),
            Exit::Halt => return Err(UnhandledExit::Halt),
            Exit::TripleFault | Exit::ResetRequest => return Err(UnhandledExit::Reset),
            Exit::ShutdownRequest => return Err(UnhandledExit::Shutdown),
            Exit::Crash => return Err(UnhandledExit::Panic),
            Exit::Broken(why) => return Err(UnhandledExit::Broken(why)),
        };
        request.map_or(Ok(()), |request| Err(UnhandledExit::Device(request)))
    }

    fn no_memory(&self, gpa: Option<u64>) -> UnhandledExit {
        let offset = gpa.and_then(|gpa| self.ram.main().offset(gpa)).unwrap_or(0);
        UnhandledExit::NoMemory(self.ram.main().missing(offset))
    }

    /// As after power-on.
    pub(crate) fn reset(&self) -> Result<(), Error> {
        self.devices.iter().try_for_each(|device| device.reset())
    }

    pub(crate) fn power_button(&self) {
        self.devices.iter().for_each(|device| device.power_button());
    }

    pub(crate) fn quiesce(&self) -> Result<(), Error> {
        self.devices.iter().try_for_each(|device| device.quiesce())
    }

    /// In the other direction: what was stopped first, the clock, goes on last.
    pub(crate) fn resume(&self) -> Result<(), Error> {
        self.devices.iter().rev().try_for_each(|device| device.resume())
    }

    /// Takes what only one machine may have; nothing is kept of it after an error.
    pub(crate) fn claim(&self) -> Result<(), Error> {
        let claimed = self.devices.iter().try_for_each(|device| device.claim());
        claimed.inspect_err(|_| {
            if let Err(error) = self.let_go() {
                say!("godwit: {error}");
            }
        })
    }

    /// Why a guest of this machine can be neither migrated nor dumped while it runs.
    pub(crate) fn keeps_guest(&self) -> Option<&'static str> {
        self.devices.iter().find_map(|device| device.keeps_guest())
    }

    /// What the guest wrote, to where other machines find it.
    pub(crate) fn store(&self) -> Result<(), Error> {
        self.devices.iter().try_for_each(|device| device.store())
    }

    /// Gives back what only one machine may have: all that it can, and tells the first error.
    pub(crate) fn let_go(&self) -> Result<(), Error> {
        let given: Vec<_> = self.devices.iter().map(|device| device.let_go()).collect();
        given.into_iter().collect()
    }

    pub(crate) fn save(&self) -> Result<Sections, Error> {
        let mut sections = Sections::default();
        self.devices.iter().try_for_each(|device| device.save(&mut sections))?;
        Ok(sections)
    }

    pub(crate) fn load(
        &self,
        sections: &Sections,
        foreign: ForeignTsc,
    ) -> Result<LoadReport, Error> {
        let mut from = Loading { sections, foreign, report: LoadReport::default() };
        self.devices.iter().try_for_each(|device| device.load(&mut from))?;
        Ok(from.report)
    }
}

/// Exits that are no accesses, or that ask for more than an answer: the machine's business.
pub(crate) enum UnhandledExit {
    Interrupted,
    RingFull,
    Halt,
    Reset,
    Shutdown,
    Panic,
    /// The host has no page for guest memory.
    NoMemory(memory::Error),
    /// What a device wants.
    Device(DeviceRequest),
    Broken(String),
}
