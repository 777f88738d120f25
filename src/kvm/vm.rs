//! One VM: memory slots, interrupt lines, clock and chips.
//!
//! Unsafe because memory slots lend mappings to the kernel.
#![allow(unsafe_code)]

use super::caps::Caps;
use super::error::Error;
use super::rings::Rings;
use super::stats::{Statistic, Stats};
use super::turn::Turn;
use super::vcpu::Vcpu;
use super::{ioctl, msrs};
use crate::config;
use crate::memory::GuestRam;
use kvm_bindings::{
    CpuId, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting,
    kvm_clock_data, kvm_enable_cap, kvm_ioapic_state, kvm_irq_routing_entry, kvm_irqchip, kvm_msi,
    kvm_pic_state, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use std::ffi::CString;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Three pages for real mode on Intel and one for its page table, below the IOAPIC (QEMU's
/// addresses).
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// Pins of the in-kernel IOAPIC.
const IOAPIC_PINS: u32 = 24;

/// A virtual machine in the kernel.
pub struct Vm {
    fd: VmFd,
    caps: Caps,
    cpuid: CpuId,
    msr_list: Vec<u32>,
    mce_cap: u64,
    has_pit: bool,
    /// Dropped before `ram`: slots must not outlive what they map. (They die with `fd`.)
    rings: Option<Rings>,
    ram: GuestRam,
    /// Who wants KVM to log which pages are written.
    logging: Mutex<u32>,
    /// Whose the log is.
    turn: Turn,
    stats: Option<Stats>,
    /// Of each vCPU, taken before it runs: while it does, KVM gives them to nobody.
    vcpu_stats: Mutex<Vec<Option<Stats>>>,
    /// The guest's TSC rate, 0 where KVM does not tell.
    tsc_khz: AtomicU32,
}

impl Vm {
    /// Makes the VM with its interrupt controllers, and gives it `ram`.
    pub(crate) fn new(
        config: &config::Kvm,
        pit: bool,
        cpus: u32,
        ram: GuestRam,
    ) -> Result<Vm, Error> {
        let (kvm, caps) = open_for(config, cpus)?;
        let fd = kvm.create_vm().map_err(Error::call("KVM_CREATE_VM"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(Error::call("KVM_GET_SUPPORTED_CPUID"))?;
        let mce_cap = match caps.mce_banks {
            0 => 0,
            banks => msrs::mce_cap(ioctl::mce_cap_supported(&kvm).unwrap_or(0), banks),
        };
        let msr_list = msrs::list(&kvm, mce_cap)?;
        let rings = match config.dirty_ring_entries {
            Some(entries) => Some(Rings::enable(&fd, &caps, entries, ram.main().pages())?),
            None => None,
        };
        let has_pit = pit && caps.pit2;
        let tsc_khz = AtomicU32::new(0);
        let stats = Stats::of(&fd);
        let vm = Vm {
            fd,
            caps,
            cpuid,
            msr_list,
            mce_cap,
            has_pit,
            rings,
            ram,
            logging: Mutex::new(0),
            turn: Turn::default(),
            stats,
            vcpu_stats: Mutex::default(),
            tsc_khz,
        };
        vm.enable_caps()?;
        vm.map_slots(0)?;
        vm.create_chips()?;
        Ok(vm)
    }

    pub(crate) fn caps(&self) -> &Caps {
        &self.caps
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The CPUID table every vCPU starts from, before its own ids are put in.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Rate of the vCPUs' time stamp counters; 0 where KVM does not tell.
    pub(crate) fn tsc_khz(&self) -> u32 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    pub(super) fn set_tsc_khz(&self, khz: u32) {
        self.tsc_khz.store(khz, Ordering::Relaxed);
    }

    /// The MSRs that belong to a vCPU's state here.
    pub(crate) fn msr_list(&self) -> &[u32] {
        &self.msr_list
    }

    pub(super) fn rings(&self) -> Option<&Rings> {
        self.rings.as_ref()
    }

    /// Makes room in the dirty rings, for a vCPU that left the guest because its ring is full;
    /// returns how many entries became free.
    pub(crate) fn drain_rings(&self) -> Result<u32, Error> {
        match &self.rings {
            Some(rings) => rings.collect(&self.fd, &self.ram),
            None => Ok(0),
        }
    }

    /// A ring is full and stays full although nothing in it can be taken: KVM and we have lost each
    /// other. Every harvest fails from here on.
    pub(crate) fn give_up_rings(&self) {
        if let Some(rings) = &self.rings {
            rings.give_up();
        }
    }

    /// Makes a vCPU whose APIC has `apic_id` and which sees the CPUID table `cpuid`.
    pub(crate) fn create_vcpu(&self, apic_id: u32, cpuid: &CpuId) -> Result<Vcpu, Error> {
        let fd = self.fd.create_vcpu(apic_id.into()).map_err(Error::call("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(cpuid).map_err(Error::call("KVM_SET_CPUID2"))?;
        if self.mce_cap != 0 {
            ioctl::setup_mce(&fd, self.mce_cap).map_err(Error::raw("KVM_X86_SETUP_MCE"))?;
        }
        if let Some(rings) = &self.rings {
            rings.add(&fd)?;
        }
        self.vcpu_stats().push(Stats::of(&fd));
        if self.caps.get_tsc_khz {
            self.set_tsc_khz(fd.get_tsc_khz().unwrap_or(0));
        }
        Ok(Vcpu::new(fd))
    }

    /// What KVM counted of the VM; nothing where it does not count.
    pub(crate) fn statistics(&self) -> Result<Vec<Statistic>, Error> {
        read_stats(self.stats.as_ref())
    }

    /// The same of vCPU `index`, which may be running.
    pub(crate) fn vcpu_statistics(&self, index: usize) -> Result<Vec<Statistic>, Error> {
        read_stats(self.vcpu_stats().get(index).and_then(Option::as_ref))
    }

    fn vcpu_stats(&self) -> MutexGuard<'_, Vec<Option<Stats>>> {
        self.vcpu_stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives an interrupt line of PIC and IOAPIC.
    pub(crate) fn set_irq(&self, gsi: u32, level: bool) {
        // The only errors are a missing chip and a GSI without a route; neither can happen to a
        // built machine.
        let _ = self.fd.set_irq_line(gsi, level);
    }

    /// Whether interrupts can be sent as messages.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn check_messages(&self) -> Result<(), Error> {
        let why = "interrupts as messages (KVM_CAP_SIGNAL_MSI), which the second I/O APIC needs; write ioapic2=off";
        self.caps.signal_msi.then_some(()).ok_or(Error::Missing(why))
    }

    /// Sends an interrupt to local APICs, as a write of `data` to `address` would. One that nobody
    /// takes is lost.
    pub fn send_message(&self, address: u32, data: u32) {
        let _ = self.fd.signal_msi(kvm_msi { address_lo: address, data, ..Default::default() });
    }

    /// Makes KVM ring `bell`, an eventfd, when a vCPU writes to this guest-physical address, instead
    /// of leaving the guest. False: this KVM cannot, and the write is an access like any other.
    pub(crate) fn ring_on_write(&self, gpa: u64, bell: impl AsFd) -> Result<bool, Error> {
        if !self.caps.ioeventfd {
            return Ok(false);
        }
        let bell = bell.as_fd().try_clone_to_owned();
        let bell = bell.map_err(|source| Error::Call { call: "dup", source })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let bell = unsafe { EventFd::from_raw_fd(bell.into_raw_fd()) };
        let registered = self.fd.register_ioevent(&bell, &IoEventAddress::Mmio(gpa), NoDatamatch);
        registered.map(|()| true).map_err(Error::call("KVM_IOEVENTFD"))
    }

    /// Makes KVM log which pages vCPUs write. It goes on until each who asked for it has asked for
    /// its end.
    pub(super) fn begin_logging(&self) -> Result<(), Error> {
        let mut users = self.logging.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            // Some may log already.
            self.map_slots(KVM_MEM_LOG_DIRTY_PAGES).inspect_err(|_| drop(self.map_slots(0)))?;
        }
        *users += 1;
        Ok(())
    }

    /// The end of [`Vm::begin_logging`].
    pub(super) fn end_logging(&self) -> Result<(), Error> {
        let mut users = self.logging.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 { self.map_slots(0) } else { Ok(()) }
    }

    /// Whether KVM logs which pages vCPUs write, which costs the guest time.
    pub fn is_logging(&self) -> bool {
        *self.logging.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Entries of each vCPU's dirty ring; `None` without rings.
    pub(crate) fn ring_entries(&self) -> Option<u32> {
        self.rings.as_ref().map(Rings::entries)
    }

    /// How many pages vCPU `index` was seen to dirty, of what its ring held when rings were last
    /// collected; 0 without rings.
    pub(crate) fn dirtied_by(&self, index: usize) -> u64 {
        self.rings.as_ref().map_or(0, |rings| rings.taken_from(index))
    }

    /// Reads a PIC: 0 is the master, 1 the slave.
    pub(crate) fn read_pic(&self, number: u32) -> Result<kvm_pic_state, Error> {
        let chip = self.irqchip(number & 1)?;
        // SAFETY: chips 0 and 1 are PICs, so that the kernel filled this member.
        Ok(unsafe { chip.chip.pic })
    }

    pub(crate) fn write_pic(&self, number: u32, state: &kvm_pic_state) -> Result<(), Error> {
        let mut chip = kvm_irqchip { chip_id: number & 1, ..Default::default() };
        chip.chip.pic = *state;
        self.fd.set_irqchip(&chip).map_err(Error::call("KVM_SET_IRQCHIP"))
    }

    pub(crate) fn read_ioapic(&self) -> Result<kvm_ioapic_state, Error> {
        // SAFETY: chip 2 is the IOAPIC.
        Ok(unsafe { self.irqchip(KVM_IRQCHIP_IOAPIC)?.chip.ioapic })
    }

    pub(crate) fn write_ioapic(&self, state: &kvm_ioapic_state) -> Result<(), Error> {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        chip.chip.ioapic = *state;
        self.fd.set_irqchip(&chip).map_err(Error::call("KVM_SET_IRQCHIP"))
    }

    /// Zeros if the machine has no PIT.
    pub(crate) fn read_pit(&self) -> Result<kvm_pit_state2, Error> {
        if !self.has_pit {
            return Ok(kvm_pit_state2::default());
        }
        self.fd.get_pit2().map_err(Error::call("KVM_GET_PIT2"))
    }

    /// Writes the PIT alone, which also forgets ticks that piled up while the guest stood still.
    pub(crate) fn write_pit(&self, pit: &kvm_pit_state2) -> Result<(), Error> {
        if !self.has_pit {
            return Ok(());
        }
        self.fd.set_pit2(pit).map_err(Error::call("KVM_SET_PIT2"))
    }

    /// kvmclock's time.
    pub(crate) fn clock(&self) -> Result<kvm_clock_data, Error> {
        if !self.caps.adjust_clock {
            return Ok(kvm_clock_data::default());
        }
        self.fd.get_clock().map_err(Error::call("KVM_GET_CLOCK"))
    }

    /// Sets kvmclock to `ns`: guest time goes on where it stood still.
    pub(crate) fn set_clock(&self, ns: u64) -> Result<(), Error> {
        if !self.caps.adjust_clock {
            return Ok(());
        }
        let clock = kvm_clock_data { clock: ns, ..Default::default() };
        self.fd.set_clock(&clock).map_err(Error::call("KVM_SET_CLOCK"))
    }

    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip, Error> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.fd.get_irqchip(&mut chip).map_err(Error::call("KVM_GET_IRQCHIP"))?;
        Ok(chip)
    }

    fn enable_caps(&self) -> Result<(), Error> {
        let enable = |cap: u32, arg: u64| {
            let mut cap = kvm_enable_cap { cap, ..Default::default() };
            cap.args[0] = arg;
            self.fd.enable_cap(&cap).map_err(Error::call("KVM_ENABLE_CAP"))
        };
        if self.caps.manual_dirty_protect != 0 && self.rings.is_none() {
            enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, self.caps.manual_dirty_protect)?;
        }
        if self.caps.triple_fault_event {
            enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)?;
        }
        Ok(())
    }

    fn map_slots(&self, flags: u32) -> Result<(), Error> {
        let main = self.ram.main();
        for (slot, region) in main.regions().iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: region.gpa,
                memory_size: region.bytes,
                userspace_addr: main.host() as u64 + region.offset,
            };
            // SAFETY: the range lies in the block's mapping, which `self.ram` keeps for as long as
            // the VM.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(Error::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    fn create_chips(&self) -> Result<(), Error> {
        if self.caps.set_identity_map {
            let call = Error::call("KVM_SET_IDENTITY_MAP_ADDR");
            self.fd.set_identity_map_address(IDENTITY_MAP).map_err(call)?;
        }
        self.fd.set_tss_address(TSS).map_err(Error::call("KVM_SET_TSS_ADDR"))?;
        self.fd.create_irq_chip().map_err(Error::call("KVM_CREATE_IRQCHIP"))?;
        self.fd.set_gsi_routing(&isa_routes()).map_err(Error::call("KVM_SET_GSI_ROUTING"))?;
        if self.has_pit {
            let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            self.fd.create_pit2(config).map_err(Error::call("KVM_CREATE_PIT2"))?;
        }
        Ok(())
    }
}

fn read_stats(stats: Option<&Stats>) -> Result<Vec<Statistic>, Error> {
    let read = stats.map_or_else(|| Ok(Vec::new()), Stats::read);
    read.map_err(Error::raw("reading KVM's statistics"))
}

/// PC wiring, as QEMU has it: ISA interrupts reach both chips, except that the timer (0) arrives at
/// IOAPIC pin 2 and the cascade (2) at no pin.
fn isa_routes() -> KvmIrqRouting {
    let mut routes = Vec::new();
    let mut route = |gsi, irqchip, pin| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        routes.push(entry);
    };
    for gsi in 0..8 {
        route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi);
        route(gsi + 8, KVM_IRQCHIP_PIC_SLAVE, gsi);
    }
    for gsi in (0..IOAPIC_PINS).filter(|&gsi| gsi != 2) {
        route(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi });
    }
    KvmIrqRouting::from_entries(&routes).expect("39 routes are fewer than KVM_MAX_IRQ_ROUTES")
}

