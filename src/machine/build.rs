//! Putting a machine together, and starting it over.

use super::board::Board;
use super::cpus::{Cpus, Threads, Wish};
use super::gate::Gate;
use super::throttle::Throttle;
use super::{Control, Error, Event, Machine, Outside, RunState, VcpuInfo};
use crate::arch::x86_64::{boot, cpuid};
use crate::config::{Config, Memory, MemoryBackend};
use crate::kvm::state::ForeignTsc;
use crate::kvm::{self, Vcpu, Vm};
use crate::memory::GuestRam;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Condvar, Mutex, Once, OnceLock, Weak};

/// LAPIC registers of KVM's flat image, and the modes firmware gives the local interrupts.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const MODE_EXTINT: u32 = 7 << 8;
const MODE_NMI: u32 = 4 << 8;
/// IA32_MTRR_DEF_TYPE: enabled, write-back. Firmware sets it; without it Linux believes that RAM is
/// uncached.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 0x806;

impl Machine {
    /// Makes the VM, its RAM, devices and vCPU threads (standing still), and loads the kernel
    /// unless the guest comes by migration. The run state is then `prelaunch`, or `inmigrate` with
    /// `-incoming`; [`Machine::cont`] starts the guest.
    pub fn build(config: &Config, outside: Outside) -> Result<Arc<Machine>, Error> {
        let count = u32::from(config.cpu.count);
        let ram = GuestRam::new(&config.memory)?;
        let vm = Arc::new(Vm::new(&config.kvm, config.board.pit, count, ram)?);
        let vcpus = create_vcpus(&vm, count)?;
        if config.incoming.is_none() {
            power_on(config, &vm, &vcpus)?;
        }
        let board = Board::new(config, &vm, outside.serial);
        let machine: Arc<OnceLock<Weak<Machine>>> = Arc::default();
        let wishes = machine.clone();
        let cpus = Arc::new(Cpus {
            vm,
            board,
            gate: Gate::new(count as usize),
            vcpus: vcpus.into_iter().map(kvm::Shared::new).collect(),
            throttle_percent: AtomicU8::new(0),
            wish: Box::new(move |wish| grant(&wishes, wish)),
        });
        let threads = Threads::start(&cpus)?;
        let infos = threads.ids.iter().enumerate();
        let infos = infos.map(|(i, &thread_id)| VcpuInfo { index: i as u32, thread_id }).collect();
        let state =
            if config.incoming.is_some() { RunState::InMigrate } else { RunState::Prelaunch };
        let built = Arc::new(Machine {
            config: config.clone(),
            cpus,
            infos,
            events: outside.events,
            state: AtomicU8::new(0),
            control: Mutex::new(Control {
                state,
                virtual_ns: 0,
                running_since: None,
                stopped_time: None,
                gone: false,
                frozen: false,
                waiting: 0,
            }),
            thawed: Condvar::new(),
            threads: Mutex::new(threads),
            throttle: Mutex::new(Throttle::default()),
            actions: Mutex::new(config.actions),
            started: Once::new(),
        });
        let _ = machine.set(Arc::downgrade(&built));
        built.enter(&mut built.control(), state);
        Ok(built)
    }

    /// vCPUs, chips and devices as after power-on, the kernel loaded again. The vCPUs stand still.
    ///
    /// KVM has no reset: the state comes from a machine that was never started.
    pub(super) fn start_over(&self) -> Result<(), Error> {
        let fresh = Fresh::new(&self.config)?;
        for (index, vcpu) in self.cpus.vcpus.iter().enumerate() {
            let state = fresh.vcpus[index].read_state(&fresh.vm)?;
            vcpu.lock().write_state(self.vm(), &state, ForeignTsc::Refuse)?;
        }
        self.vm().write_state(&fresh.vm.read_state()?)?;
        self.cpus.board.reset();
        if let Some(boot) = &self.config.boot {
            let entry = boot::load(boot, self.ram(), self.cpus.vcpus.len() as u32)?;
            for (index, vcpu) in self.cpus.vcpus.iter().enumerate() {
                firmware_state(&vcpu.lock(), (index == 0).then_some(entry))?;
            }
        }
        Ok(())
    }
}

fn create_vcpus(vm: &Vm, count: u32) -> Result<Vec<Vcpu>, kvm::Error> {
    let create =
        |index| vm.create_vcpu(index, &cpuid::for_vcpu(vm.cpuid(), index, count, vm.caps()));
    (0..count).map(create).collect()
}

/// A VM like ours that nobody has run.
struct Fresh {
    vm: Vm,
    vcpus: Vec<Vcpu>,
}

impl Fresh {
    fn new(config: &Config) -> Result<Fresh, Error> {
        let count = u32::from(config.cpu.count);
        let ram = GuestRam::new(&Memory {
            bytes: 1 << 20,
            block: String::new(),
            backend: MemoryBackend::Anonymous { share: false },
            prealloc: false,
            merge: false,
            dump: false,
        })?;
        let kvm = crate::config::Kvm { dirty_ring_entries: None, ..config.kvm.clone() };
        let vm = Vm::new(&kvm, config.board.pit, count, ram)?;
        Ok(Fresh { vcpus: create_vcpus(&vm, count)?, vm })
    }
}

/// Loads the kernel and leaves the vCPUs as firmware would.
fn power_on(config: &Config, vm: &Vm, vcpus: &[Vcpu]) -> Result<(), Error> {
    let entry = match &config.boot {
        Some(boot) => Some(boot::load(boot, vm.ram(), vcpus.len() as u32)?),
        None => None,
    };
    for (index, vcpu) in vcpus.iter().enumerate() {
        firmware_state(vcpu, entry.filter(|_| index == 0))?;
    }
    Ok(())
}

/// Local interrupts wired for a PIC and an NMI button, memory cached; the first vCPU at the
/// kernel's entry.
fn firmware_state(vcpu: &Vcpu, entry: Option<boot::Entry>) -> Result<(), Error> {
    let mut lapic = vcpu.lapic()?;
    for (register, mode) in [(LAPIC_LINT0, MODE_EXTINT), (LAPIC_LINT1, MODE_NMI)] {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value as _;
        }
    }
    vcpu.set_lapic(&lapic)?;
    vcpu.write_msrs(&[(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)])?;
    if let Some(entry) = entry {
        let mut sregs = vcpu.sregs()?;
        entry.set_sregs(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&entry.regs())?;
    }
    Ok(())
}

/// Hands a vCPU's wish to the machine on a thread that may stop vCPUs, which the vCPU's own cannot.
fn grant(machine: &OnceLock<Weak<Machine>>, wish: Wish) {
    let Some(machine) = machine.get().and_then(Weak::upgrade) else { return };
    let fallback = machine.clone();
    let granted =
        std::thread::Builder::new().name("guest-wish".into()).spawn(move || machine.fulfil(wish));
    if let Err(e) = granted {
        // The vCPU stays held; a person sees why, and can reset.
        (fallback.events)(Event::InternalError {
            vcpu: 0,
            why: format!("cannot start a thread: {e}"),
        });
    }
}
