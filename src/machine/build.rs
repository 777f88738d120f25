//! Putting a machine together, and starting it over.

use super::board::Board;
use super::cpus::{Cpus, Threads, VcpuRequest};
use super::gate::Gate;
use super::throttle::Throttle;
use super::{Control, Error, Event, Machine, Outside, RunState, VcpuInfo, limits};
use crate::arch::x86_64::boot::{self, Firmware, Images};
use crate::arch::x86_64::{cpuid, features};
use crate::config::{Config, Cpu};
use crate::devices::{DiskErrorAction, DiskEvent, Slots, acpi, pit, smbios};
use crate::kvm::{self, Vcpu, Vm};
use crate::memory::GuestRam;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    pub(crate) fn check(config: &Config) -> Result<(), Error> {
        let cpus = u32::from(config.cpu.count);
        kvm::check(&config.kvm, cpus)?;
        if let Some(boot) = &config.boot {
            let firmware = Firmware { cpus: &config.cpu, acpi: None, smbios: None };
            Images::open(boot)?.check(config.memory.bytes, &firmware)?;
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
        let vm = Arc::new(Vm::new(&config.kvm, pit::wanted(config), count, ram)?);
        let vcpus = create_vcpus(&vm, &config.cpu)?.into_iter().map(kvm::Shared::new).collect();
        let (vcpus, clock) = (Arc::new(vcpus), Arc::default());
        let (requests, requested) = mpsc::channel();
        let vcpu_requests = Arc::new(AtomicUsize::new(0));
        let raised = vcpu_requests.clone();
        let request: Arc<dyn Fn(VcpuRequest) + Send + Sync> = Arc::new(move |request| {
            raised.fetch_add(1, Ordering::SeqCst);
            // Nobody listens any more when the machine is being dropped.
            let _ = requests.send(request);
        });
        let events: Arc<dyn Fn(Event) + Send + Sync> = outside.events.into();
        let mut slots = Slots::new(
            config,
            &vm,
            &vcpus,
            &clock,
            outside.serial,
            outside.lines,
            outside.networks,
        );
        slots.disk_events = {
            let (events, request) = (events.clone(), request.clone());
            Arc::new(move |event: DiskEvent| {
                let stops = matches!(
                    &event,
                    DiskEvent::Error(error) if error.action == DiskErrorAction::Stop
                );
                events(Event::Disk(event));
                if stops {
                    request(VcpuRequest::DiskError);
                }
            })
        };
        let told = events.clone();
        slots.port_events =
            Arc::new(move |id, open| told(Event::PortChange { id: id.to_owned(), open }));
        let told = events.clone();
        slots.balloon.on_change(Box::new(move |actual| told(Event::BalloonChange { actual })));
        // Devices see processors and chips before anything is done to them.
        let board = Board::new(slots)?;
        vcpus[0].lock().prepare()?;
        if config.incoming.is_none() {
            start_kernel(images.as_mut(), &firmware(config, &board), &vm, &vcpus)?;
        }
        let cpus = Arc::new(Cpus {
            vm,
            board,
            gate: Gate::new(count as usize),
            vcpus,
            throttle_percent: AtomicU8::new(0),
            limits: std::iter::repeat_with(Default::default).take(count as usize).collect(),
            limit_period_ms: AtomicU64::new(limits::PERIOD.as_millis() as u64),
            losses: AtomicU64::new(0),
            request,
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
            events,
            state: AtomicU8::new(0),
            moment: AtomicU8::new(0),
            control: Mutex::new(Control {
                state,
                gone: false,
                hold: None,
                put_off: Vec::new(),
                images,
            }),
            clock,
            vcpu_requests,
            request_done: Condvar::new(),
            threads: Mutex::new(threads),
            throttle: Mutex::new(Throttle::default()),
            limits: Mutex::default(),
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

    /// All devices as after power-on, the kernel loaded again. The vCPUs stand still.
    pub(super) fn start_over(&self, images: Option<&mut Images>) -> Result<(), Error> {
        let ram = self.ram().main();
        ram.forgive(ram.losses());
        self.cpus.board.reset()?;
        match images {
            Some(images) => {
                let firmware = firmware(&self.config, &self.cpus.board);
                start_kernel(Some(images), &firmware, self.vm(), &self.cpus.vcpus)
            }
            None => Ok(()),
        }
    }
}

/// What a kernel is told of the machine.
fn firmware<'a>(config: &'a Config, board: &'a Board) -> Firmware<'a> {
    Firmware {
        cpus: &config.cpu,
        acpi: board.device::<acpi::Acpi>().map(|acpi| &**acpi.tables()),
        smbios: board.device::<smbios::Smbios>().map(|smbios| smbios.tables()),
    }
}

/// Loads the kernel, if there is one, and leaves the vCPUs as firmware would.
fn start_kernel(
    images: Option<&mut Images>,
    firmware: &Firmware<'_>,
    vm: &Vm,
    vcpus: &[kvm::Shared],
) -> Result<(), Error> {
    let entry = images.map(|images| images.load(vm.ram(), firmware)).transpose()?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        firmware_state(&vcpu.lock(), entry.filter(|_| index == 0))?;
    }
    Ok(())
}

fn create_vcpus(vm: &Vm, cpus: &Cpu) -> Result<Vec<Vcpu>, kvm::Error> {
    let create = |index| {
        let cpuid = cpuid::for_vcpu(vm.cpuid(), cpus, index, vm.caps());
        if index == 0 {
            let has = features::features(cpuid.as_slice());
            let wanted = cpus.features.iter().filter(|(_, on)| **on).map(|(name, _)| *name);
            for name in wanted.filter(|name| has.contains(&(*name, false))) {
                say!(
                    "godwit: warning: this host, or its KVM, does not support the CPU feature {name}"
                );
            }
        }
        vm.create_vcpu(cpus.topology.apic_id(index), &cpuid)
    };
    (0..cpus.count.into()).map(create).collect()
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
fn serve(machine: &Weak<Machine>, requested: &mpsc::Receiver<VcpuRequest>) {
    for request in requested {
        let Some(machine) = machine.upgrade() else { return };
        let done = catch_unwind(AssertUnwindSafe(|| machine.fulfil(request)));
        if done.is_err() {
            machine.request_panicked();
        }
    }
}