/// Finds out whether KVM is there and runs so many vCPUs.
pub(crate) fn check(config: &config::Kvm, cpus: u32) -> Result<(), Error> {
    open_for(config, cpus).map(drop)
}

fn open_for(config: &config::Kvm, cpus: u32) -> Result<(Kvm, Caps), Error> {
    let kvm = open(&config.device)?;
    let caps = Caps::of(&kvm)?;
    if cpus > caps.vcpus_max {
        return Err(Error::TooManyCpus { wanted: cpus, max: caps.vcpus_max });
    }
    Ok((kvm, caps))
}

fn open(path: &Path) -> Result<Kvm, Error> {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let opened = Kvm::open_with_cloexec_at(name, true);
    let fd = opened.map_err(|e| Error::Open {
        path: path.into(),
        source: std::io::Error::from_raw_os_error(e.errno()),
    })?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let kvm = unsafe { Kvm::from_raw_fd(fd) };
    if kvm.get_api_version() == 12 { Ok(kvm) } else { Err(Error::NotKvm(path.into())) }
}

/// The redirection table of an I/O APIC, each entry as the number it is for the guest.
pub(crate) fn redirections(ioapic: &kvm_ioapic_state) -> [u64; IOAPIC_PINS as usize] {
    // SAFETY: both fields of the union are eight bytes of plain integers, so that every value is a
    // number.
    ioapic.redirtbl.map(|entry| unsafe { entry.bits })
}
