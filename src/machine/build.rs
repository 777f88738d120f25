//! Putting a machine together, and starting it over.

use super::board::Board;
use super::cpus::{Cpus, Threads, Wish};
use super::gate::Gate;
use super::throttle::Throttle;
use super::{Control, Error, Machine, Outside, RunState, VcpuInfo};
use crate::arch::x86_64::boot::{self, Images};
use crate::arch::x86_64::cpuid;
use crate::config::{Config, Cpu};
use crate::kvm::state::{ForeignTsc, VcpuState, VmState};
use crate::kvm::{self, Vcpu, Vm};
use crate::memory::GuestRam;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, Weak, mpsc};
use std::thread::Builder;

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
    /// Finds out whether KVM, kernel and initrd are there and fit, by looking alone: nothing outside
    /// of this process is touched, and little memory.
    pub fn check(config: &Config) -> Result<(), Error> {
        let cpus = u32::from(config.cpu.count);
        kvm::check(&config.kvm, cpus)?;
        if let Some(boot) = &config.boot {
            Images::open(boot)?.check(config.memory.bytes, &config.cpu)?;
        }
        Ok(())
    }

    /// Makes the VM, its RAM, devices and vCPU threads (standing still), and loads the kernel
    /// unless the guest comes by migration. The run state is then `prelaunch`, or `inmigrate` with
    /// `-incoming`; [`Machine::cont`] starts the guest.
    pub fn build(config: &Config, outside: Outside) -> Result<Arc<Machine>, Error> {
        let count = u32::from(config.cpu.count);
        let mut images = config.boot.as_ref().map(Images::open).transpose()?;
        let ram = GuestRam::new(&config.memory)?;
        let vm = Arc::new(Vm::new(&config.kvm, config.board.pit, count, ram)?);
        let mut vcpus = create_vcpus(&vm, &config.cpu)?;
        let power_on = PowerOn::of(&vm, &vcpus)?;
        vcpus[0].prepare()?;
        if config.incoming.is_none() {
            let entry =
                images.as_mut().map(|images| images.load(vm.ram(), &config.cpu)).transpose()?;
            for (index, vcpu) in vcpus.iter().enumerate() {
                firmware_state(vcpu, entry.filter(|_| index == 0))?;
            }
        }
        let board = Board::new(config, &vm, outside.serial);
        let (requests, requested) = mpsc::channel();
        let wishes = Arc::new(AtomicUsize::new(0));
        let raised = wishes.clone();
        let cpus = Arc::new(Cpus {
            vm,
            board,
            gate: Gate::new(count as usize),
            vcpus: vcpus.into_iter().map(kvm::Shared::new).collect(),
            throttle_percent: AtomicU8::new(0),
            losses: AtomicU64::new(0),
            wish: Box::new(move |wish| {
                raised.fetch_add(1, Ordering::SeqCst);
                // Nobody listens any more when the machine is being dropped.
                let _ = requests.send(wish);
            }),
        });
        let threads = Threads::start(&cpus)?;
        let infos = threads.ids.iter().enumerate();
        let infos = infos.map(|(i, &thread_id)| {
            let index = i as u32;
            VcpuInfo { index, position: config.cpu.topology.position(index), thread_id }
        });
        let infos = infos.collect();
        let state =
            if config.incoming.is_some() { RunState::InMigrate } else { RunState::Prelaunch };
        let built = Arc::new(Machine {
            config: config.clone(),
            cpus,
            infos,
            events: outside.events,
            state: AtomicU8::new(0),
            moment: AtomicU8::new(0),
            control: Mutex::new(Control {
                state,
                virtual_ns: 0,
                running_since: None,
                stopped_time: None,
                gone: false,
                hold: None,
                put_off: Vec::new(),
                images,
            }),
            power_on,
            wishes,
            granted: Condvar::new(),
            threads: Mutex::new(threads),
            throttle: Mutex::new(Throttle::default()),
            actions: Mutex::new(config.actions),
            started: Once::new(),
        });
        let machine = Arc::downgrade(&built);
        Builder::new()
            .name("guest-requests".into())
            .spawn(move || serve(&machine, &requested))
            .map_err(Error::Thread)?;
        built.enter(&mut built.control(), state);
        Ok(built)
    }

    /// vCPUs, chips and devices as after power-on, the kernel loaded again. The vCPUs stand still.
    pub(super) fn start_over(&self, images: Option<&mut Images>) -> Result<(), Error> {
        let PowerOn { vcpus, vm } = &self.power_on;
        for (vcpu, state) in self.cpus.vcpus.iter().zip(vcpus) {
            vcpu.lock().write_state(self.vm(), state, ForeignTsc::Refuse)?;
        }
        self.vm().write_state(vm)?;
        self.cpus.board.reset();
        if let Some(images) = images {
            let entry = images.load(self.ram(), &self.config.cpu)?;
            for (index, vcpu) in self.cpus.vcpus.iter().enumerate() {
                firmware_state(&vcpu.lock(), (index == 0).then_some(entry))?;
            }
        }
        Ok(())
    }
}

fn create_vcpus(vm: &Vm, cpus: &Cpu) -> Result<Vec<Vcpu>, kvm::Error> {
    let create = |index| {
        let cpuid = cpuid::for_vcpu(vm.cpuid(), &cpus.topology, index, vm.caps());
        vm.create_vcpu(index, cpus.topology.apic_id(index), &cpuid)
    };
    (0..cpus.count.into()).map(create).collect()
}

/// What KVM holds of a machine that was never run. KVM has no reset: this is written back. Read when
/// the machine is made, so that a reset needs nothing that the host might not have to give.
pub struct PowerOn {
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
}

impl PowerOn {
    fn of(vm: &Vm, vcpus: &[Vcpu]) -> Result<PowerOn, Error> {
        let read: Result<Vec<_>, _> = vcpus.iter().map(|vcpu| vcpu.read_state(vm)).collect();
        Ok(PowerOn { vcpus: read?, vm: vm.read_state()? })
    }
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

/// Does what vCPUs ask for, on a thread that may stop them, which their own cannot. It is there from
/// the beginning: a guest that asks for a reset must not wait because no thread can be made.
fn serve(machine: &Weak<Machine>, requested: &mpsc::Receiver<Wish>) {
    for wish in requested {
        match machine.upgrade() {
            Some(machine) => machine.fulfil(wish),
            None => return,
        }
    }
}
