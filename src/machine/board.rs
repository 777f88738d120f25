//! The microvm's devices, and where they answer.

use crate::arch::x86_64::boot;
use crate::config::{Config, Topology};
use crate::devices::IrqLine;
use crate::devices::bus::Bus;
use crate::devices::fw_cfg::{self, FwCfg, Items, key};
use crate::devices::serial::{self, Serial};
use crate::devices::virtio_mmio::{EmptyTransports, WINDOW_BYTES};
use crate::devices::vmcoreinfo::{self, VmCoreInfo};
use crate::kvm::{Exit, Vm};
use crate::memory::{self, GuestRam};
use std::io::Write;
use std::sync::Arc;

/// virtio-mmio transports of the variant without ACPI; transport i interrupts at GSI 5 + i.
const VIRTIO: u64 = 0xfeb0_0000;
const TRANSPORTS: u64 = 8;

/// Everything that answers in this process.
pub struct Board {
    ram: GuestRam,
    ports: Bus,
    mmio: Bus,
    pub serial: Option<Arc<Serial>>,
    pub fw_cfg: Arc<FwCfg>,
    pub vmcoreinfo: Option<Arc<VmCoreInfo>>,
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

impl Board {
    pub fn new(config: &Config, vm: &Arc<Vm>, sink: Option<Box<dyn Write + Send>>) -> Board {
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let serial = config.board.isa_serial.then(|| {
            let irq = Gsi { vm: vm.clone(), gsi: serial::IRQ };
            let sink = sink.unwrap_or_else(|| Box::new(std::io::sink()));
            Arc::new(Serial::new(Box::new(irq), sink))
        });
        if let Some(serial) = &serial {
            ports.insert(serial::PORT, serial::PORTS, serial.clone());
        }
        let vmcoreinfo = config.board.vmcoreinfo.then(|| Arc::new(VmCoreInfo::default()));
        let mut items = items(config, vm.ram());
        if let Some(device) = &vmcoreinfo {
            items.add_writable_file(vmcoreinfo::FILE, device.clone());
        }
        let fw_cfg = Arc::new(FwCfg::new(items, vm.ram().clone()));
        ports.insert(fw_cfg::PORT, fw_cfg::PORTS, fw_cfg.clone());
        mmio.insert(VIRTIO, TRANSPORTS * WINDOW_BYTES, Arc::new(EmptyTransports));
        Board { ram: vm.ram().clone(), ports, mmio, serial, fw_cfg, vmcoreinfo }
    }

    /// Serves an access; false if the exit is none.
    ///
    /// KVM makes an access to RAM whose page it cannot have (a full tmpfs, a file cut short) one to
    /// a device, or ends the run with `EFAULT`.
    pub fn serve(&self, exit: Exit<'_>) -> Result<(), Unserved> {
        match exit {
            Exit::MmioRead { gpa, .. } | Exit::MmioWrite { gpa, .. }
                if self.ram.main().offset(gpa).is_some() =>
            {
                return Err(self.no_memory(Some(gpa)));
            }
            Exit::NoMemory { gpa } => return Err(self.no_memory(gpa)),
            Exit::PortIn { port, size, data } => self.ports.read(port.into(), size, data),
            Exit::PortOut { port, size, data } => self.ports.write(port.into(), size, data),
            Exit::MmioRead { gpa, data } => self.mmio.read(gpa, data.len(), data),
            Exit::MmioWrite { gpa, data } => self.mmio.write(gpa, data.len(), data),
            Exit::Interrupted => return Err(Unserved::Interrupted),
            Exit::RingFull => return Err(Unserved::RingFull),
            Exit::Halt => return Err(Unserved::Halt),
            Exit::TripleFault | Exit::ResetRequest => return Err(Unserved::Reset),
            Exit::ShutdownRequest => return Err(Unserved::Shutdown),
            Exit::Crash => return Err(Unserved::Panic),
            Exit::Broken(why) => return Err(Unserved::Broken(why)),
        }
        Ok(())
    }

    fn no_memory(&self, gpa: Option<u64>) -> Unserved {
        let offset = gpa.and_then(|gpa| self.ram.main().offset(gpa)).unwrap_or(0);
        Unserved::NoMemory(self.ram.main().missing(offset))
    }

    /// As after power-on. Interrupt lines fall.
    pub fn reset(&self) {
        if let Some(serial) = &self.serial {
            serial.reset();
        }
        self.fw_cfg.reset();
        if let Some(device) = &self.vmcoreinfo {
            device.reset();
        }
    }
}

/// Exits that are no accesses, and so are the machine's business.
pub enum Unserved {
    Interrupted,
    RingFull,
    Halt,
    Reset,
    Shutdown,
    Panic,
    /// The host has no page for guest memory.
    NoMemory(memory::Error),
    Broken(String),
}

fn items(config: &Config, ram: &GuestRam) -> Items {
    let cpus = u16::from(config.cpu.count);
    // Not how many: one more than the last APIC id.
    let Topology { sockets, .. } = config.cpu.topology;
    let last = u32::from(sockets) * config.cpu.topology.per_socket() - 1;
    let ids = config.cpu.topology.apic_id(last) as u16 + 1;
    let mut items = Items::new();
    items.add(key::UUID, config.identity.uuid.to_vec());
    items.add(key::RAM_SIZE, ram.bytes().to_le_bytes().to_vec());
    items.add(key::NOGRAPHIC, 1u16.to_le_bytes().to_vec());
    items.add(key::BOOT_MENU, 0u16.to_le_bytes().to_vec());
    items.add(key::NB_CPUS, cpus.to_le_bytes().to_vec());
    items.add(key::MAX_CPUS, ids.to_le_bytes().to_vec());
    if let Some(boot) = &config.boot {
        let cmdline = [boot.cmdline.as_bytes(), b"\0"].concat();
        items.add(key::CMDLINE_SIZE, (cmdline.len() as u32).to_le_bytes().to_vec());
        items.add(key::CMDLINE_DATA, cmdline);
    }
    items.add_file("etc/e820", boot::e820_file(ram));
    items
}
